"""What may be put into a context: containers, objects with a state of their own, data, and what has no state."""

import dataclasses
import enum
import functools
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Set
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from trainlab.containers.holder import Holder
from trainlab.parallel import users_module

__all__ = [
    "DEEPEST",
    "PRIMITIVES",
    "Generator",
    "Stateful",
    "generator_of",
    "has_no_state",
    "holds_object",
    "is_entered",
    "is_object",
    "is_pure_data",
    "is_trained",
    "joined",
    "loads_by_own_code",
    "optimizer_loads_by_own_code",
    "own_module",
    "scheduler_class",
    "shape_of_data",
    "trained_inside",
]

DEEPEST = 100
PRIMITIVES = (bool, int, float, complex, str, bytes, type(None))
_WITHOUT_STATE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    np.ufunc,
    type,
    types.GenericAlias,
)
# Of these any subclass is the same kind of data: a torch.Size is a tuple.
_KINDS = (str, bytes, tuple, Set, PurePath)


class Stateful(Protocol):
    """An object that gives its state and takes it back."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take a state back."""


class Generator:
    """A random generator as an object with a state.

    Args:
        read: gives its state, as data.
        write: takes it back.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        self.state_dict, self.load_state_dict = read, write


def generator_of(value: Any) -> Generator | None:
    """Give a random generator of torch's, numpy's or Python's as an object with a state; None for all else.

    Args:
        value: anything; the modules ``random``, ``numpy.random`` and ``torch.random`` are the generators that they use.
    """
    if value is random:
        return Generator(random.getstate, random.setstate)
    if value is torch.random:
        return Generator(torch.random.get_rng_state, torch.random.set_rng_state)
    if value is np.random or isinstance(value, np.random.RandomState):
        return Generator(lambda: value.get_state(legacy=False), value.set_state)
    if isinstance(value, torch.Generator):
        return Generator(value.get_state, value.set_state)
    if isinstance(value, random.Random):
        return Generator(value.getstate, value.setstate)
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        return Generator(lambda: bits.state, lambda state: setattr(bits, "state", state))
    return None


def is_object(value: Any) -> bool:
    """Tell whether a value has a state of its own: ``state_dict`` and ``load_state_dict``, or a generator's.

    Args:
        value: anything.
    """
    if isinstance(value, type):
        return False
    has_state = callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
    return has_state or generator_of(value) is not None


def has_no_state(value: Any) -> bool:
    """Tell whether a value is code alone: a function, a method, a class, a module of Python's.

    Args:
        value: anything.
    """
    return isinstance(value, _WITHOUT_STATE) and generator_of(value) is None


def is_trained(value: Any) -> bool:
    """Tell whether a value is a tensor that an optimizer may train, so that it must stay the object that it is.

    Args:
        value: anything.
    """
    return isinstance(value, nn.Parameter) or (
        isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf
    )


def holds_object(value: Any) -> bool:
    """Tell whether a dict, list or tuple holds, however deep, what is more than data.

    Args:
        value: anything.
    """
    if type(value) in (dict, OrderedDict):
        return any(map(_is_more_than_data, value.values()))
    return type(value) in (list, tuple) and any(map(_is_more_than_data, value))


def _is_more_than_data(value: Any) -> bool:
    is_kept = isinstance(value, Holder) or is_object(value) or has_no_state(value) or is_trained(value)
    return is_kept or holds_object(value)


def is_entered(value: Any) -> bool:
    """Tell whether a value is a tuple that holds what is more than data: it is gone into.

    Args:
        value: anything.
    """
    return type(value) is tuple and holds_object(value)


def trained_inside(value: Any, path: str) -> str | None:
    """Find a tensor that an optimizer may train in a piece of data.

    Args:
        value: data.
        path: where it is.

    Returns:
        The path of the first one; None if there is none.
    """
    if is_trained(value):
        return path
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple | deque):
        parts = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    found = (trained_inside(part, joined(path, key)) for key, part in parts)
    return next((one for one in found if one is not None), None)


def is_pure_data(saved: Any) -> bool:
    """Tell whether a saved list or dict is data alone: the state of an object is an ``OrderedDict``.

    Args:
        saved: a part of a context's state.
    """
    if type(saved) is dict:
        return all(map(is_pure_data, saved.values()))
    if type(saved) in (list, tuple):
        return all(map(is_pure_data, saved))
    return type(saved) is not OrderedDict


def own_module(module: nn.Module) -> nn.Module:
    """Give the user's own module of one that DDP or ``torch.compile`` has wrapped, in whatever order.

    Args:
        module: any module.

    Returns:
        The module whose state dict has the user's own keys.
    """
    while True:
        wraps = isinstance(module, DistributedDataParallel | DataParallel)
        inner: nn.Module = module.module if wraps else users_module(module)  # type: ignore[assignment]
        if inner is module:
            return module
        module = inner


def loads_by_own_code(module: nn.Module) -> bool:
    """Tell whether a module may refuse a state whose keys and shapes fit: it, or one in it, has code of its own for it.

    Args:
        module: any module.
    """
    return any(
        one._load_state_dict_pre_hooks
        or one._load_state_dict_post_hooks
        or type(one).get_extra_state is not nn.Module.get_extra_state
        or type(one).set_extra_state is not nn.Module.set_extra_state
        or type(one).load_state_dict is not nn.Module.load_state_dict
        or not type(one)._load_from_state_dict.__module__.startswith("torch.")
        for one in module.modules()
    )


def optimizer_loads_by_own_code(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer may refuse a state that fits: it has code of its own for it.

    Args:
        optimizer: any optimizer.
    """
    return bool(
        optimizer._optimizer_load_state_dict_pre_hooks
        or optimizer._optimizer_load_state_dict_post_hooks
        or not type(optimizer).load_state_dict.__module__.startswith("torch.")
        or not type(optimizer).__setstate__.__module__.startswith("torch.")
    )


def scheduler_class(scheduler: LRScheduler) -> str:
    """Name the class of a scheduler, and those of the schedulers that it is made of.

    Args:
        scheduler: any scheduler of torch's.

    Returns:
        Such as ``StepLR`` or ``SequentialLR(LinearLR, StepLR)``.
    """
    inner = ", ".join(map(scheduler_class, getattr(scheduler, "_schedulers", ())))
    return f"{type(scheduler).__qualname__}({inner})" if inner else type(scheduler).__qualname__


def shape_of_data(value: Any) -> Any:
    """Give the kind of a piece of data, with the shape of a tensor or an array.

    Args:
        value: any data.

    Returns:
        What is equal for two pieces of data of which one may take the place of the other.
    """
    if isinstance(value, torch.Tensor):
        return "tensor", tuple(value.shape)
    if isinstance(value, np.ndarray):
        return "array", value.shape
    if isinstance(value, enum.Enum):
        return type(value)
    if isinstance(value, bool | int | float | complex | np.number | np.bool_):
        return "number"
    return next((kind for kind in _KINDS if isinstance(value, kind)), type(value))


def joined(path: str, key: Any) -> str:
    """The path of what is in a container.

    Args:
        path: of the container; "" at the top.
        key: in it; an int of a list or tuple.

    Returns:
        Such as ``models/encoder`` or ``losses[3]``.
    """
    if type(key) is int:
        return f"{path}[{key}]"
    return f"{path}/{key}" if path else str(key)
