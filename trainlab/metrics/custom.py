"""Custom reducers: metrics that the mean over batches cannot express."""

import abc
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from trainlab.errors import InvalidTypeError, InvalidValueError, MetricError
from trainlab.metrics.preserving import preserved_attributes
from trainlab.metrics.ranks import allgather_made
from trainlab.metrics.torchmetrics_state import MetricStates, is_torchmetric

if TYPE_CHECKING:
    from trainlab.distributed.exchange import Exchange

__all__ = ["FunctionReducer", "MetricReducer", "ReducerRegistry"]


class MetricReducer(abc.ABC):
    """A metric of your own that is collected over many batches and all ranks.

    The Trial updates it in any way it likes, from ``train_batch`` or ``evaluate_batch``; trainlab calls the
    three methods below: ``reset`` before each training window and each validation, the other two after it.
    """

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget everything collected."""

    @abc.abstractmethod
    def per_slot_reduce(self) -> Any:
        """Reduce what this rank collected.

        Returns:
            Anything that can be sent to the other ranks; small, if it can be.
        """

    @abc.abstractmethod
    def cross_slot_reduce(self, per_slot_metrics: list[Any]) -> Any:
        """Reduce the ranks' results to the metric; called on every rank.

        Args:
            per_slot_metrics: what ``per_slot_reduce`` returned on each rank, in order of the ranks.

        Returns:
            The metric if the reducer was wrapped with a name, else a dict of metrics by name.
        """


class FunctionReducer(MetricReducer):
    """A metric computed by a function from a list of all values collected.

    Args:
        function: takes the list of all values, of all ranks; returns the metric.
    """

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        self._function = function
        self._values: list[Any] = []

    def update(self, value: Any) -> None:
        """Collect one more value.

        Args:
            value: anything; of a tensor or an array a copy is kept, without its graph.
        """
        if isinstance(value, Tensor):
            value = value.detach().clone()
        elif isinstance(value, np.ndarray):
            value = value.copy()
        self._values.append(value)

    def reset(self) -> None:
        """Forget all values."""
        self._values = []

    def per_slot_reduce(self) -> list[Any]:
        """Give the values that this rank collected.

        Returns:
            The values in order.
        """
        return self._values

    def cross_slot_reduce(self, per_slot_metrics: list[list[Any]]) -> Any:
        """Call the function on the values of all ranks.

        Args:
            per_slot_metrics: the values of each rank, in order of the ranks.

        Returns:
            What the function makes of one list in which the ranks take turns: the first value of each, then the
            second of each, and so on. A rank that has no more is left out.
        """
        missing = object()
        turns = itertools.zip_longest(*per_slot_metrics, fillvalue=missing)
        return self._function([value for turn in turns for value in turn if value is not missing])


class TorchmetricsReducer(MetricReducer):
    """A metric of torchmetrics: what it accumulated on each rank is reduced as each of its states asks for.

    Its own exchange between ranks, over torch's default process group, is never used.

    Args:
        metric: a ``torchmetrics.Metric`` or ``MetricCollection``; it may be updated directly as well.
    """

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self._states = MetricStates(metric)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update the metric.

        Args:
            *args: as the metric takes them.
            **kwargs: as the metric takes them.
        """
        self.metric.update(*args, **kwargs)

    def preserved(self) -> AbstractContextManager[None]:
        """Let nothing count that the metric is given inside the block.

        Returns:
            The block's context manager.
        """
        return self._states.preserved()

    def reset(self) -> None:
        """Reset the metric."""
        self.metric.reset()

    def per_slot_reduce(self) -> dict[str, Any]:
        """Give what this rank accumulated.

        Returns:
            The metric's states.
        """
        return self._states.state_dict()

    def cross_slot_reduce(self, per_slot_metrics: list[dict[str, Any]]) -> Any:
        """Compute the metric over all ranks.

        Args:
            per_slot_metrics: the states of each rank, in order of the ranks.

        Returns:
            What the metric computes; a dict for a collection.
        """
        with self._states.of_all_ranks(per_slot_metrics):
            return self.metric.compute()


@dataclass(frozen=True)
class _Wrapped:
    reducer: MetricReducer
    name: str | None
    for_training: bool
    for_validation: bool

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.reducer, method)(*arguments)
        except Exception as error:
            raise MetricError(
                f"{method} of the custom reducer {self.told} failed: {error!r}. Mend that method of "
                f"{type(self.reducer).__name__}, or the function that was wrapped."
            ) from error

    @property
    def told(self) -> str:
        return f"{type(self.reducer).__name__} (name: {self.name!r})"


class ReducerRegistry:
    """The custom reducers of a run."""

    def __init__(self) -> None:
        self._wrapped: list[_Wrapped] = []

    def __len__(self) -> int:
        return len(self._wrapped)

    @property
    def told(self) -> list[str]:
        """What a person calls each reducer."""
        return [wrapped.told for wrapped in self._wrapped]

    def wrap(
        self,
        reducer: MetricReducer | Callable[[list[Any]], Any],
        name: str | None = None,
        for_training: bool = True,
        for_validation: bool = True,
    ) -> MetricReducer:
        """Take in a custom reducer.

        Args:
            reducer: a ``MetricReducer``, a metric or collection of torchmetrics, or a function of a list of values.
            name: the metric's name; None (default) if the reducer returns a dict of metrics by name.
            for_training: whether it is reduced with each training window. Default: True.
            for_validation: whether it is reduced with each validation. Default: True.

        Returns:
            The reducer itself; for a function an object with ``update(value)``, for torchmetrics one with the
            metric's ``update``.

        Raises:
            InvalidTypeError: ``reducer`` is neither, or ``name`` is no str.
            InvalidValueError: the reducer or its name was wrapped already.
        """
        is_class = isinstance(reducer, type) and issubclass(reducer, MetricReducer)
        if is_class or not (isinstance(reducer, MetricReducer) or callable(reducer)):
            raise InvalidTypeError(
                "A custom reducer is an instance of a MetricReducer, or a function of a list of values. "
                f"Received: {reducer!r} (type {type(reducer).__name__}). Pass MyReducer(), or a function such as max."
            )
        if name is not None and not isinstance(name, str):
            raise InvalidTypeError(
                f"The name of a custom reducer is a str or None. Received: {name!r} (type {type(name).__name__}). "
                "Pass the metric's name."
            )
        made = reducer if isinstance(reducer, MetricReducer) else _reducer_of(reducer)
        wrapped = _Wrapped(made, name, for_training, for_validation)
        self._check_new(wrapped)
        self._wrapped.append(wrapped)
        return made

    def reset(self) -> None:
        """Reset all reducers.

        Raises:
            MetricError: the ``reset`` of one of them failed.
        """
        for wrapped in self._wrapped:
            wrapped.call("reset")

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Let nothing count that the reducers are given inside the block, as a batch that only stands in for one.

        A ``MetricReducer`` gets its attributes back: tensors, arrays and containers with their content, another object
        as it then is.

        Returns:
            The block's context manager.
        """
        with contextlib.ExitStack() as stack:
            for wrapped in self._wrapped:
                stack.enter_context(_preserved(wrapped.reducer))
            yield

    def reduce(self, *, for_training: bool, exchange: "Exchange | None" = None) -> dict[str, Any]:
        """Reduce over all ranks, in one exchange.

        Args:
            for_training: True for the reducers that were wrapped for training, False for those for validation.
            exchange: the ranks, all of which call this. Default: this process is alone.

        Returns:
            The metrics by name, the same on every rank.

        Raises:
            MetricError: a method of a reducer failed, here or on another rank; a reducer with a name returned a
                dict, one without returned something else, or two of them gave the same name; or the ranks have not the
                same reducers.
        """
        chosen = [w for w in self._wrapped if (w.for_training if for_training else w.for_validation)]
        if not chosen:
            return {}

        def parts() -> list[tuple[str, Any]]:
            return [(wrapped.told, wrapped.call("per_slot_reduce")) for wrapped in chosen]

        of_ranks = [parts()] if exchange is None or exchange.size == 1 else allgather_made(exchange, parts)
        _check_same_reducers([[told for told, _ in of_rank] for of_rank in of_ranks])
        metrics: dict[str, Any] = {}
        for i, wrapped in enumerate(chosen):
            result = _by_name(wrapped, wrapped.call("cross_slot_reduce", [of_rank[i][1] for of_rank in of_ranks]))
            if twice := sorted(result.keys() & metrics.keys()):
                raise MetricError(
                    f"Two custom reducers give the same metric. Received: {twice} from {wrapped.told} again. "
                    "Give each metric a name of its own."
                )
            metrics.update(result)
        return metrics

    def _check_new(self, new: _Wrapped) -> None:
        for old in self._wrapped:
            if _core(old.reducer) is _core(new.reducer):
                raise InvalidValueError(
                    f"A custom reducer can be wrapped once. Received: {new.told}, wrapped before as {old.name!r}. "
                    "Make a second object for a second metric."
                )
            together = (old.for_training and new.for_training) or (old.for_validation and new.for_validation)
            if new.name is not None and new.name == old.name and together:
                raise InvalidValueError(
                    f"The name of a custom reducer is taken. Received: {new.name!r}, the name of {old.told} already. "
                    "Give each metric a name of its own."
                )


def _preserved(reducer: MetricReducer) -> AbstractContextManager[None]:
    return reducer.preserved() if isinstance(reducer, TorchmetricsReducer) else preserved_attributes(reducer)


def _check_same_reducers(of_ranks: list[list[str]]) -> None:
    for rank, told in enumerate(of_ranks):
        if told != of_ranks[0]:
            raise MetricError(
                f"The ranks have not wrapped the same reducers in the same order. Received: {of_ranks[0]} on rank 0, "
                f"{told} on rank {rank}. Call wrap_reducer on every rank."
            )


def _reducer_of(given: Any) -> MetricReducer:
    # A metric of torchmetrics can be called as well, with the arguments of its update.
    return TorchmetricsReducer(given) if is_torchmetric(given) else FunctionReducer(given)


def _core(reducer: MetricReducer) -> Any:
    return reducer.metric if isinstance(reducer, TorchmetricsReducer) else reducer


def _by_name(wrapped: _Wrapped, result: Any) -> dict[str, Any]:
    if wrapped.name is None:
        if isinstance(result, Mapping) and all(isinstance(name, str) for name in result):
            return dict(result)
        raise MetricError(
            f"The custom reducer {wrapped.told} was wrapped without a name and must return a dict of metrics by name. "
            f"Received: {result!r} (type {type(result).__name__}). Return a dict, or pass name= to wrap_reducer."
        )
    if isinstance(result, Mapping):
        raise MetricError(
            f"The custom reducer {wrapped.told} was wrapped with a name and must return one metric. "
            f"Received: {result!r}. Return one value, or leave name= out of wrap_reducer."
        )
    return {wrapped.name: result}
