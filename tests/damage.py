"""Random damage to what users hand the commands: studies, ledgers, stores, checkpoints, exports and the authors' checkpoints.

`python -m tests.damage --times 2000` damages each as often and runs the commands that read it; whatever ends in a traceback, or in
anything but a sentence, is printed with the seed that repeats it. `tests/test_damage.py` runs a short form.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from click.testing import CliRunner

from nas.cli.app import main
from nas.execution.runner import run_study
from nas.study.load import load_study
from space import official, preset
from space.model.network import build
from tests.conftest import TINY

ODD = [
    None,
    -1,
    0,
    3,
    10**9,
    1e300,
    float("nan"),
    True,
    "x",
    "",
    "a\nb",
    "é≠±",
    [],
    [1, "x"],
    {},
    {"x": 1},
    "1.5 TFLOPs",
    "30 MFLOPs ± 5 %",
]
"""Values that stand where another was: of every type that JSON and YAML have, and of the words that studies use."""

_LEAKS = re.compile(r"Traceback|errors\.pydantic\.dev|Error\(|<class |object at 0x")
"""What a sentence for a user never has in it."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside nested mappings and lists, the outermost excepted."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def damage_values(document: Any, rng: random.Random) -> Any:
    """A copy of nested mappings and lists with one value replaced, removed, doubled or renamed."""
    copy = json.loads(json.dumps(document))
    path = rng.choice(list(_places(copy)))
    outer = copy
    for key in path[:-1]:
        outer = outer[key]
    last, how = path[-1], rng.random()
    if how < 0.6:
        outer[last] = rng.choice(ODD)
    elif how < 0.8:
        del outer[last]
    elif isinstance(outer, dict):
        outer[str(last)[:-1] + rng.choice("sx_.")] = outer.pop(last)
    else:
        outer.append(outer[last])
    return copy


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are changed, left out, put in, or cut off at the end."""
    if not content:
        return b"x"
    at, how = rng.randrange(len(content)), rng.random()
    length = rng.choice([1, 1, 2, 8, 64, 1024])
    if how < 0.45:
        new = bytes(rng.randrange(256) for _ in range(min(length, len(content) - at)))
        return content[:at] + new + content[at + len(new) :]
    if how < 0.65:
        return content[:at]
    if how < 0.8:
        return content[:at] + content[at + length :]
    if how < 0.95:
        return content[:at] + bytes(rng.randrange(256) for _ in range(length)) + content[at:]
    return rng.choice([b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"<!DOCTYPE html><html></html>"])


@dataclass(frozen=True)
class Subject:
    """Something to damage: its sound files, which of them are damaged, and the commands that read it."""

    name: str
    sound: Path
    damaged: tuple[str, ...]
    commands: Callable[[Path], list[list[str]]]

    def damage(self, folder: Path, rng: random.Random) -> None:
        """Damage one file of a copy of the sound ones; a file of JSON or YAML mostly by its values."""
        name = rng.choice(self.damaged)
        path = folder / name
        if rng.random() < 0.02:
            path.unlink()
            return
        text = path.read_bytes()
        if rng.random() < 0.7 and path.suffix in (".json", ".yaml", ".jsonl"):
            text = self._values(path, rng).encode()
        else:
            text = damage_bytes(text, rng)
        path.write_bytes(text)

    def _values(self, path: Path, rng: random.Random) -> str:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".yaml":
            return yaml.safe_dump(damage_values(yaml.safe_load(text), rng), sort_keys=False, allow_unicode=True)
        if path.suffix == ".json":
            return json.dumps(damage_values(json.loads(text), rng))
        lines = text.splitlines()
        at, how = rng.randrange(len(lines)), rng.random()
        if how < 0.8:
            lines[at] = json.dumps(damage_values(json.loads(lines[at]), rng))
        elif how < 0.9:
            del lines[at]
        else:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        return "\n".join(lines) + "\n"


def subjects(folder: Path) -> dict[str, Subject]:
    """Make what is damaged: a study, its run, an export of it, a store, and a checkpoint as the authors' code writes it."""
    made = folder / "made"
    made.mkdir()
    study = made / "tiny.yaml"
    # Eight trials to the last rung are the fewest that can be replayed.
    enough = {"search": {**TINY["search"], "trials": 8}, "budget": {**TINY["budget"], "mode": "none"}}
    study.write_text(yaml.safe_dump({**TINY, **enough}, sort_keys=False))
    run_study(load_study(study), made / "run", in_process=True)
    trial = next(path.name for path in sorted((made / "run" / "export").iterdir()))
    exported = made / "run" / "export" / trial
    trained = next(path for path in sorted((made / "run" / "trials").iterdir()) if path.name == trial)

    def kept(name: str, *files: Path) -> Path:
        target = folder / name
        target.mkdir()
        for file in files:
            (shutil.copytree if file.is_dir() else shutil.copy)(file, target / file.name)
        return target

    rng = np.random.default_rng(0)
    np.savez(made / "arrays.npz", images=rng.integers(0, 256, (240, 16, 16, 3), dtype=np.uint8), labels=np.arange(240) % 3)
    _must("data", "prepare", "arrays", made / "arrays.npz", "--codec", "pixel-unshuffle-2", "--out", made / "store")
    spec = preset("dit-s/2").replace({"channels": 24, "heads": 2, "depths": [1], "num_classes": 10})
    torch.save({"ema": official.state_dict(build(spec))}, made / "authors.pt")
    kwargs = json.dumps(official.kwargs_from_spec(spec))
    found = [
        Subject("study", kept("study", study), ("tiny.yaml",), lambda at: [["validate", f"{at}/tiny.yaml"]]),
        Subject(
            "ledger",
            kept("ledger", made / "run" / "ledger.jsonl", trained.parent),
            ("ledger.jsonl",),
            lambda at: [
                ["status", str(at)],
                ["table", str(at)],
                ["export", str(at)],
                ["replay", str(at), "--repeats", "2"],
                ["run", str(study), "--out", str(at), "--dry-run"],
            ],
        ),
        Subject(
            "store",
            kept("store", *(made / "store").iterdir()),
            ("header.json", "latents.npy", "labels.npy"),
            lambda at: [["data", "info", str(at), "--verify"], ["validate", str(_study_on(at))]],
        ),
        Subject(
            "checkpoint",
            kept("checkpoint", made / "run" / "ledger.jsonl", trained.parent),
            (f"trials/{trial}/checkpoint.safetensors",),
            lambda at: [["export", str(at), "--select", str(int(trial[:4]))]],
        ),
        Subject(
            "export",
            kept("export", *(path for path in exported.iterdir() if path.suffix in (".json", ".safetensors"))),
            tuple(path.name for path in exported.iterdir() if path.suffix in (".json", ".safetensors")),
            lambda at: [["sample", str(at), "--classes", "1", "--per-class", "1", "--steps", "2", "--out", f"{at}/grid.png"]],
        ),
        Subject(
            "authors",
            kept("authors", made / "authors.pt"),
            ("authors.pt",),
            lambda at: [["import-official", f"{at}/authors.pt", "--kwargs", kwargs, "--out", f"{at}/ours"]],
        ),
    ]
    return {subject.name: subject for subject in found}


def _study_on(store: Path) -> Path:
    path = store / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {"source": str(store)}}))
    return path


def _must(*arguments: Any) -> None:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (arguments, done.output, done.exception)


def faults(subject: Subject, times: int, seed: int, place: Path) -> list[str]:
    """Damage a subject so often and return what was not told in a sentence, with the seed of each."""
    found, runner = [], CliRunner()
    for number in range(times):
        rng = random.Random(f"{subject.name} {seed} {number}")
        here = place / "damaged"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(subject.sound, here)
        subject.damage(here, rng)
        for command in subject.commands(here):
            done = runner.invoke(main, command)
            text, odd = done.output, None
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                odd = "".join(traceback.format_exception(done.exception)[-3:])
            elif _LEAKS.search(text) or done.exit_code not in (0, 1, 2):
                odd = text
            elif done.exit_code == 2 and "nas: " not in text:
                odd = f"no sentence: {text}"
            if odd:
                found.append(f"{subject.name}, seed {seed}, number {number}, nas {' '.join(command)}:\n{odd}")
    return found


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of subjects; all by default")
    given = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, subject in subjects(Path(folder)).items():
            if given.only and name not in given.only:
                continue
            found = faults(subject, given.times, given.seed, Path(folder))
            bad += len(found)
            print(f"{name}: {given.times} damages, {len(found)} not told in a sentence", flush=True)
            print("\n".join(found), flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(_main())
