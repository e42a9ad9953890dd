"""The direction of imports, and what may be imported where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("space", "nas", "analysis")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
COMPOSITION = "nas.cli"
"""The command line puts everything together; nothing imports it but `python -m nas`."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_any(path: Path, *roots: str) -> list[str]:
    return sorted(name for name in imports(path) if any(name == root or name.startswith(f"{root}.") for root in roots))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_arrows_point_one_way(path):
    name = module_name(path)
    if name.startswith("space"):
        assert not imports_any(path, "nas", "analysis")
        if not name.startswith(("space.model", "space.official")) and name not in ("space.weights", "space"):
            assert not imports_any(path, "torch", "space.model", "safetensors")
    elif name.startswith("nas") and not name.startswith(COMPOSITION):
        assert not imports_any(path, "analysis")
        if name != "nas.__main__":
            assert not imports_any(path, COMPOSITION)
    elif name.startswith("analysis"):
        light = ("nas.runs.run", "nas.runs.records", "nas.replay.curves", "nas.stats")
        ours = [
            m for m in imports_any(path, "nas") if not m.startswith(light if name != "analysis.search.importance" else ("nas.",))
        ]
        assert not ours
        assert not imports_any(path, "torch", "ray", "space.model")


def test_no_import_cycles():
    names = {module_name(path): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        top = ast.parse(path.read_text()).body  # imports inside functions and TYPE_CHECKING blocks are not followed
        found = {n.module for n in top if isinstance(n, ast.ImportFrom)} | {
            a.name for n in top if isinstance(n, ast.Import) for a in n.names
        }
        graph[name] = {module for module in found if module in names}
    while graph:
        leaves = {name for name, below in graph.items() if not below & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in leaves}


def test_ray_and_optuna_stay_in_their_modules():
    ray = [module_name(path) for path in MODULES if imports_any(path, "ray")]
    assert ray == ["nas.execution.cluster", "nas.execution.ray_adapters", "nas.execution.ray_executor", "nas.execution.tracking"]
    optuna = [module_name(path) for path in MODULES if imports_any(path, "optuna")]
    assert optuna == ["analysis.search.importance", "nas.search.optuna_export", "nas.search.searcher"]


@pytest.mark.parametrize("package", ["space", "analysis"])
def test_import_stays_light(package):
    # Every name but those that say they need torch.
    names = {"space": "PRESETS, SearchSpace, cost", "analysis": "load, plot_front, ranking_table"}[package]
    code = f"import sys\nfrom {package} import {names}\nprint([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == "[]"


def test_modules_stay_small_and_self_contained():
    outside = ".." + "/shared"
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert outside not in text, path
