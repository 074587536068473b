"""Counter: a number that is saved and restored with a context."""

import operator
from collections.abc import Mapping
from typing import Any

from trainlab.errors import CheckpointMismatchError, InvalidTypeError

__all__ = ["Counter", "checked_count"]


class Counter:
    """Counts what a training loop does.

    Args:
        count: What to begin with. Default 0.

    Raises:
        InvalidTypeError: It is no int.

    Source: ``pystematic.Counter``.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count

    @property
    def count(self) -> int:
        """How many; it can be set.

        Raises:
            InvalidTypeError: What it is set to is no int.
        """
        return self._count

    @count.setter
    def count(self, count: int) -> None:
        self._count = checked_count(count)

    def step(self) -> None:
        """Count one more."""
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"count": n}``."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a count back.

        Args:
            state: What ``state_dict`` gave.

        Raises:
            CheckpointMismatchError: It is no such state.
            InvalidTypeError: The count is no int.
        """
        if not isinstance(state, Mapping) or set(state) != {"count"}:
            raise CheckpointMismatchError(f"The state of a Counter is {{'count': n}}. Received: {state!r:.200}.")
        self.count = state["count"]

    def __repr__(self) -> str:
        return f"Counter({self.count})"


def checked_count(count: Any) -> int:
    """Return a count as Python's int.

    Args:
        count: An int of Python's, numpy's or torch's.

    Raises:
        InvalidTypeError: It is none.
    """
    try:
        if not isinstance(count, bool):
            return operator.index(count)
    except TypeError:
        pass
    raise InvalidTypeError(f"A count is an int. Received: {count!r}.")
