"""The state of a context: of every object its own, and all data; nothing is dropped without a word."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from trainlab.checkpoint import encode
from trainlab.containers.holder import Holder
from trainlab.containers.kinds import (
    DEEPEST,
    PRIMITIVES,
    generator_of,
    has_no_state,
    is_entered,
    is_object,
    joined,
    own_module,
    scheduler_class,
    trained_inside,
)
from trainlab.errors import CheckpointError, InvalidStateError, InvalidTypeError
from trainlab.optim import optimizer_state_dict

__all__ = ["SCHEDULER_CLASS", "object_state", "saved_keys", "state_of"]

# Where the state of a scheduler names its class: no attribute of a scheduler can be called so.
SCHEDULER_CLASS = "class"


def state_of(value: Any, path: str = "", depth: int = 0) -> Any:
    """Give the state of what is in a context.

    Args:
        value: a container, an object, a tuple or data.
        path: where it is, for messages.
        depth: how deep that is.

    Returns:
        Plain dicts, lists and tuples, with an ``OrderedDict`` for each object whose state is a mapping.

    Raises:
        InvalidStateError: containers are nested too deep, or contain themselves.
        InvalidTypeError: something has no state and is no data.
        CheckpointError: a checkpoint cannot hold some data.
    """
    if depth > DEEPEST:
        raise InvalidStateError(
            f"A context is nested more than {DEEPEST} deep, or contains itself. Received: {path[:100]}…. Flatten it."
        )
    if isinstance(value, Holder):
        states = {key: state_of(value._parts[key], joined(path, key), depth + 1) for key in saved_keys(value)}
        return states if isinstance(value._parts, dict) else list(states.values())
    if is_object(value):
        return object_state(value)
    if is_entered(value):
        return tuple(
            None if has_no_state(one) else state_of(one, joined(path, number), depth + 1)
            for number, one in enumerate(value)
        )
    return _data(value, path)


def saved_keys(container: Holder) -> list[Any]:
    """List the keys of the parts of a container that have a state.

    Args:
        container: the container.

    Returns:
        All keys but those of functions and classes, and of what was left out; of a list all.
    """
    if not isinstance(container._parts, dict):
        return list(container._keys())
    left_out = container._left_out
    return [key for key, value in container._parts.items() if key not in left_out and not has_no_state(value)]


def object_state(value: Any) -> Any:
    """Give the state of one object, under the user's own keys.

    Args:
        value: a module, an optimizer, a generator, or what else has ``state_dict``.

    Returns:
        Its state; a mapping as an ``OrderedDict``, and that of a scheduler with its class.
    """
    if isinstance(value, nn.Module):
        return OrderedDict(own_module(value).state_dict())
    if isinstance(value, torch.optim.Optimizer):
        return OrderedDict(optimizer_state_dict(value))
    state = (generator_of(value) or value).state_dict()
    if isinstance(value, LRScheduler) and isinstance(state, Mapping):
        return OrderedDict({SCHEDULER_CLASS: scheduler_class(value), **state})
    return OrderedDict(state) if isinstance(state, Mapping) else state


def _data(value: Any, path: str) -> Any:
    if type(value) in PRIMITIVES or isinstance(value, torch.Tensor | np.ndarray):
        return value
    if has_no_state(value):  # in a list, where it keeps its place
        return None
    try:
        encode({path: value})
    except CheckpointError as error:
        if _can_be_stored_once_registered(error):
            raise
        received = str(error).partition("Received at ")[2].partition(". Allowed")[0]
        raise InvalidTypeError(
            "The context holds what has no state and is no data that a checkpoint can hold. Received at "
            f"{received or path}. Leave it out with context.leave_out({path.partition('/')[0].partition('[')[0]!r}) if "
            "the program makes it anew at each start; otherwise give it state_dict and load_state_dict. What has a "
            "state may be in dicts, lists and tuples, and in no other containers."
        ) from None
    if (trained := trained_inside(value, path)) is not None:
        raise InvalidTypeError(
            "What needs a gradient may be in dicts, lists and tuples, and in no other containers: a load would put a "
            f"copy in its place, and an optimizer go on with the old one. Received at {trained}, in a "
            f"{type(value).__qualname__}. Put it into a dict, list or tuple, or detach it if nothing trains it."
        )
    return value


def _can_be_stored_once_registered(error: CheckpointError) -> bool:
    return "register_class" in str(error)
