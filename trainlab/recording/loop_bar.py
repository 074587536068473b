"""A progress bar for any loop; loops inside of loops share one row."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

from trainlab.recording.line import SEPARATOR
from trainlab.recording.live_row import LiveRow, Pace
from trainlab.recording.terminal import Terminal

if TYPE_CHECKING:
    from trainlab.recording.bar import Bar

__all__ = ["can_redraw", "live_terminal", "with_bar"]

_Item = TypeVar("_Item")


def can_redraw(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal that can draw a line anew.

    Args:
        stream: such as ``sys.stderr``, which may be None.
    """
    is_terminal = stream is not None and not stream.closed and stream.isatty()
    return is_terminal and os.environ.get("TERM") not in ("dumb", "unknown")


def with_bar(items: Iterable[_Item], label: str, total: int | None, stream: TextIO) -> Iterator[_Item]:
    """Give what an iterable gives, with a bar until it ends or the iterator is closed.

    Args:
        items: the iterable.
        label: what stands before the bar.
        total: how many there are; None if that is not known.
        stream: a terminal.

    Yields:
        The items.
    """
    loop = _Loop(label, total)
    _rows.enter(loop, stream)
    try:
        for item in items:
            yield item
            loop.done += 1
    finally:
        _rows.leave(loop)


class _Loop:
    """How far a loop is."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self.pace = Pace("items")

    def text(self) -> str:
        return f"{self.done}/{self.total}" if self.total is not None else str(self.done)


class _Rows:
    """The loops that have a bar now, outermost first, and the one row that shows them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loops: list[_Loop] = []
        self._bar: Bar | None = None
        self._live: LiveRow | None = None

    def enter(self, loop: _Loop, stream: TextIO) -> None:
        from trainlab.recording.bar import Bar

        with self._lock:
            self._loops.append(loop)
            if self._live is None:
                self._bar = Bar(stream)
                self._live = LiveRow(Terminal(stream), self._row, deque())

    def leave(self, loop: _Loop) -> None:
        with self._lock:
            live = self._live
            if live is None or self._loops != [loop]:
                self._loops = [other for other in self._loops if other is not loop]
                return
            self._live = None
            try:
                live.stop()
            finally:
                live.close()
                self._loops = []

    def _row(self) -> str:
        loops = list(self._loops)
        if not loops or self._bar is None:
            return ""
        inner = loops[-1]
        fraction = min(inner.done / inner.total, 1.0) if inner.total else None
        inner.pace.update(time.monotonic(), inner.done, fraction)
        outer = [" ".join(filter(None, (loop.label, loop.text()))) for loop in loops[:-1]]
        label = SEPARATOR.join([*outer, *filter(None, [inner.label])])
        return self._bar.render(label, fraction, SEPARATOR.join([inner.text(), *inner.pace.texts()]))


_rows = _Rows()


def _begin_in_fork() -> None:
    """A forked worker has no bar: the thread that draws it is the parent's."""
    global _rows  # noqa: PLW0603  # it is this process's own
    _rows = _Rows()


os.register_at_fork(after_in_child=_begin_in_fork)


def live_terminal() -> TextIO | None:
    """Return what bars are drawn on, ``sys.stderr``, if it can be; None otherwise."""
    stream = sys.stderr
    return stream if can_redraw(stream) else None
