"""RichDisplay: the progress bar, drawn by a thread of its own that reads the run's counters."""

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from trainlab.recording.line import SEPARATOR, Course, describe, values
from trainlab.recording.live_row import LiveRow, Pace
from trainlab.recording.outlet import Outlet
from trainlab.recording.record import Record
from trainlab.recording.terminal import Terminal
from trainlab.schedule import Plan, Progress

if TYPE_CHECKING:
    from trainlab.recording.bar import Bar

__all__ = ["RichDisplay"]


class RichDisplay:
    """A bar on a terminal: epoch, batch, rate, time left and the last metrics; a line stays for each validation.

    No training batch calls it: a thread reads the counters twice a second. What the user's code prints appears
    above the bar.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._outlet = Outlet(stream)
        self._messages: deque[str] = deque()
        self._running: _Running | None = None
        self._course: Course | None = None

    def start(self, progress: Progress, plan: Plan, epoch_length: Callable[[], int | None]) -> None:
        """Show the bar; one that was closed can be started again.

        Args:
            progress: the run's counters, read by the bar's thread.
            plan: its length.
            epoch_length: gives the batches of the current epoch, or None while that is not known.
        """
        from trainlab.recording.bar import Bar

        self.close()
        self._course = Course(progress, plan, epoch_length)
        self._running = _Running(self._course, Bar(self._stream), Terminal(self._stream), self._messages)

    def report(self, record: Record) -> None:
        """Show the metrics of a report in the bar.

        Args:
            record: the report.
        """
        if self._running is not None:
            self._running.last_metrics = values(record.metrics)

    def validation_start(self, total: int | None) -> None:
        """Show a bar for a validation in the place of that for the training.

        Args:
            total: its batches, or None if that is not known.
        """
        if self._running is not None:
            self._running.begin_validation(total)

    def validation_step(self, n: int) -> None:
        """Take note of how far the validation is.

        Args:
            n: its batches so far.
        """
        if self._running is not None:
            self._running.validated = n

    def validation_end(self, record: Record) -> None:
        """Show a validation's metrics in a line that stays.

        Args:
            record: the validation.
        """
        if self._running is not None:
            self._running.validation = None
        self.say(describe(record, self._course))

    def say(self, text: str) -> None:
        """Show a message in lines that stay, above the bar.

        Args:
            text: one or more lines.
        """
        if self._running is None:
            self._outlet.write(f"{text}\n")
        else:
            self._messages.append(text)  # the thread prints it: a slow terminal holds nobody up

    def close(self) -> None:
        """Stop the bar and give the terminal back; further calls do nothing."""
        running, self._running = self._running, None
        if running is not None:
            running.end()
        self._course = None


class _Running:
    """What the bar shows, from start to close."""

    def __init__(self, course: Course, bar: "Bar", terminal: Terminal, messages: deque[str]) -> None:
        self.last_metrics: list[str] = []
        self.validation: tuple[int, int | None] | None = None
        self.validated = 0
        self._course = course
        self._bar = bar
        self._pace = Pace()
        self._live = LiveRow(terminal, self._row, messages)

    def begin_validation(self, total: int | None) -> None:
        self.validated = 0
        self.validation = (self._course.progress.batches_trained, total)

    def end(self) -> None:
        try:
            self._live.stop()
            self.validation = None
        finally:
            self._live.close()

    def _row(self) -> str:
        progress, validation = self._course.progress, self.validation
        # A validation that an error ended, or one batch tried beforehand, is over once training goes on.
        if validation is not None and validation[0] == progress.batches_trained:
            self._pace.pause()
            total = validation[1]
            done = f"batch {self.validated}/{total}" if total else f"batch {self.validated}"
            return self._bar.render("validation", self.validated / total if total else None, done)
        fraction = self._course.fraction()
        self._pace.update(time.monotonic(), progress.batches_trained, fraction)
        details = SEPARATOR.join([self._course.batch_text(), *self._pace.texts(), *self.last_metrics])
        return self._bar.render(f"epoch {self._course.epoch}", fraction, details)
