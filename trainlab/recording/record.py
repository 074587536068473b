"""Record: one report of a run, as every backend and display gets it."""

import numbers
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Record", "scalars"]


@dataclass(frozen=True)
class Record:
    """One report of training metrics, one validation, or what a ``Recorder`` was given at one count.

    Attributes:
        kind: "training", "validation" or "recorded".
        batch: batches trained since the beginning of the run, or the count; the step of all its series.
        epoch: finished epochs.
        records: records trained since the beginning of the run.
        time: when it was made, in Unix seconds.
        metrics: the metrics by name, recorded ones by their tag; None for one that has no value.
        optim: learning rates, ``{"lr": 1e-3}`` or one for each optimizer or group, ``{"lr/0": 1e-3, ...}``.
        perf: speed, ``{"batches_per_second": ..., "records_per_second": ...}``.
    """

    kind: Literal["training", "validation", "recorded"]
    batch: int
    epoch: int
    records: int
    time: float
    metrics: dict[str, float | None] = field(default_factory=dict)
    optim: dict[str, float] = field(default_factory=dict)
    perf: dict[str, float] = field(default_factory=dict)


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """List what of a record is one number, under the tags of TensorBoard and CSV.

    Args:
        record: any record.

    Yields:
        ``train/<name>`` or ``validation/<name>``, ``optim/<name>`` and ``perf/<name>``, each with its value; what was
        recorded under its own tag.
    """
    group = {"training": "train/", "validation": "validation/", "recorded": ""}[record.kind]
    for prefix, values in ((group, record.metrics), ("optim/", record.optim), ("perf/", record.perf)):
        for name, value in values.items():
            if _is_one_number(value):
                yield f"{prefix}{name}", float(value)  # type: ignore[arg-type]


def _is_one_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
