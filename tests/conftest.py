"""What several tests need: a study that trains in a few seconds."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from nas.study.load import load_study
from nas.study.study import Study

# Read when Ray is imported: clusters that tests start listen on loopback alone.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# The models of the tests are small: a second thread costs more than it brings, and much more when another process runs.
torch.set_num_threads(1)

TINY = {
    "name": "tiny",
    "question": "Does everything work?",
    "data": {"source": "fashion-mnist-10k", "codec": "pixel-unshuffle-4"},
    "model": {"preset": "u-dit-toy", "set": {"channels": 8, "depths": [1, 1, 1, 1, 1], "feed_forward.ratio": 2}},
    "search": {
        "space": {"heads": [1, 2], "attention.similarity": ["dot", "cosine"], "feed_forward.kind": ["mlp", "conv"]},
        "constraints": {"gflops": {"max": 0.01}},
        "objectives": [{"metric": "val_loss"}],
        "trials": 4,
    },
    "training": {"batch_size": 4, "learning_rate": 1.0e-3},
    "budget": {"max": "200 MFLOPs", "rungs": 3, "reduction_factor": 2},
    "finish": {"best": 1, "budget": "300 MFLOPs"},
    "evaluation": {"val_loss": {"images": 16}, "samples": {"per_class": 1, "steps": 2}},
}


@pytest.fixture(scope="session", autouse=True)
def without_fsync():
    """Waiting for the disk takes a third of the time of the tests that write ledgers, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return path


@pytest.fixture
def tiny(tiny_file: Path) -> Study:
    return load_study(tiny_file)
