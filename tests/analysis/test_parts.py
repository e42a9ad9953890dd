"""The parts that all of `analysis` shares: figures, markup, and checks of frames."""

import doctest

import numpy as np
import pandas as pd
import pytest

from analysis import columns, figures, markup
from space.errors import ToolkitError


@pytest.mark.parametrize("module", [figures, markup])
def test_the_examples_run(module):
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 0) == (0, True)


def test_a_missing_column_names_the_nearest():
    frame = pd.DataFrame({"variant": ["a"], "val_loss": [0.1]})
    columns.require_columns(frame, ["variant", "val_loss"])
    with pytest.raises(ToolkitError, match="the frame has no column 'val_los'; did you mean 'val_loss'?"):
        columns.require_columns(frame, ["val_los"])


@pytest.mark.parametrize("values", [[1.0, None], pd.array([1, None], dtype="Int64"), np.array([1.0, np.nan]), [1, pd.NA]])
def test_numbers_of_every_kind_are_floats_with_nan_where_missing(values):
    series = columns.numeric_column(pd.DataFrame({"fid": values}, index=[3, 5]), "fid")
    assert series.dtype == np.float64
    assert series.index.tolist() == [3, 5]
    np.testing.assert_array_equal(series, [1.0, np.nan])


def test_text_is_no_number():
    with pytest.raises(ToolkitError, match="column 'fid' does not hold numbers only"):
        columns.numeric_column(pd.DataFrame({"fid": ["low"]}), "fid")
