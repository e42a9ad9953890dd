"""CONTRIBUTING.md names every module."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tree_names_every_module_of_every_package():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text[text.index("## The tree") :].splitlines()
    found, folders = set(), []
    for line in tree:
        name = line.split()[0] if line.split() else ""
        depth = (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            folders = [*folders[:depth], name.removesuffix("/")]
        elif name.endswith(".py"):
            found.add("/".join([*folders[:depth], name]))
    there = {
        path.relative_to(ROOT).as_posix() for package in ("space", "nas", "analysis") for path in (ROOT / package).rglob("*.py")
    }
    assert found == {path for path in there if not path.endswith("__init__.py")}
