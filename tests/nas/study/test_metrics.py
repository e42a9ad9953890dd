"""The table of metrics."""

import doctest

import pytest

from nas.study import metrics
from nas.study.metrics import METRICS, SCORES, lower_is_better, metric_named
from space import ToolkitError


def test_directions():
    assert all(map(lower_is_better, ("val_loss", "fid", "fid_infinity", "sfid", "kid", "step_seconds")))
    assert not any(map(lower_is_better, ("precision", "recall", "inception_score", "is", "images_per_s")))
    with pytest.raises(
        ToolkitError, match="'loss' is better is not known; less is better of val_loss.*more is better of precision"
    ):
        lower_is_better("loss")


def test_every_score_is_in_the_table_and_losses_of_bins_share_their_metric():
    assert SCORES == ("val_loss", "fid", "fid_infinity", "sfid", "inception_score", "precision", "recall", "kid")
    assert set(SCORES) <= set(METRICS)
    assert metric_named("val_loss_bin_3") is METRICS["val_loss"]
    assert all(metric.low < metric.high and metric.better in ("lower", "higher", None) for metric in METRICS.values())


def test_the_examples_run():
    assert doctest.testmod(metrics) == (0, 3)
