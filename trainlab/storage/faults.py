"""Named instants of a write, at which a test can kill the process: nothing happens there otherwise."""

from collections.abc import Callable

__all__ = ["reached"]

hook: Callable[[str], None] | None = None


def reached(point: str) -> None:
    """Pass a named instant.

    Args:
        point: its name, such as ``manifest written``.
    """
    if hook is not None:
        hook(point)
