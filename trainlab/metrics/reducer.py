"""Reducer: how the values of many batches become one number."""

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainlab.errors import MetricError

__all__ = ["Reducer", "combine"]


class Reducer(enum.Enum):
    """How the values of many batches become one number: their weighted mean, sum, largest or smallest."""

    AVG = "avg"
    SUM = "sum"
    MAX = "max"
    MIN = "min"


Values = Sequence[Any] | npt.NDArray[Any]
Weights = Sequence[float] | npt.NDArray[Any]


def combine(values: Values, reducer: Reducer, weights: Weights | None = None) -> float:
    """Combine values in float64, in the order given.

    Args:
        values: numbers, one a batch.
        reducer: how to combine them.
        weights: one weight ≥ 0 for each value, used by ``Reducer.AVG`` only; default: all equal. A value of
            weight 0 takes no part in the mean, even if it is NaN.

    Returns:
        The combined number; NaN if a value that takes part is NaN.

    Raises:
        MetricError: there are no values, the weights are not as many as the values, one is negative or NaN, or their
            sum is 0, or ``reducer`` is no Reducer.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise MetricError("There are no values to combine. Received: an empty sequence. Give at least one value.")
    if weights is not None and len(weights) != len(numbers):
        raise MetricError(
            f"Values and weights are not equally many. Received: {len(numbers)} values and {len(weights)} weights. "
            "Give one weight for each value."
        )
    if reducer is Reducer.AVG:
        return float(np.mean(numbers)) if weights is None else _weighted_mean(numbers, weights)
    if reducer is Reducer.SUM:
        return float(np.sum(numbers))
    if reducer is Reducer.MAX:
        return float(np.max(numbers))
    if reducer is Reducer.MIN:
        return float(np.min(numbers))
    raise MetricError(
        f"Values are combined by a Reducer. Received: {reducer!r} (type {type(reducer).__name__}). "
        f"Use one of {', '.join(map(str, Reducer))}."
    )


def _weighted_mean(numbers: npt.NDArray[np.float64], weights: Weights) -> float:
    shares = np.asarray(weights, dtype=np.float64)
    if not np.all(shares >= 0) or not np.any(shares > 0):
        raise MetricError(
            f"Weights must be at least 0, and one above 0. Received: {list(weights)!r}. Weigh by numbers of records."
        )
    taking_part = shares > 0
    return float(np.sum(numbers[taking_part] * shares[taking_part]) / np.sum(shares))
