"""The architectures that can be built, the ways in which they vary, and what they cost.

`import space` is light: a module is imported when one of its names, which `__init__.pyi` lists, is first used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
