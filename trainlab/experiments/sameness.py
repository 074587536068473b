"""Whether two values are the same, as far as a run can tell."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["is_same"]


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two values are of one type and equal.

    A whole number may be a float. Of numbers that are none each is the same, and so are objects that do not say what
    they equal but have the same attributes.

    Args:
        one: a value.
        other: another.

    Returns:
        True if so.
    """
    if one is other:
        return True
    if {type(one), type(other)} == {int, float}:
        return bool(one == other)  # a default may be 1 where the type makes 1.0 of it
    if type(one) is not type(other):
        return False
    if isinstance(one, BaseModel):
        return is_same(one.__dict__, other.__dict__) and is_same(one.__pydantic_extra__, other.__pydantic_extra__)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(is_same(inner, other[key]) for key, inner in one.items())
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    equals: Any = type(one).__eq__
    if equals is not object.__eq__ or callable(one) or not hasattr(one, "__dict__"):
        return _is_equal(one, other)
    return is_same(vars(one), vars(other))


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # as of arrays, which compare by items
        return repr(one) == repr(other)
