"""Progress: every counter of a run."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trainlab.errors import CheckpointMismatchError

__all__ = ["Progress"]


@dataclass(slots=True)
class Progress:
    """How far a run is: every counter, and nothing else holds one. It is saved whole in each checkpoint.

    Attributes:
        batches_trained: batches since the beginning of the run, over all epochs and resumes.
        epochs_trained: finished epochs.
        batches_in_epoch: batches trained in the current epoch; 0 right after an epoch's end.
        records_in_epoch: the position in the data of the current epoch, in global records.
        records_trained: records trained since the beginning of the run.
        optimizer_steps: steps that each optimizer really made, by its name.
        last_report_batch: ``batches_trained`` at the last report, or None.
        last_validation_batch: ``batches_trained`` at the last validation, or None.
        last_checkpoint_batch: ``batches_trained`` at the last checkpoint, or None.
        best_metric: the best value so far of the metric that ``fit`` was told, or None.
        best_metric_batch: ``batches_trained`` at the validation that gave it, or None.
        best_checkpoint: the name of the checkpoint that holds it, or None.
        best_judged_by: the metric, and whether its smallest or greatest value is the best, or None.
        validation_metrics: what the last validation gave, by name.
    """

    batches_trained: int = 0
    epochs_trained: int = 0
    batches_in_epoch: int = 0
    records_in_epoch: int = 0
    records_trained: int = 0
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    last_report_batch: int | None = None
    last_validation_batch: int | None = None
    last_checkpoint_batch: int | None = None
    best_metric: float | None = None
    best_metric_batch: int | None = None
    best_checkpoint: str | None = None
    best_judged_by: str | None = None
    validation_metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def at_epoch_end(self) -> bool:
        """Tell whether the last batch trained was the last of its epoch.

        Returns:
            True between the end of an epoch and the first batch of the next.
        """
        return self.batches_in_epoch == 0 and self.epochs_trained > 0

    def count_batch(self, records: int) -> None:
        """Count one trained batch.

        Args:
            records: how many records it had, over all ranks.
        """
        self.batches_trained += 1
        self.batches_in_epoch += 1
        self.records_trained += records

    def end_epoch(self) -> None:
        """Count one finished epoch; the position in the data goes back to the start."""
        self.epochs_trained += 1
        self.batches_in_epoch = 0
        self.records_in_epoch = 0

    def copy(self) -> "Progress":
        """Copy all counters.

        Returns:
            A Progress that shares nothing with this one.
        """
        return copy.deepcopy(self)

    def state_dict(self) -> dict[str, Any]:
        """Give all counters as plain data.

        Returns:
            The counters by name, sharing nothing with this object.
        """
        return {entry.name: copy.deepcopy(getattr(self, entry.name)) for entry in fields(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all counters from what ``state_dict`` gave; with an error, nothing is changed.

        Args:
            state: the counters by name.

        Raises:
            CheckpointMismatchError: counters are missing, unknown, negative or of another type.
        """
        names = [entry.name for entry in fields(self)]
        faults = [f"{name} is missing" for name in names if name not in state]
        faults += [f"{name} is unknown" for name in state if name not in names]
        faults += [fault for name in names if name in state and (fault := _fault(name, state[name]))]
        if faults:
            raise CheckpointMismatchError(
                f"The progress in this checkpoint does not fit this version of trainlab: {'; '.join(faults)}. "
                f"Received: {dict(state)!r}. Load a checkpoint that this version wrote."
            )
        for name in names:
            setattr(self, name, copy.deepcopy(state[name]))
        if self.best_metric is not None:
            self.best_metric = float(self.best_metric)


_OPTIONAL_COUNTS = ("last_report_batch", "last_validation_batch", "last_checkpoint_batch", "best_metric_batch")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _fault(name: str, value: Any) -> str | None:
    if name == "optimizer_steps":
        fits = isinstance(value, dict) and all(isinstance(k, str) and _is_count(v) for k, v in value.items())
        wanted = "a dict of str to int ≥ 0"
    elif name == "validation_metrics":
        fits, wanted = isinstance(value, dict) and all(isinstance(key, str) for key in value), "a dict by str"
    elif name == "best_metric":
        fits, wanted = (
            value is None or (isinstance(value, int | float) and not isinstance(value, bool)),
            "a float or None",
        )
    elif name in ("best_checkpoint", "best_judged_by"):
        fits, wanted = value is None or isinstance(value, str), "a str or None"
    elif name in _OPTIONAL_COUNTS:
        fits, wanted = value is None or _is_count(value), "an int ≥ 0 or None"
    else:
        fits, wanted = _is_count(value), "an int ≥ 0"
    return None if fits else f"{name} is {value!r} and must be {wanted}"
