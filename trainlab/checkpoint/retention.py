"""Retention: which checkpoints of a run are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.schedule import Batch, Epoch, TrainUnit

__all__ = ["Entry", "Retention", "expired"]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept; the others are removed once a newer one is durable.

    Attributes:
        keep_last: how many of the newest, at least 1; None for all. Default 2.
        keep_best: how many of the best, by the metric named to ``fit``; 0 for none. Default 1.
        keep_every: ``Batch(n)`` or ``Epoch(n)``: the first checkpoint in each stretch of this length, for ever.
            Default None.

    Raises:
        InvalidValueError: A number is too small.
        InvalidTypeError: A value has the wrong type.
    """

    keep_last: int | None = 2
    keep_best: int = 1
    keep_every: TrainUnit | None = None

    def __post_init__(self) -> None:
        _check_number("keep_last", self.keep_last, least=1, optional=True)
        _check_number("keep_best", self.keep_best, least=0, optional=False)
        if self.keep_every is None:
            return
        if not isinstance(self.keep_every, Batch | Epoch) or not isinstance(self.keep_every.value, int):
            raise InvalidTypeError(
                f"keep_every must be Batch(n) or Epoch(n), or None. Received: {self.keep_every!r}. "
                "Write keep_every=Epoch(10), for example."
            )


@dataclass(frozen=True)
class Entry:
    """A checkpoint, as far as it matters for what is kept.

    Attributes:
        name: its folder's name.
        sequence: its number; a later one has a greater one.
        batches_trained: the batches trained.
        epochs_trained: the epochs finished.
        validation: the metrics of the validation made at its batch; empty without one.
        best: the name of the checkpoint that holds the best of the run up to it; None if none does.
    """

    name: str
    sequence: int
    batches_trained: int
    epochs_trained: int
    validation: dict[str, Any] = field(default_factory=dict)
    best: str | None = None

    @classmethod
    def of(cls, name: str, sequence: int, progress: dict[str, Any]) -> "Entry":
        """Make one from the progress in a checkpoint, whoever wrote it.

        Args:
            name: its folder's name.
            sequence: its number.
            progress: the counters; those that are missing or wrong count as 0.

        Returns:
            The entry.
        """
        batches = _count(progress.get("batches_trained"))
        validated = progress.get("last_validation_batch") == batches
        metrics, best = progress.get("validation_metrics"), progress.get("best_checkpoint")
        return cls(
            name=name,
            sequence=sequence,
            batches_trained=batches,
            epochs_trained=_count(progress.get("epochs_trained")),
            validation=dict(metrics) if validated and isinstance(metrics, dict) else {},
            best=best if isinstance(best, str) else None,
        )


def expired(
    entries: Sequence[Entry], retention: Retention, *, metric: str | None = None, smaller_is_better: bool = True
) -> list[str]:
    """Choose what need not be kept any longer.

    Args:
        entries: all checkpoints there are, durable ones.
        retention: what to keep.
        metric: the validation metric that tells which is the best; None if none does.
        smaller_is_better: whether a smaller value is better.

    Returns:
        The names, oldest first. The newest is never among them.
    """
    in_order = sorted(entries, key=lambda entry: entry.sequence)
    if retention.keep_last is None:
        return []
    kept = {entry.name for entry in in_order[-retention.keep_last :]}
    best = _best(in_order, metric, smaller_is_better)
    # A run that went back to an earlier checkpoint has a best of its own, whatever those say that it left behind.
    own = [entry.best for entry in in_order[-1:] if metric is not None and entry.best in best]
    kept |= set([*own, *(name for name in best if name not in own)][: retention.keep_best])
    kept |= set(_first_of_each_stretch(in_order, retention.keep_every))
    return [entry.name for entry in in_order if entry.name not in kept]


def _best(entries: list[Entry], metric: str | None, smaller_is_better: bool) -> list[str]:
    """Those that were validated, the best first; of equals the oldest, as in ``Progress.best_metric``."""
    if metric is None:
        return []
    values = []
    for entry in entries:
        value = _number(entry.validation.get(metric))
        if not math.isnan(value):
            values.append((value if smaller_is_better else -value, entry.sequence, entry.name))
    return [name for _, _, name in sorted(values)]


def _first_of_each_stretch(entries: list[Entry], every: TrainUnit | None) -> list[str]:
    """The first of each stretch stays the first, whatever was removed: so the choice is the same after a resume."""
    if every is None:
        return []
    found: dict[int, str] = {}
    for entry in entries:
        count = entry.epochs_trained if isinstance(every, Epoch) else entry.batches_trained
        stretch = count // int(every.value)  # type: ignore[arg-type]  # an int, as Retention has checked
        if stretch:
            found.setdefault(stretch, entry.name)
    return list(found.values())


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _check_number(name: str, value: Any, *, least: int, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        allowed = "an int or None" if optional else "an int"
        raise InvalidTypeError(f"{name} must be {allowed}. Received: {value!r}.")
    if value < least:
        raise InvalidValueError(f"{name} must be at least {least}. Received: {value}.")
