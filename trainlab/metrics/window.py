"""RunningMetrics: the training metrics since the last report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trainlab.errors import MetricError
from trainlab.metrics.kept import STACK_EVERY, KeptValues, host_values
from trainlab.metrics.ranks import allgather_made, check_same_names
from trainlab.metrics.rules import Column, MetricRules, Values, describe

if TYPE_CHECKING:
    from trainlab.distributed.exchange import Exchange

__all__ = ["RunningMetrics", "Window", "check_names"]


@dataclass(frozen=True)
class Window:
    """The training metrics of one window, on the host.

    Attributes:
        batch_metrics: the metrics of each batch of this rank by name, in order: tensors as arrays of their own shape
            (float32 where NumPy does not have the dtype), everything else as returned. Empty if it was not asked for.
        averages: one number by name, over all ranks.
        non_finite: by name, for metrics with a NaN or an infinity only: ``batch_idx`` of the first and the last batch
            that had one, on any rank.
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
        self._records: list[int] = []

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

    def note_records(self, local_records: int) -> None:
        """Note how many records this rank's part of a batch had; called for each batch where there are several ranks.

        Args:
            local_records: the number; 0 for a stand-in, whose metrics are left out. In each batch at least one rank
                has records.
        """
        self._records.append(local_records)

    def collect(self, first_batch: int, want_batches: bool = True, exchange: "Exchange | None" = None) -> Window:
        """Bring the metrics to the host and start a new window.

        Args:
            first_batch: ``batch_idx`` of the first batch of this window.
            want_batches: whether ``batch_metrics`` is to be filled. Default: True.
            exchange: the ranks that trained these batches together; all of them call this. Each batch's metrics are
                first averaged over the ranks, weighted by records. Default: this process trained them alone.

        Returns:
            The window's metrics; the averages are to the last bit the same on every rank.

        Raises:
            MetricError: a tensor was changed in place after it was returned, or values cannot be averaged; or that is
                so on another rank, or the ranks have not the same metrics.
        """
        kept, batches, records = self._kept, self._batches, self._records
        self._kept, self._batches, self._records = {}, 0, []
        values: Mapping[str, Values]
        if exchange is None or exchange.size == 1:
            values = own = _on_host(kept)
        else:
            own, values = self._over_ranks(kept, batches, records, exchange)
        by_batch: list[dict[str, Any]] = []
        if want_batches:
            columns = {name: host_values(column) for name, column in own.items()}
            having = [i for i in range(batches) if not records or records[i]]
            by_batch = [{name: column[i] for name, column in columns.items()} for i in having]
        averages = {name: self._rules.average(name, column) for name, column in values.items()}
        # An average is finite exactly if all values are.
        found = {name: _non_finite(values[name]) for name, value in averages.items() if not _is_finite(value)}
        non_finite = {
            name: (first_batch + int(where[0]), first_batch + int(where[-1]))
            for name, where in found.items()
            if len(where)
        }
        return Window(by_batch, averages, non_finite)

    def _over_ranks(
        self, kept: dict[str, KeptValues], batches: int, records: list[int], exchange: "Exchange"
    ) -> tuple[dict[str, Values], dict[str, Values]]:
        """Average each batch over the ranks.

        Returns:
            The host values of this rank, and those of all.
        """
        own: dict[str, Values] = {}

        def part() -> tuple[dict[str, Column | None], list[int]]:
            own.update(_on_host(kept))
            return {name: self._rules.to_send(name, column) for name, column in own.items()}, records

        of_ranks = allgather_made(exchange, part)
        check_same_names("train_batch", {rank: columns for rank, (columns, _) in enumerate(of_ranks)})
        shares = self._shares([noted for _, noted in of_ranks], batches)
        names = of_ranks[0][0]
        return own, {n: self._rules.over_ranks(n, [columns[n] for columns, _ in of_ranks], shares) for n in names}

    def _shares(self, records: list[list[int]], batches: int) -> npt.NDArray[np.float64]:
        if any(len(noted) != batches for noted in records):
            raise MetricError(
                "The ranks have not trained the same number of batches since the last report. "
                f"Received: {[len(noted) for noted in records]} batches, by rank."
            )
        weigh = self._rules.weight
        weights = np.array([[weigh(count) if count else 0.0 for count in noted] for noted in records], dtype=np.float64)
        shares: npt.NDArray[np.float64] = weights / weights.sum(axis=0)
        return shares

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


def _on_host(kept: Mapping[str, KeptValues]) -> dict[str, Values]:
    return {name: column.on_host() for name, column in kept.items()}


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


def _non_finite(values: Values) -> npt.NDArray[np.intp]:
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
