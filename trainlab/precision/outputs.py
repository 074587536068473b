"""Half-precision outputs of a model, as float32."""

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

__all__ = ["to_float32"]

_HALF = (torch.float16, torch.bfloat16)


def to_float32(value: Any) -> Any:
    """Turn half-precision tensors into float32, wherever they are nested.

    Args:
        value: a tensor, or dicts, lists, tuples, named tuples and dataclasses of them; anything else is left alone.

    Returns:
        The same structure of the same types. What holds no half-precision tensor is returned itself; what does is
        copied, so that nothing that the model keeps is changed.
    """
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple):
        return _sequence(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value)
    return value


def _mapping(value: Mapping[Any, Any]) -> Any:
    changed = _changed(dict(value))
    if not changed or not isinstance(value, MutableMapping):
        return value
    # A subclass, such as the outputs of transformers, may hold more than its items.
    made = copy.copy(value)
    for key, item in changed.items():
        made[key] = item
    return made


def _sequence(value: list[Any] | tuple[Any, ...]) -> Any:
    changed = _changed(dict(enumerate(value)))
    if not changed:
        return value
    items = [changed.get(index, item) for index, item in enumerate(value)]
    if isinstance(value, list):
        made = copy.copy(value)
        made[:] = items
        return made
    # A named tuple and a subclass of tuple are made differently.
    return value._make(items) if hasattr(value, "_make") else type(value)(items)


def _dataclass(value: Any) -> Any:
    changed = _changed({f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)})
    if not changed:
        return value
    made = copy.copy(value)
    for name, item in changed.items():
        # A frozen dataclass refuses the usual way.
        object.__setattr__(made, name, item)
    return made


def _changed(items: dict[Any, Any]) -> dict[Any, Any]:
    return {key: new for key, item in items.items() if (new := to_float32(item)) is not item}
