"""Numbers of whatever library, as a run's record holds them. No torch."""

import contextlib
import numbers
from collections.abc import Mapping
from typing import Any

__all__ = ["plain_number", "plain_numbers"]


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
