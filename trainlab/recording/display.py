"""What a person sees of a run: a bar on a terminal, one plain line per report elsewhere, or nothing."""

import sys
from collections.abc import Callable
from typing import Protocol, TextIO

from trainlab.recording.line import Course, describe
from trainlab.recording.loop_bar import can_redraw
from trainlab.recording.outlet import Outlet
from trainlab.recording.record import Record
from trainlab.recording.rich_display import RichDisplay
from trainlab.schedule import Plan, Progress

__all__ = ["Display", "LineDisplay", "NoDisplay", "make_display"]


class Display(Protocol):
    """Shows how a run goes on. It is told of reports and validations, never of single training batches."""

    def start(self, progress: Progress, plan: Plan, epoch_length: Callable[[], int | None]) -> None:
        """Begin to show a run; a display that was closed can be started again.

        Args:
            progress: the run's counters, read whenever the display likes.
            plan: its length.
            epoch_length: gives the batches of the current epoch, or None while that is not known.
        """

    def report(self, record: Record) -> None:
        """Show a report of training metrics.

        Args:
            record: the report.
        """

    def validation_start(self, total: int | None) -> None:
        """Show that a validation begins.

        Args:
            total: its batches, or None if that is not known.
        """

    def validation_step(self, n: int) -> None:
        """Take note of how far the validation is; called for every batch.

        Args:
            n: its batches so far.
        """

    def validation_end(self, record: Record) -> None:
        """Show a validation's metrics.

        Args:
            record: the validation.
        """

    def say(self, text: str) -> None:
        """Show a message, before the start and after the end too.

        Args:
            text: one or more lines.
        """

    def close(self) -> None:
        """Stop, and leave the terminal as it was; further calls do nothing."""


class NoDisplay:
    """Shows nothing."""

    def start(self, progress: Progress, plan: Plan, epoch_length: Callable[[], int | None]) -> None:
        """Show nothing.

        Args:
            progress: not used.
            plan: not used.
            epoch_length: not used.
        """

    def report(self, record: Record) -> None:
        """Show nothing.

        Args:
            record: not used.
        """

    def validation_start(self, total: int | None) -> None:
        """Show nothing.

        Args:
            total: not used.
        """

    def validation_step(self, n: int) -> None:
        """Show nothing.

        Args:
            n: not used.
        """

    def validation_end(self, record: Record) -> None:
        """Show nothing.

        Args:
            record: not used.
        """

    def say(self, text: str) -> None:
        """Show nothing.

        Args:
            text: not used.
        """

    def close(self) -> None:
        """Do nothing."""


class LineDisplay:
    """Shows one plain line per report and per validation, for logs, notebooks and pipes.

    Args:
        stream: where to write; None (default): what ``sys.stderr`` is at the time of each line.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._outlet = Outlet(stream)
        self._course: Course | None = None

    def start(self, progress: Progress, plan: Plan, epoch_length: Callable[[], int | None]) -> None:
        """Begin to show a run.

        Args:
            progress: the run's counters.
            plan: its length.
            epoch_length: gives the batches of the current epoch, or None while that is not known.
        """
        self._course = Course(progress, plan, epoch_length)

    def report(self, record: Record) -> None:
        """Write a line for a report of training metrics.

        Args:
            record: the report.
        """
        self.say(describe(record, self._course))

    def validation_start(self, total: int | None) -> None:
        """Write nothing.

        Args:
            total: not used.
        """

    def validation_step(self, n: int) -> None:
        """Write nothing.

        Args:
            n: not used.
        """

    def validation_end(self, record: Record) -> None:
        """Write a line for a validation.

        Args:
            record: the validation.
        """
        self.say(describe(record, self._course))

    def say(self, text: str) -> None:
        """Write a message. Once the stream is gone, that is logged and nothing more is written.

        Args:
            text: one or more lines.
        """
        self._outlet.write(f"{text}\n")

    def close(self) -> None:
        """Forget the run."""
        self._course = None


def make_display(enabled: bool, stream: TextIO | None = None) -> Display:
    """Choose the display that fits.

    Args:
        enabled: whether to show anything.
        stream: where to show it; None (default): ``sys.stderr``.

    Returns:
        A bar if the stream is a terminal that can redraw a line, else plain lines.
    """
    if not enabled:
        return NoDisplay()
    target = sys.stderr if stream is None else stream
    if can_redraw(target):
        return RichDisplay(target)
    return LineDisplay(stream)
