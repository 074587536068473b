"""RunningMetrics: the training metrics since the last report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trainlab.errors import MetricError
from trainlab.metrics.kept import STACK_EVERY, KeptValues, host_values
from trainlab.metrics.rules import MetricRules, describe

__all__ = ["RunningMetrics", "Window", "check_names"]


@dataclass(frozen=True)
class Window:
    """The training metrics of one window, on the host.

    Attributes:
        batch_metrics: the metrics of each batch by name, in order: tensors as arrays of their own shape (float32
            where NumPy does not have the dtype), everything else as returned. Empty if it was not asked for.
        averages: one number by name.
        non_finite: by name, for metrics with a NaN or an infinity only: ``batch_idx`` of the first and the last batch
            that had one.
    """

    batch_metrics: list[dict[str, Any]]
    averages: dict[str, float | None]
    non_finite: dict[str, tuple[int, int]]


class RunningMetrics:
    """The training metrics since the last report; tensors stay on their device.

    Args:
        rules: what a metric may be, and how it is averaged.
    """

    def __init__(self, rules: MetricRules) -> None:
        self._rules = rules
        self._check = rules.check_training
        self._kept: dict[str, KeptValues] = {}
        self._batches = 0

    def __len__(self) -> int:
        return self._batches

    def add(self, metrics: Tensor | Mapping[str, Any]) -> None:
        """Keep the metrics of one batch: nothing is copied to the host, nothing waits for the device.

        Args:
            metrics: what ``train_batch`` returned: values by name, or one tensor, which is then ``{"loss": tensor}``.

        Raises:
            MetricError: it is neither, the names differ from those of the batches before, or a value is not
                what the rules allow.
        """
        if type(metrics) is not dict:
            metrics = _as_dict(metrics)
        kept = self._kept
        if metrics.keys() != kept.keys():
            self._open(metrics)
        for name, value in metrics.items():
            self._check(name, value)
            column = kept[name]
            if isinstance(value, Tensor) and not value.is_inference():
                # The same as column.keep(value), without the call: this runs for every batch.
                if value.requires_grad:
                    value = value.detach()
                column.values.append(value)
                column.versions.append(value._version)
            else:
                column.keep(value)
        self._batches += 1
        if self._batches % STACK_EVERY == 0:
            for column in kept.values():
                column.stack()

    def collect(self, first_batch: int, want_batches: bool = True) -> Window:
        """Bring the metrics to the host and start a new window.

        Args:
            first_batch: ``batch_idx`` of the first batch of this window.
            want_batches: whether ``batch_metrics`` is to be filled. Default: True.

        Returns:
            The window's metrics.

        Raises:
            MetricError: a tensor was changed in place after it was returned, or values cannot be averaged.
        """
        values = {name: column.on_host() for name, column in self._kept.items()}
        batches = self._batches
        self._kept, self._batches = {}, 0
        by_batch: list[dict[str, Any]] = []
        if want_batches:
            columns = {name: host_values(column) for name, column in values.items()}
            by_batch = [{name: column[i] for name, column in columns.items()} for i in range(batches)]
        averages = {name: self._rules.average(name, column) for name, column in values.items()}
        # An average is finite exactly if all values are.
        found = {name: _non_finite(values[name]) for name, value in averages.items() if not _is_finite(value)}
        non_finite = {
            name: (first_batch + int(where[0]), first_batch + int(where[-1]))
            for name, where in found.items()
            if len(where)
        }
        return Window(by_batch, averages, non_finite)

    def _open(self, metrics: dict[str, Any]) -> None:
        check_names("train_batch", metrics, self._kept if self._batches else None)
        self._kept.update((name, KeptValues(name, "train_batch")) for name in metrics)


def check_names(hook: str, metrics: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    """Refuse names that are no text, or not those of the batches before.

    Args:
        hook: the user's method that returned the metrics.
        metrics: its metrics by name.
        before: the metrics of the batches before by name, or None for the first batch.

    Raises:
        MetricError: naming what is wrong.
    """
    if wrong := [name for name in metrics if not isinstance(name, str)]:
        raise MetricError(
            f"Names of metrics must be str. Received: {wrong!r} from {hook}. Return a dict such as {{'loss': loss}}."
        )
    if before is None or metrics.keys() == before.keys():
        return
    raise MetricError(
        f"{hook} must return the same names for all batches between two reports, and in one validation. "
        f"Received: {sorted(metrics)}, before it {sorted(before)}. Return every metric each time; "
        f"differing: {sorted(metrics.keys() ^ before.keys())}."
    )


def _as_dict(metrics: Any) -> dict[str, Any]:
    if isinstance(metrics, Tensor):
        return {"loss": metrics}
    if isinstance(metrics, Mapping):
        return dict(metrics)
    raise MetricError(
        "train_batch must return a dict of metrics by name, or the loss as one tensor. "
        f"Received: {describe(metrics)}. Write: return {{'loss': loss}}."
    )


def _is_finite(average: float | None) -> bool:
    return average is not None and math.isfinite(average)


def _non_finite(values: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    if isinstance(values, np.ndarray):
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    else:
        bad = np.asarray([_has_non_finite(value) for value in values], dtype=bool)
    return np.flatnonzero(bad)


def _has_non_finite(value: Any) -> bool:
    if not isinstance(value, float | np.ndarray | np.generic):
        return False  # an integer is finite, and other things are no numbers
    array = np.asarray(value)
    return array.dtype.kind in "fc" and not bool(np.isfinite(array).all())
