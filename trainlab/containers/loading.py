"""Restoring a context: everything is compared first, so that a state that does not fit changes nothing."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim.lr_scheduler import LRScheduler

from trainlab.checkpoint import match_keys
from trainlab.containers.holder import Holder
from trainlab.containers.kinds import (
    PRIMITIVES,
    Stateful,
    generator_of,
    has_no_state,
    is_entered,
    is_object,
    is_pure_data,
    is_trained,
    joined,
    loads_by_own_code,
    optimizer_loads_by_own_code,
    own_module,
    scheduler_class,
    shape_of_data,
    trained_inside,
)
from trainlab.containers.saving import SCHEDULER_CLASS, saved_keys
from trainlab.errors import CheckpointMismatchError, InvalidStateError
from trainlab.optim import check_optimizer_state, load_optimizer_state, optimizer_state_dict
from trainlab.recording import Recorder

__all__ = ["load"]

# Gives what is to stand in the value's place.
_Restore = Callable[[], Any]
# What tells how far a scheduler of torch's has come; its other entries are settings, which come and go with versions.
_PROGRESS = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i", "_schedulers")


def load(container: Holder, state: Any) -> None:
    """Take a state back, or change nothing.

    Args:
        container: the container.
        state: what ``state_of`` gave for one like it.

    Raises:
        CheckpointMismatchError: the state does not fit; the message lists all that does not.
        InvalidStateError: the container contains itself.
    """
    comparison = _Comparison()
    try:
        restore = comparison.compare(container, state, "")
    except RecursionError:
        raise InvalidStateError("A context is nested too deep, or contains itself. Flatten it.") from None
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
            return self._object(value, saved, path)
        if is_entered(value):
            return self._tuple(value, saved, path)
        return self._data(value, saved, path)

    def load_objects(self) -> None:
        """Load what is not torch's own and may refuse; if one does, those before it are put back."""
        before = [_state_before(path, one) for path, one, _ in self._objects]
        done: list[tuple[str, Stateful, Any]] = []
        # A recorder cuts its files, which nobody can undo.
        entries = zip(self._objects, before, strict=True)
        for (path, one, saved), state in sorted(entries, key=lambda entry: isinstance(entry[0][1], Recorder)):
            done.append((path, one, state))
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
        if saved is None and path and _is_data(container):
            return lambda: None
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
            for key in here:
                if key in saved and isinstance(container._parts[key], Holder):
                    self.compare(container._parts[key], saved[key], joined(path, key))
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
        missing = [joined(path, key) for key in expected if key not in saved]
        unknown = [joined(path, key) for key in saved if key not in expected]
        self.faults += [f"missing: {', '.join(missing)}"] if missing else []
        self.faults += [f"unknown here: {', '.join(unknown)}"] if unknown else []
        tensors = {key: one for key, one in expected.items() if key in saved and _has_shape(one)}
        found = {key: saved[key] for key in tensors if isinstance(saved[key], torch.Tensor)}
        self._try(path, lambda: match_keys(tensors, found, f"the module {path!r}"))
        for key, one in found.items():
            if tensors[key].is_meta or one.is_meta or one.layout != tensors[key].layout:
                self._refuse_place(joined(path, key), tensors[key], one)

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

    def _object(self, value: Any, saved: Any, path: str) -> _Restore:
        if isinstance(value, LRScheduler) and isinstance(saved, Mapping):
            here, there = scheduler_class(value), saved.get(SCHEDULER_CLASS)
            if there != here:
                told = f"the state of a {there}" if there else "no state of a scheduler"
                return self._refuse(path, f"{told}, where the context has a {here}")
            live = value.state_dict()
            if missing := [joined(path, key) for key in _PROGRESS if key in live and key not in saved]:
                self.faults.append(f"missing: {', '.join(missing)}")
            saved = {key: one for key, one in saved.items() if key != SCHEDULER_CLASS}
        if isinstance(value, torch.amp.GradScaler) and saved and not value.is_enabled():
            return self._refuse(path, "the state of an enabled scaler, where the context has a disabled one")
        self._objects.append((path, generator_of(value) or value, saved))
        return lambda: value

    def _data(self, value: Any, saved: Any, path: str) -> _Restore:
        if value is None and not is_pure_data(saved):
            return self._refuse(path, "the state of an object, or holds one, where the context has None")
        if not _may_replace(value, saved) or (is_trained(value) and not _is_alike(value, saved)):
            return self._refuse(path, f"{_told(saved)}, where the context has {_told(value)}")
        if isinstance(value, torch.Tensor) and value.is_meta and saved is not None:
            self._refuse_place(path, value, saved)
        if not is_trained(value) and (trained := trained_inside(value, path)) is not None:
            self.faults.append(
                f"{trained} needs a gradient, and is in a {type(value).__name__}, which is not gone into"
            )
        return lambda: _restored(value, saved)

    def _try(self, path: str, check: Callable[[], None]) -> None:
        try:
            check()
        except CheckpointMismatchError as error:
            self.faults.append(f"{path}: {str(error).rstrip('.')}")

    def _refuse_place(self, path: str, here: torch.Tensor, saved: torch.Tensor) -> None:
        if here.is_meta:
            self.faults.append(f"{path} is on the meta device here, where nothing can be loaded: call to_empty first")
        else:
            place = "on the meta device" if saved.is_meta else f"of layout {saved.layout}"
            self.faults.append(f"{path} is a tensor {place}, where the context has one of layout {here.layout}")

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


def _state_before(path: str, one: Stateful) -> Any:
    """The state that an object is given back if another one refuses its own."""
    try:
        return copy.deepcopy(one.state_dict())
    except Exception as error:
        raise CheckpointMismatchError(
            f"Nothing was loaded: {path} does not give the state that it has now, which it would be given back if "
            f"another object refused its own: {type(error).__name__}: {error}. Let its state_dict() give data and "
            "detached tensors at any time."
        ) from error


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
    return container._grows and _is_data(container) and is_pure_data(saved)


def _is_data(value: Any) -> bool:
    if isinstance(value, Holder):
        return value._grows and all(_is_data(value._parts[key]) for key in value._keys())
    if isinstance(value, torch.Tensor) and value.is_meta:
        return False
    return not (is_object(value) or has_no_state(value) or is_entered(value) or trained_inside(value, "") is not None)


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
    if _is_alike(value, saved):
        with torch.no_grad():  # in place: an optimizer may have it
            value.copy_(saved)
        return value
    return saved.detach().to(value.device, copy=True)


def _may_replace(value: Any, saved: Any) -> bool:
    """Whether both are data of one kind and shape, or one of them is None, as what was not set yet."""
    return value is None or saved is None or shape_of_data(value) == shape_of_data(saved)


def _is_alike(value: torch.Tensor, saved: Any) -> bool:
    """Whether a tensor can be filled in place."""
    is_alike = isinstance(saved, torch.Tensor) and (saved.shape, saved.dtype) == (value.shape, value.dtype)
    return is_alike and saved.layout == value.layout and not _overlaps(value)


def _has_shape(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, UninitializedParameter | UninitializedBuffer)


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
