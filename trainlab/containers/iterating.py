"""iterate: a progress bar around any loop."""

import operator
from collections.abc import Iterable
from typing import TypeVar

from trainlab.distributed import is_master
from trainlab.errors import InvalidTypeError
from trainlab.recording import live_terminal, with_bar

__all__ = ["iterate"]

_Item = TypeVar("_Item")


def iterate(items: Iterable[_Item], label: str = "", *, total: int | None = None) -> Iterable[_Item]:
    """Show a progress bar around a loop: on the first rank alone, and only on a terminal.

    Loops inside of loops share one row. What the loop prints appears above it.

    Args:
        items: What is looped over.
        label: What stands before the bar. Default nothing.
        total: How many items there are. Default: ``len(items)``; where there is none, items are counted.

    Returns:
        An iterator over the items that shows the bar; where there is none, ``items`` itself.

    Raises:
        InvalidTypeError: ``items`` cannot be looped over.

    Source: ``pystematic.torch.iterate``.
    """
    if not _can_be_looped_over(items):
        raise InvalidTypeError(f"iterate takes what can be looped over. Received: {items!r}. Pass range(n) to count.")
    stream = live_terminal() if is_master() else None
    if stream is None:
        return items
    return with_bar(items, label, _length(items) if total is None else total, stream)


def _can_be_looped_over(items: object) -> bool:
    return isinstance(items, Iterable) or hasattr(items, "__getitem__")


def _length(items: object) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        length = operator.length_hint(items, -1)
        return None if length < 0 else length
