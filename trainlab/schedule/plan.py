"""Plan: what is due at which batch."""

import enum
from typing import Any

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.schedule.progress import Progress
from trainlab.schedule.units import Batch, Epoch, TrainUnit

__all__ = ["Action", "Plan"]


class Action(enum.Enum):
    """What can be due at a boundary; sorted, the actions are in the order in which they are done."""

    REPORT = 1
    VALIDATE = 2
    CHECKPOINT = 3
    END = 4

    def __lt__(self, other: "Action") -> bool:
        if not isinstance(other, Action):
            return NotImplemented
        return bool(self.value < other.value)


class Plan:
    """The length of a run and its periods, and from them what is due at which batch.

    Args:
        max_length: the length of the run, counted from its beginning; ``Batch`` or ``Epoch`` of an int.
        reporting_period: when training metrics are reported.
        validation_period: when to validate, or None (default) for never by period.
        checkpoint_period: when to write a checkpoint, or None (default) for never by period.

    Attributes:
        max_length: as given; so are the periods, under their names.

    Raises:
        InvalidValueError: ``max_length`` or ``reporting_period`` is None.
        InvalidTypeError: one of them is no ``Batch`` or ``Epoch``, or ``max_length`` is a schedule.
    """

    def __init__(
        self,
        *,
        max_length: TrainUnit | None,
        reporting_period: TrainUnit,
        validation_period: TrainUnit | None = None,
        checkpoint_period: TrainUnit | None = None,
    ) -> None:
        self._length, self.max_length = _checked_length(max_length)
        if reporting_period is None:
            raise InvalidValueError(
                "reporting_period cannot be left out. Received: None. Pass Batch(100), for example."
            )
        self.reporting_period = _checked("reporting_period", reporting_period)
        self.validation_period = None if validation_period is None else _checked("validation_period", validation_period)
        self.checkpoint_period = None if checkpoint_period is None else _checked("checkpoint_period", checkpoint_period)

    def next_boundary(self, progress: Progress, epoch_length: int | None) -> int | None:
        """Foresee the next boundary.

        Batch units are foreseen exactly. The end of an epoch is foreseen where ``epoch_length`` is known,
        assuming that later epochs are as long as this one; the data may end an epoch earlier, and the caller has
        to ask ``due`` at each epoch's end anyway.

        Args:
            progress: how far the run is.
            epoch_length: batches in the current epoch, or None if that is not known.

        Returns:
            The smallest ``batches_trained`` above the present one at which something is due, or None if nothing can
            be foreseen.
        """
        foreseen = [_foreseen(unit, progress, epoch_length) for unit in self._periods()]
        if not self.finished(progress):
            # A schedule with one number: the end is due once, where a period would be due again and again.
            end = type(self.max_length)([self._length])
            foreseen.append(_foreseen(end, progress, epoch_length))
        return min((batch for batch in foreseen if batch is not None), default=None)

    def due(self, progress: Progress) -> frozenset[Action]:
        """Tell what is due now, after a finished batch and the end of its epoch, if it was the last one there.

        Every boundary reports. At the end of ``max_length`` everything is due. What ``progress`` says was done at
        this batch already is left out.

        Args:
            progress: how far the run is.

        Returns:
            The actions that are due; ``sorted`` gives the order in which to do them.
        """
        ended = self.finished(progress)
        validate = ended or _due(self.validation_period, progress)
        checkpoint = ended or _due(self.checkpoint_period, progress)
        report = validate or checkpoint or _due(self.reporting_period, progress)
        now = progress.batches_trained
        wanted = {
            Action.REPORT: report and progress.last_report_batch != now,
            Action.VALIDATE: validate and progress.last_validation_batch != now,
            Action.CHECKPOINT: checkpoint and progress.last_checkpoint_batch != now,
            Action.END: ended,
        }
        return frozenset(action for action, is_wanted in wanted.items() if is_wanted)

    def finished(self, progress: Progress) -> bool:
        """Tell whether ``max_length`` is reached or passed.

        Args:
            progress: how far the run is.

        Returns:
            Whether there is nothing left to train.
        """
        return _count(self.max_length, progress) >= self._length

    def fraction(self, progress: Progress, epoch_length: int | None) -> float | None:
        """Tell how much of ``max_length`` is done.

        Args:
            progress: how far the run is.
            epoch_length: batches in the current epoch, or None if that is not known.

        Returns:
            A number from 0 to 1, or None if the length is in epochs of an unknown number of batches.
        """
        if self.finished(progress):
            return 1.0
        done: float = _count(self.max_length, progress)
        if isinstance(self.max_length, Epoch):
            if not epoch_length:
                return None
            done += min(progress.batches_in_epoch / epoch_length, 1.0)
        return done / self._length

    def _periods(self) -> list[TrainUnit]:
        periods = (self.reporting_period, self.validation_period, self.checkpoint_period)
        return [unit for unit in periods if unit is not None]


def _count(unit: TrainUnit, progress: Progress) -> int:
    return progress.epochs_trained if isinstance(unit, Epoch) else progress.batches_trained


def _due(unit: TrainUnit | None, progress: Progress) -> bool:
    if unit is None or (isinstance(unit, Epoch) and not progress.at_epoch_end):
        return False
    return unit.is_due(_count(unit, progress))


def _foreseen(unit: TrainUnit, progress: Progress, epoch_length: int | None) -> int | None:
    due = unit.next_due(_count(unit, progress))
    if due is None or not isinstance(unit, Epoch):
        return due
    if epoch_length is None or epoch_length <= progress.batches_in_epoch:
        return None  # the epoch is longer than was said: its end cannot be foreseen
    epochs_left = due - progress.epochs_trained
    return progress.batches_trained - progress.batches_in_epoch + epochs_left * epoch_length


def _checked(name: str, unit: Any) -> TrainUnit:
    if not isinstance(unit, Batch | Epoch):
        raise InvalidTypeError(
            f"{name} must be Batch(...) or Epoch(...). Received: {unit!r} (type {type(unit).__name__}). "
            f"Write {name}=Batch(100), for example."
        )
    return unit


def _checked_length(max_length: Any) -> tuple[int, TrainUnit]:
    if max_length is None:
        raise InvalidValueError("max_length is missing. Received: None. Pass Batch(1000) or Epoch(5), for example.")
    length = _checked("max_length", max_length).value
    if not isinstance(length, int):
        raise InvalidTypeError(
            f"max_length is one length, not a schedule. Received: {max_length!r}. Pass Batch or Epoch of an int."
        )
    return length, max_length
