"""FitResult: what a fit has to say at its end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainlab.schedule import Progress

__all__ = ["FitResult"]


@dataclass(frozen=True)
class FitResult:
    """What ``Trainer.fit`` returns.

    Attributes:
        progress: the counters at the end, a copy.
        metrics: the last validation's metrics; empty without one.
        best_metric: the best value so far of the metric named to ``fit``, or None.
        last_checkpoint: the newest checkpoint, a path (a URL on a remote store); None after ``test_mode``.
        best_checkpoint: the checkpoint of the best validation, if one was made.
        stop_reason: "max_length", "stop_requested", or "pruned": the search that the run is a trial of has ended it.
    """

    progress: Progress
    metrics: dict[str, Any]
    best_metric: float | None
    last_checkpoint: Path | str | None
    best_checkpoint: Path | str | None
    stop_reason: Literal["max_length", "stop_requested", "pruned"]
