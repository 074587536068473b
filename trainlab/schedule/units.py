"""Units in which lengths and periods of training are told."""

import bisect
import functools
import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["Batch", "Epoch", "TrainUnit"]


@functools.total_ordering
@dataclass(frozen=True, eq=False, repr=False)
class TrainUnit:
    """A period or a schedule, counted from the beginning of the run; ``Batch`` and ``Epoch`` are its kinds.

    An int is a period: due after every ``value``-th one. A container is a schedule: due after exactly
    the numbers that it holds. Units are immutable and hashable; two are equal if their kind and their content are,
    and two periods of one kind can be ordered.

    Args:
        value: an int of at least 1, or a list, tuple, set, frozenset, range or 1-dimensional integer array of such.

    Attributes:
        value: a period as int; a schedule as an ascending ``range`` if it was given as a range, else as a
            sorted tuple without duplicates.

    Raises:
        InvalidTypeError: ``value`` is a bool, a float, a string, a mapping, an iterator or holds anything but ints.
        InvalidValueError: a number is below 1, or the container is empty.
    """

    value: int | tuple[int, ...] | range

    def __init__(self, value: int | Collection[int]) -> None:
        if type(self) is TrainUnit:
            raise InvalidTypeError("TrainUnit counts nothing by itself. Use Batch or Epoch.")
        object.__setattr__(self, "value", _normalised(type(self).__name__, value))

    @property
    def is_period(self) -> bool:
        """Tell a period from a schedule.

        Returns:
            True for an int, False for a container of numbers.
        """
        return isinstance(self.value, int)

    def is_due(self, count: int) -> bool:
        """Tell whether this unit is due once so many were trained.

        Args:
            count: batches (or epochs) trained since the beginning of the run.

        Returns:
            Whether ``count`` is a multiple of the period, or in the schedule. Nothing is due at 0.
        """
        return count > 0 and self.next_due(count - 1) == count

    def next_due(self, count: int) -> int | None:
        """Find when this unit is due next.

        Args:
            count: batches (or epochs) trained since the beginning of the run, at least 0.

        Returns:
            The smallest number above ``count`` at which it is due, or None if a schedule holds none.
        """
        if isinstance(self.value, int):
            return (count // self.value + 1) * self.value
        position = bisect.bisect_right(self.value, count)
        return self.value[position] if position < len(self.value) else None

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self.value, other.value
        if isinstance(mine, int) or isinstance(theirs, int) or type(mine) is type(theirs):
            return mine == theirs
        return len(mine) == len(theirs) and all(map(operator.eq, mine, theirs))

    def __hash__(self) -> int:
        # A range and a tuple of the same numbers are equal, so that the hash may not depend on which it is.
        content = self.value if isinstance(self.value, int) else (len(self.value), self.value[0], self.value[-1])
        return hash((type(self), content))

    def __lt__(self, other: object) -> bool:
        if type(other) is not type(self) or not (isinstance(self.value, int) and isinstance(other.value, int)):
            return NotImplemented
        return self.value < other.value

    def __repr__(self) -> str:
        content = list(self.value) if isinstance(self.value, tuple) else self.value
        return f"{type(self).__name__}({content!r})"


class Batch(TrainUnit):
    """Batches trained since the beginning of the run, over all epochs.

    ``Batch(100)`` is due after every 100th batch, ``Batch([1, 3])`` after the 1st and the 3rd only.

    Args:
        value: an int of at least 1, or a container of such.

    Raises:
        InvalidTypeError: ``value`` is neither an int nor a container of ints.
        InvalidValueError: a number is below 1, or the container is empty.
    """


class Epoch(TrainUnit):
    """Finished passes over the training data since the beginning of the run.

    ``Epoch(2)`` is due at the end of every 2nd epoch, ``Epoch([1, 3])`` at the ends of the 1st and the 3rd only.

    Args:
        value: an int of at least 1, or a container of such.

    Raises:
        InvalidTypeError: ``value`` is neither an int nor a container of ints.
        InvalidValueError: a number is below 1, or the container is empty.
    """


def _normalised(unit: str, value: Any) -> int | tuple[int, ...] | range:
    if isinstance(value, range):
        ascending = value if value.step > 0 else value[::-1]
        if len(ascending):
            _number(unit, ascending[0], received=value)
        return _not_empty(unit, ascending, received=value)
    numbers = _contained(value)
    if numbers is None:
        return _number(unit, value, received=value)
    return _not_empty(
        unit, tuple(sorted({_number(unit, number, received=value) for number in numbers})), received=value
    )


def _contained(value: Any) -> Iterable[Any] | None:
    if isinstance(value, list | tuple | set | frozenset):
        return value
    # Arrays are known by their interface, so that no array package needs to be loaded here.
    if getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        numbers: list[Any] = value.tolist()
        return numbers
    return None


def _number(unit: str, number: Any, received: Any) -> int:
    try:
        if isinstance(number, bool) or str(getattr(number, "dtype", "")).endswith("bool"):
            raise TypeError
        whole = operator.index(number)
    except TypeError:
        raise InvalidTypeError(
            f"{unit} takes an int of at least 1, or a list, tuple, set, range or 1-dimensional array of such. "
            f"Received: {received!r} (type {type(received).__name__}). "
            f"Write {unit}(100) for a period or {unit}([1, 3]) for a schedule."
        ) from None
    if whole < 1:
        raise InvalidValueError(
            f"{unit} counts from 1. Received: {received!r}. Give a number of at least 1, or None where a period may be "
            "left out."
        )
    return whole


def _not_empty(unit: str, numbers: tuple[int, ...] | range, received: Any) -> tuple[int, ...] | range:
    if len(numbers) == 0:
        raise InvalidValueError(
            f"{unit} with an empty container is never due. Received: {received!r}. "
            "Give at least one number, or None where a period may be left out."
        )
    return numbers
