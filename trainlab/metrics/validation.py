"""ValidationMetrics: the metrics of one validation, from batches or from the whole data set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainlab.errors import MetricError
from trainlab.metrics.kept import STACK_EVERY, KeptValues, host_values
from trainlab.metrics.ranks import allgather_made, check_same_names
from trainlab.metrics.reducer import Reducer
from trainlab.metrics.rules import MetricRules, Values, describe, real_column
from trainlab.metrics.window import check_names

if TYPE_CHECKING:
    from trainlab.distributed.exchange import Exchange

__all__ = ["ValidationMetrics", "check_full_dataset"]


@dataclass(frozen=True)
class _Batches:
    """The batches that were evaluated, of one rank or of all."""

    columns: Mapping[str, Values]
    weights: list[float]
    numbers: list[int]


class ValidationMetrics:
    """The metrics of the batches of one validation; tensors stay on their device until they are asked for.

    Args:
        rules: what a metric may be, what a batch weighs, and how the values are reduced.
    """

    def __init__(self, rules: MetricRules) -> None:
        self._rules = rules
        self._kept: dict[str, KeptValues] = {}
        self._weights: list[float] = []
        self._numbers: list[int] = []
        self._host: dict[str, Values] | None = None

    def __len__(self) -> int:
        return len(self._weights)

    def add(self, metrics: Mapping[str, Any], records: int, number: int | None = None) -> None:
        """Keep the metrics of one batch.

        Args:
            metrics: what ``evaluate_batch`` returned, by name; may be empty.
            records: how many records the batch had.
            number: the batch's place in the whole validation set, where the batches are dealt out to several ranks.
                Default: its place among this rank's batches.

        Raises:
            MetricError: it is no mapping, the names differ from those of the batches before, or a value is not
                what the rules allow.
        """
        if not isinstance(metrics, Mapping):
            raise _no_mapping("evaluate_batch", metrics)
        check_names("evaluate_batch", metrics, self._kept if self._weights else None)
        for name, value in metrics.items():
            self._rules.check_validation(name, value)
            if name not in self._kept:
                self._kept[name] = KeptValues(name, "evaluate_batch")
            self._kept[name].keep(value)
        self._host = None
        self._numbers.append(len(self._numbers) if number is None else number)
        self._weights.append(self._rules.weight(records))
        if len(self._weights) % STACK_EVERY == 0:
            for column in self._kept.values():
                column.stack()

    def outputs(self) -> list[dict[str, Any]]:
        """Give the metrics of each batch, on the host.

        Returns:
            The metrics by name, in order of the batches: tensors as arrays, everything else as returned.

        Raises:
            MetricError: a tensor was changed in place after it was returned.
        """
        columns = {name: host_values(column) for name, column in self._on_host().items()}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(self))]

    def result(self, reducers: Reducer | Mapping[str, Reducer], exchange: "Exchange | None" = None) -> dict[str, float]:
        """Reduce each metric to one number, in float64, in the order of the batches.

        Args:
            reducers: one for all metrics, or one for each by name.
            exchange: the ranks among which the batches were dealt out; all of them call this, also one without a batch.
                Default: this process has all batches.

        Returns:
            The numbers by name, to the last bit the same on every rank and on any number of ranks.
            ``Reducer.AVG`` weighs by records: the mean over the data set.

        Raises:
            MetricError: the reducers do not fit the metrics, there was no batch, or values cannot be reduced; or that
                is so on another rank.
        """
        if exchange is None or exchange.size == 1:
            batches = _Batches(self._on_host(), self._weights, self._numbers)
        else:
            batches = _in_order(allgather_made(exchange, self._to_send))
        if not batches.weights:
            raise MetricError(
                "There is nothing to reduce: no batch was evaluated. Received: 0 batches. "
                "Give build_validation_data_loader data."
            )
        by_name = _checked(reducers, batches.columns)
        return {
            name: self._rules.reduce(name, column, by_name[name], batches.weights)
            for name, column in batches.columns.items()
        }

    def _on_host(self) -> dict[str, Values]:
        if self._host is None:
            self._host = {name: column.on_host() for name, column in self._kept.items()}
        return self._host

    def _to_send(self) -> _Batches:
        columns = {name: real_column(name, column) for name, column in self._on_host().items()}
        return _Batches(columns, self._weights, self._numbers)


def _in_order(of_ranks: list[_Batches]) -> _Batches:
    """Put the batches of all ranks into the order that one process would have had them in."""
    having = {rank: batches for rank, batches in enumerate(of_ranks) if batches.weights}
    check_same_names("evaluate_batch", {rank: batches.columns for rank, batches in having.items()})
    order = sorted((number, rank, i) for rank, batches in having.items() for i, number in enumerate(batches.numbers))
    names = next(iter(having.values())).columns if having else ()
    return _Batches(
        {name: [having[rank].columns[name][i] for _, rank, i in order] for name in names},
        [having[rank].weights[i] for _, rank, i in order],
        [number for number, _, _ in order],
    )


def _checked(reducers: Any, names: Iterable[str]) -> Mapping[str, Reducer]:
    by_name = reducers if isinstance(reducers, Mapping) else dict.fromkeys(names, reducers)
    if by_name.keys() != set(names):
        raise MetricError(
            "evaluation_reducer must name exactly the metrics that evaluate_batch returns. "
            f"Received: reducers for {sorted(map(str, by_name))}, metrics {sorted(names)}. "
            "Name each metric once, or return one Reducer for all."
        )
    for given in by_name.values() if isinstance(reducers, Mapping) else [reducers]:
        if not isinstance(given, Reducer):
            raise MetricError(
                f"evaluation_reducer must give a Reducer, or a dict of these by metric. Received: {given!r} "
                f"(type {type(given).__name__}). Use one of {', '.join(map(str, Reducer))}."
            )
    return by_name


def check_full_dataset(result: Mapping[str, Any], rules: MetricRules) -> dict[str, Any]:
    """Accept what ``evaluate_full_dataset`` returned.

    Args:
        result: the metrics by name.
        rules: what a metric may be.

    Returns:
        The metrics as floats, or as what the rules make of them.

    Raises:
        MetricError: it is no mapping by str, or a value is not what the rules allow.
    """
    if not isinstance(result, Mapping):
        raise _no_mapping("evaluate_full_dataset", result)
    check_names("evaluate_full_dataset", result, None)
    return {name: rules.full_dataset(name, value) for name, value in result.items()}


def _no_mapping(hook: str, received: Any) -> MetricError:
    return MetricError(
        f"{hook} must return a dict of metrics by name. Received: {describe(received)}. "
        "Write: return {'accuracy': accuracy}."
    )
