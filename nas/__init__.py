"""Train, score, search, schedule, record and export.

    import nas

    study = nas.load_study("studies/quickstart_search.yaml")
    run = nas.run_study(study, "runs/quickstart-search")
    run = nas.read_run("runs/quickstart-search")

`import nas` is light: a module is imported when one of its names, which `__init__.pyi` lists, is first used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
