"""What torchmetrics objects accumulated: their own ``state_dict`` leaves it out, unless they are made persistent."""

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trainlab.errors import CheckpointMismatchError, MetricError
from trainlab.metrics.preserving import preserved_attributes
from trainlab.metrics.torchmetrics_merge import merge_states

__all__ = ["MetricStates", "holds_torchmetrics", "is_torchmetric"]

_PLAIN = (bool, int, float, str, type(None), torch.Tensor, torch.dtype)
_CACHED = ("_computed", "_forward_cache")


def is_torchmetric(value: Any) -> bool:
    """Tell whether an object is one of torchmetrics, which is not imported for this.

    Args:
        value: anything.

    Returns:
        Whether it is a ``torchmetrics.Metric`` or ``MetricCollection``.
    """
    return isinstance(value, (*_classes("Metric"), *_classes("MetricCollection")))


def holds_torchmetrics(value: Any) -> bool:
    """Tell whether an object is a module that is, or has in it, a torchmetrics object.

    Args:
        value: anything.

    Returns:
        Whether it is.
    """
    return isinstance(value, nn.Module) and any(map(is_torchmetric, value.modules()))


class MetricStates:
    """The states of all torchmetrics objects in a module, to be saved and put back.

    Besides the states that a metric declared, its numbers of updates and plain attributes are kept that have changed
    since this object was made: some metrics count in such ones.

    Args:
        module: a metric, a collection, or a module that has some in it.
        whole: whether the module's own ``state_dict`` is to be kept too. Default: False.
    """

    def __init__(self, module: nn.Module, *, whole: bool = False) -> None:
        self._module = module
        self._whole = whole
        self._plain_before = {path: _plain(metric) for path, metric in self._metrics()}
        self._defaults_before = {path: dict(metric._defaults) for path, metric in self._metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Return the states by the metrics' places in the module; the tensors are the metrics' own."""
        state: dict[str, Any] = {
            "metrics": {path: self._state_of(path, metric) for path, metric in self._metrics()},
            "groups": {path: [one._groups, one._groups_checked] for path, one in self._all("MetricCollection")},
            "trackers": {path: len(tracker) for path, tracker in self._all("MetricTracker")},
        }
        if self._whole:
            state["module"] = self._module.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the metrics back to what ``state_dict`` returned.

        Args:
            state: it, or what a checkpoint made of it.

        Raises:
            CheckpointMismatchError: the metrics, or their states, are others.
        """
        self._resize(state["trackers"])
        metrics, groups = dict(self._metrics()), dict(self._all("MetricCollection"))
        _check_same("torchmetrics objects", state["metrics"], metrics)
        _check_same("torchmetrics collections", state["groups"], groups)
        if self._whole:
            self._module.load_state_dict(state["module"])
        for path, metric in metrics.items():
            self._load(path, metric, state["metrics"][path])
        for path, collection in groups.items():
            found, checked = state["groups"][path]
            collection._groups, collection._groups_checked = {key: list(names) for key, names in found.items()}, checked

    def merge(self, states: Sequence[Mapping[str, Any]], rank: int = 0) -> dict[str, Any]:
        """Make one state of those of all ranks that a job had, for one that goes on with another number of ranks.

        Args:
            states: what ``state_dict`` returned on each rank, or what a checkpoint made of it, in order.
            rank: the rank in the new job that is to load it. Default: 0.

        Returns:
            For rank 0 what all ranks together accumulated; for the others a state in which nothing is accumulated.
            Plain attributes are those of the first rank that accumulated anything.

        Raises:
            CheckpointMismatchError: the metrics are others, or one of them can be computed from several ranks' states
                but not go on from them.
        """
        first = states[0]
        self._resize(first["trackers"])
        metrics, groups = dict(self._metrics()), dict(self._all("MetricCollection"))
        for state in states:
            _check_same("torchmetrics objects", state["metrics"], metrics)
            _check_same("torchmetrics collections", state["groups"], groups)
        merged = {path: merge_states(one, [s["metrics"][path] for s in states]) for path, one in metrics.items()}
        for path, metric in metrics.items():
            _check_goes_on(path, metric, merged[path]["states"])
        if rank > 0:
            merged = {path: _emptied(metric, merged[path]) for path, metric in metrics.items()}
        # Of metrics that share a state only the first is updated: those that do not on every rank must not.
        agreed = {path: max((s["groups"][path] for s in states), key=_separation) for path in groups}
        return {**first, "metrics": merged, "groups": agreed}

    @contextlib.contextmanager
    def of_all_ranks(self, states: Sequence[Mapping[str, Any]]) -> Iterator[None]:
        """Let the metrics hold what all ranks accumulated, to compute it; afterwards they go on with their own.

        Meanwhile no metric talks to other ranks itself.

        Args:
            states: what ``state_dict`` returned on each rank, in order; with one rank the metrics are left as they are.

        Returns:
            The block's context manager.

        Raises:
            MetricError: the ranks have not the same metrics.
        """
        metrics = dict(self._metrics())
        for rank, state in enumerate(states):
            if state["metrics"].keys() != metrics.keys():
                raise MetricError(
                    f"The ranks have not the same torchmetrics objects. Received: {sorted(state['metrics'])} on rank "
                    f"{rank}, {sorted(metrics)} here. Make the same metrics, in the same places, on every rank."
                )
        held: list[tuple[nn.Module, dict[str, Any]]] = [(metric, {"_to_sync": False}) for metric in metrics.values()]
        if len(states) > 1:
            held = [(one, self._merged(one, [s["metrics"][path] for s in states])) for path, one in metrics.items()]
            # Every metric of a collection holds its own, whichever share one state on this rank.
            held += [(c, {"_groups": {}, "_state_is_copy": c._state_is_copy}) for _, c in self._all("MetricCollection")]
        with contextlib.ExitStack() as stack:
            for module, attributes in held:
                stack.enter_context(_attributes(module, attributes))
            yield

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Let nothing count that the metrics are given inside the block.

        Returns:
            The block's context manager.
        """
        with contextlib.ExitStack() as stack:
            for _, metric in self._metrics():
                stack.enter_context(preserved_attributes(metric, functools.partial(_copied, device=metric.device)))
            for _, collection in self._all("MetricCollection"):
                groups = {key: list(names) for key, names in collection._groups.items()}
                kept = {"_groups_checked": collection._groups_checked, "_state_is_copy": collection._state_is_copy}
                stack.enter_context(_attributes(collection, {"_groups": groups, **kept}))
            yield

    def _merged(self, metric: Any, of_ranks: list[dict[str, Any]]) -> dict[str, Any]:
        merged = merge_states(metric, of_ranks)
        borrowed = {} if metric._update_count else merged["plain"]
        attributes = {**borrowed, **merged["states"], **dict.fromkeys(_CACHED), "_update_count": merged["updates"]}
        return {"_to_sync": False, **{n: _copied(v, metric.device) for n, v in attributes.items()}}

    def _metrics(self) -> Any:
        return self._all("Metric")

    def _all(self, name: str) -> Any:
        classes = _classes(name)
        return ((path, module) for path, module in self._module.named_modules() if isinstance(module, classes))

    def _state_of(self, path: str, metric: Any) -> dict[str, Any]:
        plain_before, defaults_before = self._plain_before.get(path, {}), self._defaults_before.get(path, {})
        return {
            "states": {name: _state(getattr(metric, name)) for name in metric._defaults},
            "updates": metric._update_count,
            "plain": {n: v for n, v in _plain(metric).items() if n not in plain_before or _differ(v, plain_before[n])},
            "defaults": {n: v for n, v in metric._defaults.items() if v is not defaults_before.get(n)},
        }

    def _load(self, path: str, metric: Any, state: Mapping[str, Any]) -> None:
        _check_same(f"states of the {type(metric).__name__} {path or 'itself'!r}", state["states"], metric._defaults)
        plain = {**self._plain_before.get(path, {}), **state["plain"]}
        for name, value in {**plain, **state["states"], **dict.fromkeys(_CACHED)}.items():
            setattr(metric, name, _copied(value, metric.device))
        for name, value in state["defaults"].items():
            metric._defaults[name] = _copied(value, metric.device)
        metric._update_count = state["updates"]

    def _resize(self, lengths: Mapping[str, int]) -> None:
        """Give each tracker as many metrics as it had; it makes a further one with each increment."""
        for path, tracker in list(self._all("MetricTracker")):
            while len(tracker) > max(lengths.get(path, 1), 1):
                del tracker[-1]
            while len(tracker) < lengths.get(path, 1):
                tracker.increment()


@contextlib.contextmanager
def _attributes(module: nn.Module, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes inside the block; those that a computation changes besides stay as it leaves them."""
    before = {name: vars(module)[name] for name in attributes if name in vars(module)}
    vars(module).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            vars(module).pop(name, None)
        vars(module).update(before)


def _check_goes_on(path: str, metric: Any, merged: Mapping[str, Any]) -> None:
    for name, default in metric._defaults.items():
        stacked = metric._reductions[name] is None and isinstance(default, torch.Tensor)
        if stacked and merged[name].dim() > default.dim():
            raise CheckpointMismatchError(
                f"What several ranks accumulated in the {type(metric).__name__} {path or 'itself'!r} can be computed, "
                f"but not be gone on with in fewer or more ranks. Received: the state {name!r}, which has no "
                "dist_reduce_fx. Resume with the same number of ranks, or reset this metric before the checkpoint."
            )


def _emptied(metric: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {**metric._defaults, **state["defaults"]}
    return {"states": defaults, "updates": 0, "plain": {}, "defaults": state["defaults"]}


def _separation(groups: Sequence[Any]) -> tuple[bool, int]:
    found, checked = groups
    return checked, len(found)


def _classes(name: str) -> tuple[type, ...]:
    modules = (sys.modules.get("torchmetrics"), sys.modules.get("torchmetrics.wrappers"))
    found = (getattr(module, name, None) for module in modules)
    return tuple(one for one in found if isinstance(one, type))


def _plain(metric: Any) -> dict[str, Any]:
    left_out = (*metric._defaults, *_CACHED, "training", "_update_count")
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in vars(metric).items()
        if isinstance(value, _PLAIN) and name not in left_out
    }


def _differ(value: Any, before: Any) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor):
        return not torch.equal(value.cpu(), before.cpu())
    return type(value) is not type(before) or bool(value != before)


def _state(value: Any) -> Any:
    if isinstance(value, list):
        return [_state(item) for item in value]
    return value.detach() if isinstance(value, torch.Tensor) else value


def _copied(value: Any, device: torch.device) -> Any:
    """A copy of its own: metrics of one group share their tensors, and add to them in place."""
    if isinstance(value, list):
        return [_copied(item, device) for item in value]
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value


def _check_same(what: str, saved: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if saved.keys() != found.keys():
        raise CheckpointMismatchError(
            f"The {what} are not those of the checkpoint. In the checkpoint: {sorted(saved)}. Here: {sorted(found)}. "
            "Make the same metrics, in the same places."
        )
