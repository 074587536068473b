"""Reducer and combine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainlab.errors import MetricError
from trainlab.metrics import Reducer, combine

NUMBERS = st.floats(-1e6, 1e6)
WEIGHED = st.lists(st.tuples(NUMBERS, st.integers(1, 100)), min_size=1, max_size=50)


@given(WEIGHED)
def test_combine_is_what_the_definitions_say(weighed):
    """The weighted mean, the plain sum and the extremes, whatever the values."""
    values, weights = [v for v, _ in weighed], [w for _, w in weighed]
    assert combine(values, Reducer.AVG, weights) == pytest.approx(np.average(values, weights=weights), abs=1e-6)
    assert combine(values, Reducer.AVG) == pytest.approx(np.mean(values), abs=1e-6)
    assert combine(values, Reducer.SUM, weights) == pytest.approx(np.sum(values), abs=1e-6)
    assert combine(values, Reducer.MAX, weights) == max(values)
    assert combine(values, Reducer.MIN, weights) == min(values)


def test_the_arithmetic_is_in_float64():
    """Integers that float32 cannot hold are summed exactly."""
    assert combine([2**24, 1, 1], Reducer.SUM) == 2**24 + 2


def test_a_value_of_weight_zero_takes_no_part():
    """The mean over no record is NaN, and does not spoil the mean over the records that there are."""
    assert combine([1.0, float("nan"), 3.0], Reducer.AVG, [1, 0, 3]) == 2.5


@pytest.mark.parametrize("reducer", Reducer)
def test_a_nan_is_not_hidden(reducer):
    """A NaN among the values comes out as NaN, for the extremes too."""
    assert np.isnan(combine([1.0, float("nan")], reducer, [1, 1]))


@pytest.mark.parametrize(
    ("values", "weights"), [([], None), ([1.0, 2.0], [1]), ([1.0], [0]), ([1.0, 2.0], [2, -1]), ([1.0], [float("nan")])]
)
def test_unusable_values_and_weights_are_refused(values, weights):
    """No values, weights of another number, and weights that make no mean are errors with what was received."""
    with pytest.raises(MetricError, match="Received: "):
        combine(values, Reducer.AVG, weights)


def test_what_is_no_reducer_is_refused():
    """A name in place of a Reducer is not taken for one."""
    with pytest.raises(MetricError, match=r"Reducer\.AVG"):
        combine([1.0], "mean")
