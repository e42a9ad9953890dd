"""Trials on one GPU are never predicted to take more than 90 % of it together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.execution.packing import CONTEXT_BYTES, SHARES, awaited_bytes, resident_bytes, share_of_gpu, training_bytes
from space import memory, preset

GIB = 2**30

gpus = st.integers(6 * GIB, 200 * GIB)
trials = st.integers(2**20, 120 * GIB)
data = st.integers(0, 100 * GIB)


def taken(trial, samples, gpu):
    """What a trial's process is predicted to take."""
    return trial + resident_bytes(samples, gpu) + CONTEXT_BYTES


@given(gpus, data, st.lists(trials, min_size=1, max_size=40))
def test_trials_that_share_a_gpu_take_at_most_90_percent_of_it(gpu, samples, waiting):
    # As Ray fills a GPU: whatever fits into what is left of it.
    left, together = 1.0, []
    for trial in waiting:
        share = share_of_gpu(trial, samples, gpu)
        if share <= left:
            left -= share
            together.append(taken(trial, samples, gpu))
    assert together, "an empty GPU takes any trial"
    if len(together) > 1:
        assert 10 * sum(together) <= 9 * gpu


@given(gpus, data, trials)
def test_a_share_is_no_larger_than_needed(gpu, samples, trial):
    share = share_of_gpu(trial, samples, gpu)
    smaller = [other for other in SHARES if other < share]
    assert all(taken(trial, samples, gpu) > other * 0.9 * gpu * (1 - 1e-12) for other in smaller)


@given(gpus, data, trials, st.sampled_from(SHARES))
def test_what_is_awaited_becomes_free_when_neighbours_keep_to_their_shares(gpu, samples, trial, share):
    neighbours = (1 - share) * 0.9 * gpu
    own = resident_bytes(samples, gpu) + CONTEXT_BYTES
    awaited = awaited_bytes(trial, samples, gpu, share)
    assert awaited <= max(0, gpu - neighbours - own)
    assert awaited <= trial
    if share == share_of_gpu(trial, samples, gpu) < 1:
        assert awaited == trial


@pytest.mark.parametrize(("trial", "share"), [(1.5, 0.125), (1.9, 0.125), (2, 0.25), (3.5, 0.25), (8, 0.5), (16, 1.0), (60, 1.0)])
def test_shares_of_a_24_gib_gpu(trial, share):
    assert share_of_gpu(round(trial * GIB), 0, 24 * GIB) == share


def test_data_count_only_where_they_are_kept_on_the_gpu():
    assert resident_bytes(4 * GIB, 10 * GIB) == 4 * GIB
    assert resident_bytes(5 * GIB, 10 * GIB) == 0
    assert share_of_gpu(2 * GIB, 0, 24 * GIB) < share_of_gpu(2 * GIB, 4 * GIB, 24 * GIB)


def test_every_averaged_copy_of_the_weights_counts():
    spec = preset("u-dit-toy")
    assert training_bytes(spec, 8, 2) - training_bytes(spec, 8, 1) == memory(spec, 8).weights
