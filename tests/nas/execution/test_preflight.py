"""What is wrong with a place is found before training there, and is never a trial's fault."""

from pathlib import Path

import pytest

from nas.evaluation.reference import _kept
from nas.execution.runner import run_study
from nas.runs.ledger import read_events
from nas.training import scores
from nas.training.trial import Trial
from space.errors import DataError, RunError, ToolkitError
from tests.nas.ablations import ablation


@pytest.fixture
def judged(tmp_path):
    return ablation(tmp_path, "evaluation.fid={samples: 129, steps: 2}")


@pytest.fixture(autouse=True)
def forgotten():
    scores.check_judge.cache_clear()
    scores._judge.cache_clear()
    yield
    scores.check_judge.cache_clear()


def missing(*_, **__):
    raise DataError("the weights are not there; give them")


def test_what_judges_samples_is_missing_before_anything_is_written(judged, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "extractor_named", missing)
    with pytest.raises(ToolkitError, match="the weights are not there; give them"):
        run_study(judged, tmp_path / "run", in_process=True)
    assert not (tmp_path / "run").exists()


def test_a_vae_that_is_missing_is_found_before_training(judged, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.data.codec.PixelUnshuffle.decode", missing)
    with pytest.raises(ToolkitError, match="the weights are not there; give them"):
        run_study(judged, tmp_path / "run", in_process=True)
    assert not (tmp_path / "run").exists()


def test_a_place_that_breaks_later_stops_the_run_and_fails_no_trial(judged, tmp_path, monkeypatch):
    original = Trial._place

    def place(self):
        if self.folder is not None:
            monkeypatch.setattr("nas.training.trial.check_judge", missing)
        return original(self)

    monkeypatch.setattr(Trial, "_place", place)
    with pytest.raises(RunError, match="no trial can be trained on .*: the weights are not there; give them"):
        run_study(judged, tmp_path / "run", in_process=True)
    assert [event.event for event in read_events(tmp_path / "run")] == ["run", "trial"]


def test_without_a_home_the_features_of_real_images_are_kept_nowhere(monkeypatch):
    def unknown(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert _kept("digest", "source", None, lambda: "features").features == "features"
