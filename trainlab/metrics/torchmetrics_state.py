"""What torchmetrics objects accumulated: their own ``state_dict`` leaves it out, unless they are made persistent."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainlab.errors import CheckpointMismatchError

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
