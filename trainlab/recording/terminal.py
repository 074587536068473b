"""Terminal: a line at the bottom of a terminal that stays below everything that is printed."""

import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any, TextIO

from trainlab.recording.outlet import Outlet

__all__ = ["Terminal"]

_ERASE = "\r\x1b[2K"
_ERASE_REST = "\x1b[K"

# One for the process, as there is one terminal. A fork waits until nobody writes, so that a loader's worker never
# inherits a stream in the middle of a write.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

# The one that has the streams, so that who still has a stream of an earlier one does not print into its line.
_open: "list[Terminal]" = []


class Terminal:
    """Keeps a line at the bottom of a terminal, and takes it away while other text is printed.

    Until ``close``, ``sys.stdout``, ``sys.stderr`` and the root logger's handlers that write to them go through it,
    where they are terminals. What is printed reaches its own stream unchanged.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._outlet = Outlet(stream)
        self._line = ""
        self._shown = False
        self._mid_line = False
        self._closed = False
        # In a forked worker: the beginnings of lines that are not whole yet.
        self._of_worker: dict[TextIO, str] = {}
        self._pid = os.getpid()
        self._replaced = {
            name: original
            for name in ("stdout", "stderr")
            if (original := getattr(sys, name)) is not None and not original.closed and original.isatty()
        }
        self._handlers: list[tuple[logging.StreamHandler[Any], TextIO]] = []
        with _lock:
            self._redirect()
            _open.append(self)

    def draw(self, line: str) -> None:
        """Show a line at the bottom, in the place of the last one.

        Args:
            line: the text, which fits into one row; it may hold colours.
        """
        with _lock:
            self._line = line
            self._show()

    def print(self, text: str) -> None:
        """Print above the line.

        Args:
            text: one or more lines, without the end of the last.
        """
        with _lock:
            self._erase()
            self._outlet.write(f"\n{text}\n" if self._mid_line else f"{text}\n")
            self._mid_line = False
            self._show()

    def pass_on(self, text: str, target: TextIO) -> int:
        """Write what somebody prints to its own stream, above the line.

        Args:
            text: the text; while it does not end a line, the line at the bottom is not shown.
            target: the stream that it was meant for.

        Returns:
            What the stream's ``write`` returned.
        """
        with _lock:
            if self._closed and _open:
                return _open[-1].pass_on(text, target)
            if self._closed or not text:
                return target.write(text)
            if os.getpid() != self._pid:
                return self._pass_on_in_worker(text, target)
            self._erase()
            written = target.write(text)
            target.flush()
            self._mid_line = not text.endswith("\n")
            self._show()
        return written

    def _pass_on_in_worker(self, text: str, target: TextIO) -> int:
        """Write whole lines only, each in one write with what erases: the parent may draw its line at any time."""
        lines, newline, rest = (self._of_worker.pop(target, "") + text).rpartition("\n")
        if rest:
            self._of_worker[target] = rest
        if newline:
            target.write(f"{_ERASE}{lines}\n")
            target.flush()
        return len(text)

    def close(self) -> None:
        """Leave the last line where it is, with the cursor below it, and give the streams back."""
        with _lock:
            if self._closed:
                return
            self._closed = True
            _open.remove(self)
            for handler, original in self._handlers:
                handler.setStream(original)
            for name, original in self._replaced.items():
                current = getattr(sys, name)
                if isinstance(current, _Beside) and current.terminal is self:
                    setattr(sys, name, original)
            if self._shown:
                self._outlet.write("\n")

    def _redirect(self) -> None:
        for name, original in self._replaced.items():
            beside: Any = _Beside(original, self)
            setattr(sys, name, beside)
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is original:
                    self._handlers.append((handler, original))
                    handler.setStream(beside)

    def _show(self) -> None:
        if not self._mid_line:
            self._outlet.write(f"\r{self._line}{_ERASE_REST}")
            self._shown = True

    def _erase(self) -> None:
        if self._shown:
            self._outlet.write(_ERASE)
            self._shown = False


class _Beside:
    """A stream whose text is printed above the line; in all else it is the stream itself."""

    def __init__(self, original: TextIO, terminal: Terminal) -> None:
        self._original = original
        self.terminal = terminal

    def write(self, text: str) -> int:
        return self.terminal.pass_on(text, self._original)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
