"""Counter: a number that is saved and restored with a context."""

from collections.abc import Mapping
from typing import Any

from trainlab.errors import CheckpointMismatchError, InvalidTypeError

__all__ = ["Counter", "checked_count"]


class Counter:
    """Counts what a training loop does.

    Args:
        count: What to begin with. Default 0.

    Attributes:
        count: How many; it can be set.

    Source: ``pystematic.Counter``.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count

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
        self.count = checked_count(state["count"])

    def __repr__(self) -> str:
        return f"Counter({self.count})"


def checked_count(count: Any) -> int:
    """Return a count, which must be an int.

    Args:
        count: It.

    Raises:
        InvalidTypeError: It is none.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise InvalidTypeError(f"A count is an int. Received: {count!r}.")
    return count
