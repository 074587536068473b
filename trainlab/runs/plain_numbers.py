"""Numbers of whatever library, as a run's record holds them. No torch."""

import contextlib
import math
import numbers
from collections.abc import Mapping
from typing import Any

__all__ = ["plain_number", "plain_numbers", "standard_json"]

# Of more bits a number is no float any more, and of many more Python does not write it in decimal digits.
_MOST_BITS = 1024


def standard_json(value: Any) -> Any:
    """Give data as every reader of JSON takes it: numbers that are not finite, or huge, become texts.

    Args:
        value: nested mappings, lists and scalars.

    Returns:
        New dicts and lists, with "NaN", "Infinity", "-Infinity", and huge whole numbers in hexadecimal digits.
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _MOST_BITS:
        return hex(value)
    if isinstance(value, Mapping):
        return {standard_json(key): standard_json(inner) for key, inner in value.items()}
    return [standard_json(item) for item in value] if isinstance(value, list | tuple) else value


def plain_numbers(values: Mapping[Any, Any]) -> dict[str, int | float]:
    """Give the numbers among some values.

    Args:
        values: by name.

    Returns:
        Those that are numbers, as Python's.
    """
    return {str(name): number for name, value in values.items() if (number := plain_number(value)) is not None}


def plain_number(value: Any) -> int | float | None:
    """Give a number of Python's, numpy's or torch's as one of Python's.

    Args:
        value: anything; an array or a tensor with one element is a number.

    Returns:
        It; None if it is none, or a truth value.
    """
    if hasattr(value, "item") and not isinstance(value, type):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # of more than one element
            value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)
