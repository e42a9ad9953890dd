"""What the tests of replays share: a study whose architectures all train fully, and fewer random draws."""

import pytest

from nas.stats import ranks
from nas.study.load import load_study
from tests.nas.recorded import ALL_FULLY


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Intervals take a second, which only the test about them needs; and no test here asks what share of a space is feasible."""
    monkeypatch.setattr(ranks, "RESAMPLES", 20)
    monkeypatch.setattr("nas.study.study.CENSUS_DRAWS", 2000)


@pytest.fixture
def study(tiny_file):
    return load_study(tiny_file, ALL_FULLY)
