"""Which package may import which, as one table, and what follows: no circles, light modules, one name for one thing."""

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("space", "nas", "analysis") for path in (ROOT / package).rglob("*.py"))

HEADERS = ("nas.data.header", "nas.data.settings")
ARROWS = {
    "space": (),
    "nas.rng": (),
    "nas.data": (),
    "nas.stats": (),
    "nas.study": HEADERS,
    # The one module of nas.study that reads.
    "nas.study.load": (*HEADERS, "nas.study", "nas.data.sources"),
    "nas.diffusion": ("nas.study", "nas.rng"),
    "nas.evaluation": ("nas.diffusion", "nas.data", "nas.study", "nas.rng"),
    "nas.runs": ("nas.study", "nas.stats", *HEADERS),
    "nas.search": ("nas.runs", "nas.stats", "nas.study", *HEADERS),
    "nas.training": ("nas.evaluation", "nas.diffusion", "nas.runs", "nas.data", "nas.study", "nas.rng"),
    "nas.reporting": ("nas.runs", "nas.stats", "nas.study"),
    "nas.replay": ("nas.search", "nas.runs", "nas.stats", "nas.study"),
    "nas.execution": ("nas.search", "nas.training", "nas.evaluation", "nas.runs", "nas.study", "nas.data"),
    "nas.cli": ("nas", "analysis"),
    "nas.__main__": ("nas.cli",),
    # The doors.
    "nas": ("nas.execution.runner", "nas.runs.run", "nas.study.load"),
    "analysis": ("nas.runs", "nas.stats", "nas.study", "nas.search.distributions"),
}
"""By package, or by module where it differs: what of ours it may import, besides itself and `space`."""

LIBRARIES = {
    "ray": (
        *("nas.execution.cluster", "nas.execution.ray_adapters", "nas.execution.ray_executor", "nas.execution.ray_place"),
        "nas.execution.tracking",
    ),
    "optuna": (
        *("nas.search.distributions", "nas.search.optuna_export", "nas.search.optuna_searcher"),
        "analysis.search.importance",
    ),
    "space.model": ("space.model", "space.official", "space.weights", "nas"),
    "safetensors": ("space.official", "space.tensors", "space.weights", "nas"),
    "torch": (
        *("space.model", "space.official", "space.tensors", "space.weights"),
        *("nas.rng", "nas.diffusion", "nas.training", "nas.evaluation", "nas.execution", "nas.cli"),
        *("nas.data.feed", "nas.data.vae"),
    ),
    "pandas": ("analysis",),
    "matplotlib": ("analysis", "nas.cli"),
}
"""By library: the packages and modules that may import it."""

LIGHT = {
    "space": ("torch", "ray", "optuna", "pandas", "numpy"),
    "nas": ("torch", "ray", "optuna", "pandas", "numpy"),
    "analysis": ("torch", "ray", "optuna", "pandas"),
    "nas.cli.app": ("torch", "ray", "optuna", "pandas", "numpy", "pydantic"),
    "nas.study.load": ("torch", "ray", "optuna", "pandas"),
    "nas.runs.run": ("torch", "ray", "optuna", "pandas"),
    "nas.search.state": ("torch", "ray", "optuna", "pandas"),
    "nas.reporting.console": ("torch", "ray", "optuna", "pandas"),
    "nas.reporting.estimate": ("torch", "ray", "optuna", "pandas"),
    "nas.reporting.ablation_estimate": ("torch", "ray", "optuna", "pandas"),
    "nas.replay.simulator": ("torch", "ray", "optuna", "pandas"),
    "analysis.runs.frames": ("torch", "ray", "optuna"),
}
"""Modules that claim to be light, and what is not there once they are imported."""


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in FILES}


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree):
    """Every module that is imported, in functions too, but for TYPE_CHECKING blocks; ours by their modules, not their packages."""
    found, stack = set(), [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "a relative import"
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in NAMES else node.module for alias in node.names
            }
        else:
            stack += [child for child in ast.iter_child_nodes(node) if not is_type_checking(child)]
    return found


IMPORTS = {name: imported(ast.parse(path.read_text())) for name, path in NAMES.items()}


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def home(name):
    """The entry of the table that a module belongs to: the longest that begins its name."""
    return max((package for package in ARROWS if within(name, [package])), key=len)


@pytest.mark.parametrize("name", NAMES)
def test_arrows_are_those_of_the_table(name):
    own = home(name)
    allowed = ("space", *ARROWS[own]) if own == "nas" else ("space", own, *ARROWS[own])
    ours = {module for module in IMPORTS[name] if within(module, ("space", "nas", "analysis"))}
    assert {module for module in ours if not within(module, allowed)} == set()


def test_search_and_training_do_not_know_each_other():
    assert not any(within(module, ["nas.training"]) for name in NAMES if within(name, ["nas.search"]) for module in IMPORTS[name])
    assert not any(within(module, ["nas.search"]) for name in NAMES if within(name, ["nas.training"]) for module in IMPORTS[name])


def test_there_are_no_import_circles():
    graph = {name: {module for module in modules if module in NAMES and module != name} for name, modules in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_in_its_packages(library):
    users = {name for name, modules in IMPORTS.items() if any(within(module, [library]) for module in modules)}
    assert {name for name in users if not within(name, LIBRARIES[library])} == set()


@pytest.mark.parametrize("name", LIGHT)
def test_a_light_module_is_light(name):
    code = f"import sys, {name}; print([module for module in {LIGHT[name]!r} if module in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == "[]"


def test_no_two_public_classes_or_functions_share_a_name():
    homes = defaultdict(list)
    for name, path in NAMES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    shared = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert shared == {"load": ["analysis.runs.data", "space.weights"]}, "the doors space.load and analysis.load alone"


@pytest.mark.parametrize("package", ["space", "nas", "analysis"])
def test_every_public_name_of_a_package_is_listed_and_there(package):
    code = f"import {package}; print([name for name in dir({package}) if getattr({package}, name, None) is None])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == "[]"


def test_every_package_of_nas_says_its_purpose():
    packages = list((ROOT / "nas").glob("*/__init__.py"))
    assert len(packages) == 12
    assert all(ast.get_docstring(ast.parse(path.read_text())) for path in packages)


def test_modules_stay_small_and_self_contained():
    outside = ".." + "/shared"
    for path in [*FILES, *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert outside not in text, path
