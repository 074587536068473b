"""SweepResult: what came of the runs of a sweep."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.runs.traceback_text import reason_of

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["SweepResult", "SweepRun"]


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, as its folder tells of it.

    Attributes:
        key: what it is told apart by, the same whenever the sweep is run again.
        label: its number and what differs from the other runs, as in its folder's name.
        params: as they were given.
        folder: the run's.
        status: finished, failed, interrupted or preempted as its record says; "crashed" if its process ended without
            a word; "damaged" if the record cannot be read; "not started"; of a job "submitted" until its end.
        exitcode: of its process, -n for signal n; None where there was none in this call, or SLURM does not tell it.
        error: what ended it; "" for nothing.
        metrics: the run's, by name.
        result: the number that the main function returned; None for anything else.
        is_skipped: whether an earlier call had finished it.
    """

    key: str
    label: str
    params: "Mapping[str, Any] | BaseModel"
    folder: Path
    status: str = "not started"
    exitcode: int | None = None
    error: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    result: float | None = None
    is_skipped: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end, and is not repeated."""
        return self.status == "finished"

    @property
    def reason(self) -> str:
        """Its error in a line, or how its process ended."""
        return reason_of(self.error)


@dataclass(frozen=True)
class SweepResult:
    """The runs of a sweep, in the order of the list that it was given.

    Attributes:
        name: the sweep's.
        folder: the sweep's, in which the runs' are.
        runs: all of them.
    """

    name: str
    folder: Path
    runs: tuple[SweepRun, ...]

    def __iter__(self) -> Iterator[SweepRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> SweepRun:
        return self.runs[index]

    @property
    def failed(self) -> tuple[SweepRun, ...]:
        """The runs that were started and did not come to their end."""
        return tuple(run for run in self.runs if run.status not in ("finished", "not started", "submitted"))

    def text(self) -> str:
        """How many runs are in which state, in a line.

        Returns:
            Such as "20 runs: 17 finished (5 before), 2 failed, 1 crashed".
        """
        before = sum(run.is_skipped for run in self.runs)
        counts = Counter(run.status for run in self.runs)
        told = [
            f"{count} {status}" + (f" ({before} before)" if before and status == "finished" else "")
            for status, count in sorted(counts.items(), key=lambda item: (item[0] != "finished", item[0]))
        ]
        return f"{len(self.runs)} run{'s' * (len(self.runs) != 1)}: {', '.join(told)}"
