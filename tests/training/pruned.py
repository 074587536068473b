"""Runs that are trials of a search: what a test of one process, and of several, trains."""

import base64
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

import trainlab
from tests.training.trials import LineTrial
from trainlab import Batch, TrainUnit
from trainlab.experiments.searched import SearchedBy
from trainlab.runs.current import CurrentRun, Seeds, begin_run, end_run

__all__ = ["DrawingTrial", "Study", "current", "train_drawing", "train_pruned"]


class Study:
    """A study in a SQLite file, with one trial that runs.

    Args:
        folder: where the file is.
        pruner: Optuna's; default one that prunes nothing.
        length: as ``SearchedBy`` has it; default none.
        metric: what is looked at. Default "loss".
    """

    def __init__(
        self,
        folder: Path,
        pruner: optuna.pruners.BasePruner | None = None,
        length: tuple[str, int] | None = None,
        metric: str = "loss",
    ) -> None:
        self.url = f"sqlite:///{folder / 'study.db'}"
        self.study = optuna.create_study(study_name="lines", storage=optuna.storages.RDBStorage(self.url))
        self.number = self.study.ask().number
        pickled = base64.b64encode(pickle.dumps(pruner or optuna.pruners.NopPruner())).decode()
        self.searched = SearchedBy(self.url, "lines", self.number, metric, True, length, pickled)

    @property
    def reported(self) -> dict[int, float]:
        """What the trial has told, by its step."""
        return self.study.get_trials()[self.number].intermediate_values


@contextmanager
def current(folder: Path, searched: SearchedBy | None = None) -> Iterator[CurrentRun]:
    """An experiment's run in this process."""
    run = CurrentRun("lines", folder, {}, 0, Seeds(0), searched=searched, is_trained=True)
    begin_run(run)
    try:
        with run.at_end:
            yield run
    finally:
        end_run(run)


def train_pruned(folder: Path, searched: SearchedBy, length: TrainUnit | None) -> tuple[str, int]:
    """Train on each rank; the search is the chief's alone."""
    with trainlab.init(run_dir=folder, progress=False, device="cpu") as context:
        chiefs = searched if context.distributed.is_chief else None
        with current(folder, chiefs):
            result = trainlab.Trainer(LineTrial(context), context).fit(max_length=length, validation_period=Batch(4))
    return result.stop_reason, result.progress.batches_trained


class DrawingTrial(LineTrial):
    """Draws one seed more on rank 1 than on rank 0."""

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        if batch_idx == 2:
            for _ in range(1 + self.context.distributed.rank):
                self.run.seeds.next()
        return super().train_batch(batch, epoch_idx, batch_idx)


def train_drawing(folder: Path) -> None:
    """Train with ranks that part in what they draw."""
    with trainlab.init(run_dir=folder, progress=False, device="cpu") as context, current(folder) as run:
        DrawingTrial.run = run
        trainlab.Trainer(DrawingTrial(context), context).fit(max_length=Batch(40), validation_period=Batch(4))
