"""Objects that go on, after a block of code, from where they stood before it."""

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["preserved_attributes"]


@contextlib.contextmanager
def preserved_attributes(owner: Any, copied: Callable[[Any], Any] | None = None) -> Iterator[None]:
    """Let a block change copies of an object's attributes, and put the attributes back after it.

    Args:
        owner: an object with a ``__dict__``.
        copied: copies an attribute's value for the block. Default: tensors, arrays and the builtin containers are
            copied, and what is in these; of any other object the block sees the same one.
    """
    before = dict(vars(owner))
    vars(owner).update({name: (copied or _copied)(value) for name, value in before.items()})
    try:
        yield
    finally:
        vars(owner).clear()
        vars(owner).update(before)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | set):
        return value.copy()
    if isinstance(value, dict):
        same = copy.copy(value)  # keeps a Counter or a defaultdict what it is
        for key, item in value.items():
            same[key] = _copied(item)
        return same
    if isinstance(value, list | deque):
        items = copy.copy(value)
        for i, item in enumerate(value):
            items[i] = _copied(item)
        return items
    return tuple(map(_copied, value)) if type(value) is tuple else value
