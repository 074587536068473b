"""Experiments of the tests that train, at module level, so that other processes find them."""

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import torch

import trainlab
from trainlab import Batch


class Line(trainlab.Trial):
    """Fits a line, by the hyperparameter lr."""

    def __init__(self, context: trainlab.TrialContext, ends_at: int | None = None) -> None:
        super().__init__(context)
        self.ends_at = ends_at

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.context.get_hparam("lr"))

    def build_training_data_loader(self) -> trainlab.DataLoader[Any]:
        x = torch.arange(8.0).reshape(8, 1)
        return trainlab.DataLoader(torch.utils.data.TensorDataset(x, 2 * x), batch_size=2, shuffle=True)

    def build_validation_data_loader(self) -> trainlab.DataLoader[Any]:
        return self.build_training_data_loader()

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, torch.Tensor]:
        x, y = batch
        loss = (self.model(x) - y).square().mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        if batch_idx + 1 == self.ends_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        x, y = batch
        return {"loss": (self.model(x) - y).square().mean()}


def fitted(context: trainlab.TrialContext, batches: int = 4, ends_at: int | None = None) -> trainlab.FitResult:
    """Train a line for so many batches."""
    trial = Line(context, ends_at)
    return trainlab.Trainer(trial, context).fit(
        max_length=Batch(batches), validation_period=Batch(2), checkpoint_period=Batch(2), metric="loss"
    )


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.01)
@trainlab.parameter("ends_at", int)
@trainlab.parameter("api_key", str, default="hidden-away")
@trainlab.parameter("stamp", str, default=lambda: f"made by {os.getpid()}")
def line(values: dict[str, Any]) -> dict[str, Any]:
    """Train a line in the run's own folder."""
    with trainlab.init(progress=False) as context:
        result = fitted(context, 6, values["ends_at"])
        weights = [parameter.tolist() for parameter in context.models[0].parameters()]
        return {
            "run_dir": str(context.run_dir),
            "hparams": context.get_hparams(),
            "seed": context.get_trial_seed(),
            "device": context.device.type,
            "batches": result.progress.batches_trained,
            "weights": weights,
            "stamp": values["stamp"],
            "rank": context.distributed.rank,
        }


def run_line(root: str, values: dict[str, Any]) -> Any:
    """Run it, in a process of a test."""
    return line.run({"output_dir": root, **values})


def run_line_by_rank(root: str, values: list[dict[str, Any]]) -> Any:
    """Run it with values of this rank's own."""
    return line.run({"output_dir": root, **values[int(os.environ["RANK"])]})


@trainlab.experiment
def stands_still(values: dict[str, Any]) -> None:
    """Fail on rank 1, while the chief is where no exception reaches it."""
    from trainlab.distributed import get_rank

    if get_rank() == 1:
        raise ValueError("rank 1 breaks")
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()))
    while True:
        signal.sigwait({signal.SIGUSR1})


def run_still(root: str) -> Any:
    """Run it, in a process of a test."""
    return stands_still.run({"output_dir": root})


@trainlab.experiment
@trainlab.parameter("fails", int)
def draws_unevenly(values: dict[str, Any]) -> list[int]:
    """Draw a seed more on rank 1; or fail on a rank."""
    from trainlab.distributed import get_rank

    if values["fails"] == get_rank():
        raise ValueError(f"rank {get_rank()} breaks")
    return [trainlab.new_seed() for _ in range(1 + get_rank())]


def run_unevenly(root: str, fails: int | None) -> Any:
    """Run it, in a process of a test."""
    return draws_unevenly.run({"output_dir": root, "fails": fails})


def killed_and_resumed(root: str, run_dir: str) -> bytes:
    """Interrupt a training by SIGTERM, and go on with it in the same folder; what comes of both."""
    from trainlab.experiments import running

    try:
        running.run(line, line.read({"output_dir": root, "ends_at": 3, "random_seed": 5}), run_dir=Path(run_dir))
    except SystemExit as ended:
        first = ended.code
    os.environ.update(TRAINLAB_RUN_DIR=run_dir, TRAINLAB_RESUME="1")
    return pickle.dumps((first, line.run({"output_dir": root})))


@trainlab.experiment
def tells_search(values: dict[str, Any]) -> str | None:
    """Tell what is in the environment of a search."""
    return os.environ.get("TRAINLAB_SEARCH")


def run_searched(root: str) -> Any:
    """Run it, in a process of a test."""
    return tells_search.run({"output_dir": root})
