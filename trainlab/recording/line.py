"""How a record is told in one line of text."""

from collections.abc import Callable, Mapping

from trainlab.recording.record import Record
from trainlab.schedule import Plan, Progress

__all__ = ["SEPARATOR", "Course", "describe", "number", "rate_text", "values"]

SEPARATOR = " · "


class Course:
    """Where a run is on its way.

    Args:
        progress: the run's counters.
        plan: its length.
        epoch_length: gives the batches of the current epoch, or None while that is not known.
    """

    def __init__(self, progress: Progress, plan: Plan, epoch_length: Callable[[], int | None]) -> None:
        self.progress = progress
        self._plan = plan
        self._epoch_length = epoch_length

    @property
    def epoch(self) -> int:
        """The epoch that the last batch was of, counted from 1; 0 before the first batch."""
        return self.progress.epochs_trained + (self.progress.batches_in_epoch > 0)

    def fraction(self) -> float | None:
        """Tell how much of the run is done.

        Returns:
            A number from 0 to 1, or None if that is not known.
        """
        return self._plan.fraction(self.progress, self._epoch_length())

    def batch_text(self) -> str:
        """Tell the batch, with the number of all batches where that is known.

        Returns:
            ``batch 300/1000`` or ``batch 300``.
        """
        batches, fraction = self.progress.batches_trained, self.fraction()
        return f"batch {batches}/{round(batches / fraction)}" if batches and fraction else f"batch {batches}"


def describe(record: Record, course: Course | None) -> str:
    """Tell a record in one line.

    Args:
        record: the record.
        course: where the run is; None outside of training.

    Returns:
        Such as ``epoch 2 · batch 300/1000 · 1234 batches/s · loss 0.1234 · lr 0.001``.
    """
    if course is None:
        parts = [f"epoch {record.epoch}", f"batch {record.batch}"]
    else:
        parts = [f"epoch {course.epoch}", course.batch_text()]
    if record.kind == "validation":
        parts.append("validation")
    if "batches_per_second" in record.perf:
        parts.append(rate_text(record.perf["batches_per_second"]))
    return SEPARATOR.join(parts + values(record.metrics) + values(record.optim))


def values(named: Mapping[str, float | None]) -> list[str]:
    """Tell named values, each as a part of a line.

    Args:
        named: values by name.

    Returns:
        Such as ``["loss 0.1234"]``; what has no value is left out.
    """
    return [f"{name} {number(value)}" for name, value in named.items() if value is not None]


def number(value: object) -> str:
    """Tell a value with four significant digits.

    Args:
        value: a number; anything else is told as Python does, in one line.

    Returns:
        The text.
    """
    try:
        return f"{value:.4g}"
    except (TypeError, ValueError):  # text, arrays and what else a tolerant run lets pass
        return " ".join(str(value).split())


def rate_text(rate: float, unit: str = "batches") -> str:
    """Tell a speed.

    Args:
        rate: how many a second.
        unit: of what. Default "batches".

    Returns:
        Such as ``1234 batches/s`` or ``0.25 batches/s``.
    """
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.2f} {unit}/s"
