"""MetricRules: what a metric may be, and how the values of many batches become one."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainlab.errors import MetricError
from trainlab.metrics.reducer import Reducer, combine

__all__ = ["Column", "MetricRules", "Shares", "Values", "describe", "host_array", "real_column"]

Values = Sequence[Any] | npt.NDArray[Any]
Column = npt.NDArray[np.float64] | Sequence[npt.NDArray[np.float64] | None]
Shares = npt.NDArray[np.float64]


class MetricRules:
    """The strict rules: every metric is one number. A subclass may be tolerant by overriding single methods.

    Host values, as the methods below get them, are one value a batch: an array of shape ``(batches, *shape)`` where
    all were tensors of one shape and dtype, else a list of arrays (what were tensors) and of other values as returned.
    """

    def check_training(self, name: str, value: Any) -> None:
        """Refuse what may not be a training metric; called for each value of each batch, so it has to be fast.

        Args:
            name: the metric's name.
            value: what ``train_batch`` returned under it.

        Raises:
            MetricError: the value is no number and no 0-dimensional numeric tensor or array.
        """
        if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
            return  # the usual case, without a further call
        if not _is_number(value):
            raise _refused("train_batch", name, value)

    def average(self, name: str, values: Values) -> float | None:
        """Average the values of a training window: the plain mean over all elements of all batches, in float64.

        Args:
            name: the metric's name.
            values: host values, one a batch.

        Returns:
            The mean; a subclass may give None for what has none.

        Raises:
            MetricError: a value holds anything but real numbers, or there is no element at all.
        """
        if isinstance(values, np.ndarray):
            return combine(_real(name, values).ravel(), Reducer.AVG)
        elements = [_real(name, value).ravel() for value in values]
        return combine(np.concatenate(elements) if elements else [], Reducer.AVG)

    def check_validation(self, name: str, value: Any) -> None:
        """Refuse what may not be a validation metric of one batch.

        Args:
            name: the metric's name.
            value: what ``evaluate_batch`` returned under it.

        Raises:
            MetricError: the value is no number and no 0-dimensional numeric tensor or array.
        """
        if not _is_number(value):
            raise _refused("evaluate_batch", name, value)

    def weight(self, records: int) -> float:
        """Weigh a validation batch for ``Reducer.AVG``, or one rank's part of a training batch.

        Args:
            records: how many records the batch, or the part, had.

        Returns:
            The number of records, so that the average is the mean over the data set.
        """
        return records

    def to_send(self, name: str, values: Values) -> Column | None:
        """Prepare the values of a training window for the other ranks.

        Args:
            name: the metric's name.
            values: host values, one a batch.

        Returns:
            The values in float64: an array of shape ``(batches, *shape)``, or a list of arrays where the shapes differ.
            A subclass may put None for a value that is left out, and None for all where there is no mean.

        Raises:
            MetricError: a value holds anything but real numbers.
        """
        return real_column(name, values)

    def over_ranks(self, name: str, columns: Sequence[Column | None], shares: Shares) -> Values:
        """Average the parts of each training batch over the ranks, in float64, in the order of the ranks.

        Args:
            name: the metric's name.
            columns: what ``to_send`` gave on each rank.
            shares: each rank's share in each batch, of shape ``(ranks, batches)``; they add up to 1 for each batch.
                A value whose share is 0 takes no part, even if it is NaN.

        Returns:
            Host values, one a batch.

        Raises:
            MetricError: the values are not of one shape.
        """
        arrays = [column for column in columns if isinstance(column, np.ndarray)]
        if len(arrays) < len(columns) or len({array.shape for array in arrays}) > 1:
            raise MetricError(
                f"The metric {name!r} has not the same shape in all batches on all ranks. Received: "
                f"{', '.join(_told_shape(column) for column in columns)}. Return it in one shape from train_batch, "
                "best as one number."
            )
        mean = np.zeros_like(arrays[0])
        for array, share in zip(arrays, shares, strict=True):
            given = share > 0
            mean[given] += array[given] * share[given].reshape(-1, *[1] * (array.ndim - 1))
        return mean

    def reduce(self, name: str, values: Values, reducer: Reducer, weights: Sequence[float]) -> float:
        """Reduce the values of all validation batches to one number, over all their elements, in float64.

        Args:
            name: the metric's name.
            values: host values, one a batch, all of one shape.
            reducer: how to reduce them.
            weights: one for each batch, from ``weight``.

        Returns:
            The number.

        Raises:
            MetricError: a value holds anything but real numbers, the shapes differ, or the weights cannot be used.
        """
        arrays = [_real(name, value) for value in values]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise MetricError(
                f"The validation metric {name!r} has not the same shape in all batches. Received: shapes "
                f"{sorted(shapes)}. Return it in one shape from evaluate_batch, best as one number."
            )
        elements = np.concatenate([array.ravel() for array in arrays]) if arrays else np.empty(0)
        return combine(elements, reducer, np.repeat(weights, len(elements) // max(len(arrays), 1)))

    def full_dataset(self, name: str, value: Any) -> Any:
        """Accept a metric that ``evaluate_full_dataset`` returned.

        Args:
            name: the metric's name.
            value: what was returned under it.

        Returns:
            The value as a float; a subclass may pass on other host values.

        Raises:
            MetricError: the value is no number and no 0-dimensional numeric tensor or array.
        """
        if not _is_number(value):
            raise _refused("evaluate_full_dataset", name, value)
        return float(value)

    def reduced(self, name: str, value: Any) -> Any:
        """Accept what a wrapped reducer gave.

        Args:
            name: the metric's name.
            value: the reducer's result under it.

        Returns:
            The value as a float; a subclass may pass on other host values.

        Raises:
            MetricError: the value is no number and no 0-dimensional numeric tensor or array.
        """
        if not _is_number(value):
            raise _refused("a reducer", name, value)
        return float(value)


def describe(value: Any) -> str:
    """Describe a value for an error message.

    Args:
        value: anything.

    Returns:
        Its type, with shape and dtype for tensors and arrays, else with its content, cut short.
    """
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    content = repr(value)
    return f"{type(value).__name__} {content if len(content) <= 80 else content[:77] + '...'}"


def real_column(name: str, values: Values) -> npt.NDArray[np.float64] | list[npt.NDArray[np.float64]]:
    """Turn host values into float64.

    Args:
        name: the metric's name, for errors.
        values: host values, one a batch.

    Returns:
        An array of shape ``(batches, *shape)``, or a list of arrays where the shapes differ.

    Raises:
        MetricError: a value holds anything but real numbers.
    """
    if isinstance(values, np.ndarray):
        return _real(name, values)
    arrays = [_real(name, value) for value in values]
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays


def host_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Copy a tensor to the host as an array.

    Args:
        tensor: any strided tensor.

    Returns:
        An array of the same shape and dtype; float32 where NumPy does not have the dtype (bfloat16, float8). It may
        share memory with a tensor that is on the host already.
    """
    on_host = tensor.detach().cpu()
    if on_host.dtype.is_floating_point and on_host.dtype not in _NUMPY_FLOATS:
        on_host = on_host.float()
    array: npt.NDArray[Any] = on_host.resolve_conj().resolve_neg().numpy()
    return array


_NUMPY_FLOATS = frozenset({torch.float16, torch.float32, torch.float64})
_NUMBERS = frozenset({float, int, bool})


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex()
    if type(value) in _NUMBERS:
        return True
    if isinstance(value, np.ndarray | np.generic):
        return value.ndim == 0 and value.dtype.kind in "biuf"
    return isinstance(value, numbers.Real)


def _told_shape(column: Column | None) -> str:
    return f"shape {column.shape[1:]}" if isinstance(column, np.ndarray) else "several shapes"


def _refused(hook: str, name: str, value: Any) -> MetricError:
    return MetricError(
        f"The metric {name!r} returned by {hook} is not one number. Received: {describe(value)}. "
        "Return a Python or NumPy number or a 0-dimensional tensor, for example the mean over the batch."
    )


def _real(name: str, value: Any) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":  # fractions and other real numbers that NumPy has no dtype for
            array = np.asarray([float(number) for number in array.ravel()]).reshape(array.shape)
    except (TypeError, ValueError, OverflowError):
        array = np.asarray("")
    if array.dtype.kind not in "biuf":
        raise MetricError(
            f"The metric {name!r} holds something that is no real number. Received: {describe(value)}. Return numbers."
        )
    return array.astype(np.float64)
