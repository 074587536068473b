"""A row of a terminal that a thread of its own keeps up to date, and how fast what it tells of goes."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from trainlab.recording.line import rate_text
from trainlab.recording.terminal import Terminal

__all__ = ["LiveRow", "Pace"]

logger = logging.getLogger("trainlab.recording")

_REFRESH_SECONDS = 0.5
_PACE_SECONDS = 30.0


class LiveRow:
    """Draws a row twice a second, from a thread, until it is stopped.

    Args:
        terminal: where.
        row: makes the row.
        messages: what is printed above it; others may append.
    """

    def __init__(self, terminal: Terminal, row: Callable[[], str], messages: deque[str]) -> None:
        self._terminal = terminal
        self._row = row
        self._messages = messages
        self._broken = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trainlab-progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        """Draw the row as it is now, once the thread was stopped, and give the terminal back."""
        try:
            self._refresh()
        finally:
            self._terminal.close()

    def _run(self) -> None:
        while not self._broken:
            self._refresh()
            if self._stop.wait(_REFRESH_SECONDS):
                return

    def _refresh(self) -> None:
        try:
            while self._messages:
                self._terminal.print(self._messages.popleft())
            if not self._broken:
                self._terminal.draw(self._row())
        except Exception:  # the run is worth more than its bar
            self._broken = True
            logger.exception("The progress bar stops, the run goes on.")


class Pace:
    """How fast something goes, from its counters.

    Args:
        unit: what is counted. Default "batches".
    """

    def __init__(self, unit: str = "batches") -> None:
        self._unit = unit
        self._seen: deque[tuple[float, int]] = deque()
        self._rate = 0.0
        self._first: tuple[float, float] | None = None
        self._left: float | None = None

    def pause(self) -> None:
        """Leave the time until the next update out of the rate."""
        self._seen.clear()

    def update(self, now: float, batches: int, fraction: float | None) -> None:
        """Take note of the counters; slow batches are measured over the last two, fast ones over half a minute."""
        seen = self._seen
        if not seen or seen[-1][1] != batches:
            seen.append((now, batches))
            while len(seen) > 2 and seen[0][0] < now - _PACE_SECONDS:
                seen.popleft()
        if len(seen) > 1:
            self._rate = (seen[-1][1] - seen[0][1]) / max(seen[-1][0] - seen[0][0], 1e-9)
        if fraction is None:
            self._left = None
        elif self._first is None:
            self._first = (now, fraction)
        elif fraction > self._first[1]:
            self._left = (1 - fraction) * (now - self._first[0]) / (fraction - self._first[1])

    def texts(self) -> list[str]:
        """Tell rate and time left, as far as they are known."""
        texts = [rate_text(self._rate, self._unit)] if self._rate else []
        if self._left is not None:
            texts.append(f"ETA {timedelta(seconds=round(self._left))}")
        return texts
