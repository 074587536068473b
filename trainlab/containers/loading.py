"""Restoring a context: everything is compared first, so that a state that does not fit changes nothing."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from trainlab.checkpoint import match_keys
from trainlab.containers.holder import Holder
from trainlab.containers.kinds import (
    PRIMITIVES,
    Stateful,
    generator_of,
    has_no_state,
    holds_object,
    is_object,
    is_pure_data,
    joined,
    loads_by_own_code,
    optimizer_loads_by_own_code,
    own_module,
    shape_of_data,
)
from trainlab.containers.saving import saved_keys
from trainlab.errors import CheckpointMismatchError
from trainlab.optim import check_optimizer_state, load_optimizer_state, optimizer_state_dict
from trainlab.recording import Recorder

__all__ = ["load"]

# Gives what is to stand in the value's place.
_Restore = Callable[[], Any]


def load(container: Holder, state: Any) -> None:
    """Take a state back, or change nothing.

    Args:
        container: the container.
        state: what ``state_of`` gave for one like it.

    Raises:
        CheckpointMismatchError: the state does not fit; the message lists all that does not.
    """
    comparison = _Comparison()
    restore = comparison.compare(container, state, "")
    if comparison.faults:
        raise CheckpointMismatchError(
            "The saved state does not fit this context, and nothing was changed. In the saved state: "
            f"{'; '.join(comparison.faults)}. Register the same things under the same names as when it was saved, or "
            "take what you need out of load_checkpoint(...) yourself."
        )
    comparison.load_objects()
    restore()


class _Comparison:
    """What is found while a state is compared with a context, which is not changed.

    Attributes:
        faults: what does not fit.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        # Of which nobody knows what they take before they are given it.
        self._objects: list[tuple[str, Stateful, Any]] = []

    def compare(self, value: Any, saved: Any, path: str) -> _Restore:
        if isinstance(value, Holder):
            return self._container(value, saved, path)
        if isinstance(value, nn.Module):
            return self._module(value, saved, path)
        if isinstance(value, torch.optim.Optimizer):
            return self._optimizer(value, saved, path)
        if is_object(value):
            self._objects.append((path, generator_of(value) or value, saved))
            return lambda: value
        if holds_object(value):
            return self._tuple(value, saved, path)
        return self._data(value, saved, path)

    def load_objects(self) -> None:
        """Load what is not torch's own and may refuse; if one does, those before it are put back."""
        done: list[tuple[str, Stateful, Any]] = []
        # A recorder cuts its files, which nobody can undo.
        for path, one, saved in sorted(self._objects, key=lambda entry: isinstance(entry[1], Recorder)):
            before = copy.deepcopy(one.state_dict())
            done.append((path, one, before))
            try:
                one.load_state_dict(saved)
            except Exception as error:
                changed = _put_back(done)
                raise CheckpointMismatchError(
                    "The saved state does not fit this context, and "
                    f"{'nothing' if not changed else 'nothing but ' + ', '.join(changed)} was changed. {path} refuses "
                    f"its state: {type(error).__name__}: {error}"
                ) from error

    def _container(self, container: Holder, saved: Any, path: str) -> _Restore:
        kind = type(container).__name__
        if isinstance(container._parts, dict):
            if not isinstance(saved, Mapping):
                return self._refuse(path, f"{_told(saved)}, where the context has a {kind}")
            return self._named(container, saved, path)
        if not isinstance(saved, list | tuple):
            return self._refuse(path, f"{_told(saved)}, where the context has a {kind}")
        return self._listed(container, saved, path)

    def _named(self, container: Holder, saved: Mapping[Any, Any], path: str) -> _Restore:
        here = saved_keys(container)
        missing = [joined(path, key) for key in here if key not in saved]
        if missing:
            self.faults.append(f"missing: {', '.join(missing)}")
        if _grows(container, saved):
            return lambda: _replaced(container, saved)
        unknown = [joined(path, key) for key in saved if key not in here]
        if unknown:
            self.faults.append(f"unknown here: {', '.join(unknown)}")
        both = [key for key in here if key in saved]
        return self._parts(container, {key: saved[key] for key in both}, path)

    def _listed(self, container: Holder, saved: Any, path: str) -> _Restore:
        if _grows(container, saved):
            return lambda: _replaced(container, saved)
        if len(saved) != len(container._parts):
            return self._refuse(path, f"{len(saved)} elements, where the context has {len(container._parts)}")
        return self._parts(container, dict(enumerate(saved)), path)

    def _parts(self, container: Holder, saved: Mapping[Any, Any], path: str) -> _Restore:
        restores = {
            key: self.compare(container._parts[key], one, joined(path, key))
            for key, one in saved.items()
            if not has_no_state(container._parts[key])
        }

        def restore() -> Holder:
            for key, part in restores.items():
                container._parts[key] = container._taken(part())
            return container

        return restore

    def _tuple(self, value: tuple[Any, ...], saved: Any, path: str) -> _Restore:
        if not isinstance(saved, list | tuple) or len(saved) != len(value):
            return self._refuse(path, f"{_told(saved)}, where the context has a tuple of {len(value)}")
        restores = {
            number: self.compare(one, saved[number], joined(path, number))
            for number, one in enumerate(value)
            if not has_no_state(one)
        }
        return lambda: tuple(restores[n]() if n in restores else one for n, one in enumerate(value))

    def _module(self, module: nn.Module, saved: Any, path: str) -> _Restore:
        own = own_module(module)
        if not isinstance(saved, Mapping):
            return self._refuse(path, f"{_told(saved)}, where the context has a {type(own).__name__}")
        expected = own.state_dict()
        lazy = any(isinstance(one, UninitializedParameter | UninitializedBuffer) for one in expected.values())
        if lazy or set(expected) != set(saved):
            missing = [joined(path, key) for key in expected if key not in saved]
            unknown = [joined(path, key) for key in saved if key not in expected]
            self.faults += [f"missing: {', '.join(missing)}"] if missing else []
            self.faults += [f"unknown here: {', '.join(unknown)}"] if unknown else []
        else:
            tensors = {key for key, one in expected.items() if isinstance(one, torch.Tensor)}
            self._try(
                path,
                lambda: match_keys(
                    {key: expected[key] for key in tensors},
                    {key: one for key, one in saved.items() if key in tensors and isinstance(one, torch.Tensor)},
                    f"the module {path!r}",
                ),
            )

        if loads_by_own_code(own):
            self._objects.append((path, own, saved))
            return lambda: module

        def restore() -> nn.Module:
            own.load_state_dict(saved)
            return module

        return restore

    def _optimizer(self, optimizer: torch.optim.Optimizer, saved: Any, path: str) -> _Restore:
        if not isinstance(saved, Mapping):
            return self._refuse(path, f"{_told(saved)}, where the context has a {type(optimizer).__name__}")
        self._try(path, lambda: check_optimizer_state(optimizer, saved))
        if optimizer_loads_by_own_code(optimizer):
            self._objects.append((path, _OptimizerState(optimizer), saved))
            return lambda: optimizer

        def restore() -> torch.optim.Optimizer:
            load_optimizer_state(optimizer, saved)
            return optimizer

        return restore

    def _data(self, value: Any, saved: Any, path: str) -> _Restore:
        is_other_kind = type(saved) is not type(value) and type(saved) in (dict, list, OrderedDict)
        if is_other_kind or not _may_replace(value, saved):
            return self._refuse(path, f"{_told(saved)}, where the context has {_told(value)}")
        is_trained = isinstance(value, torch.Tensor) and (isinstance(value, nn.Parameter) or value.requires_grad)
        if is_trained and not _is_alike(value, saved):
            return self._refuse(path, f"{_told(saved)}, where the context has {_told(value)}")
        return lambda: _restored(value, saved)

    def _try(self, path: str, check: Callable[[], None]) -> None:
        try:
            check()
        except CheckpointMismatchError as error:
            self.faults.append(f"{path}: {str(error).rstrip('.')}")

    def _refuse(self, path: str, what: str) -> _Restore:
        self.faults.append(f"{path or 'the top'} is {what}")
        return lambda: None


class _OptimizerState:
    """An optimizer whose state goes through trainlab, so that every tensor keeps its dtype."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return optimizer_state_dict(self._optimizer)

    def load_state_dict(self, state: Any) -> None:
        load_optimizer_state(self._optimizer, state)


def _put_back(done: list[tuple[str, Stateful, Any]]) -> list[str]:
    """Give objects back the states that they had; return the paths of those that do not take them."""
    changed = []
    for path, one, before in reversed(done):
        try:
            one.load_state_dict(before)
        except Exception:  # the first error is what a person must see, and it names this one
            changed.append(path)
    return changed


def _grows(container: Holder, saved: Any) -> bool:
    """Whether a container is data alone, as a list of losses is, so that it becomes what was saved."""
    return container._grows and _is_data(container) and all(map(is_pure_data, _values(saved)))


def _values(saved: Any) -> Any:
    return saved.values() if isinstance(saved, Mapping) else saved


def _is_data(value: Any) -> bool:
    if isinstance(value, Holder):
        return value._grows and all(_is_data(value._parts[key]) for key in value._keys())
    if isinstance(value, torch.Tensor) and value.requires_grad:
        return False
    return not (is_object(value) or holds_object(value) or has_no_state(value))


def _replaced(container: Holder, saved: Any) -> Holder:
    """Put what was saved in the place of all; tensors stay where those under the same names were."""
    if isinstance(saved, Mapping):
        container._replace({key: _restored(container._parts.get(key), one) for key, one in saved.items()})
    else:
        here = [*container._parts, *[None] * len(saved)]
        container._replace([_restored(before, one) for before, one in zip(here, saved, strict=False)])
    return container


def _restored(value: Any, saved: Any) -> Any:
    """What is set: a copy, so that the context shares nothing with the state."""
    if type(saved) in PRIMITIVES:
        return saved
    if not (isinstance(saved, torch.Tensor) and isinstance(value, torch.Tensor)):
        return copy.deepcopy(saved)
    if (saved.shape, saved.dtype, saved.layout) == (value.shape, value.dtype, value.layout) and not _overlaps(value):
        with torch.no_grad():  # in place: an optimizer may have it
            value.copy_(saved)
        return value
    return saved.detach().to(value.device, copy=True)


def _may_replace(value: Any, saved: Any) -> bool:
    """Whether both are data of one kind and shape, or at least one has none, as what was not set yet."""
    one, other = shape_of_data(value), shape_of_data(saved)
    return one is None or other is None or one == other


def _is_alike(value: torch.Tensor, saved: Any) -> bool:
    return isinstance(saved, torch.Tensor) and (saved.shape, saved.dtype) == (value.shape, value.dtype)


def _overlaps(tensor: torch.Tensor) -> bool:
    return tensor.layout is not torch.strided or any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and {value.dtype}"
    return f"a {type(value).__name__}"
