"""A program that trains from a loader with a state of its own, and counts in torchmetrics objects.

``python -m tests.training.loader_program --run-dir D --out O --loader here:stateful --kill-at 7``; with ``--serve`` it
forks such programs, see ``processes.py``.
"""

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch import nn

import trainlab
from tests.data.stateful_loaders import AHEAD, IN_PROCESS
from tests.training.exact_program import digest
from tests.training.processes import serve
from trainlab import Batch, Epoch
from trainlab.distributed import RngState


class Net(nn.Module):
    """A small model that measures itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.spread = torchmetrics.SpearmanCorrCoef()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Killer(trainlab.Callback):
    """Kills the process once the checkpoint of a batch is committed, and none after it."""

    def __init__(self, at: int | None) -> None:
        self._at = at

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        if int(Path(uuid).name.removeprefix("batch-").split(".")[0]) == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


class LoaderTrial(trainlab.Trial):
    """Trains, and tells what."""

    def __init__(self, context: trainlab.TrialContext, options: argparse.Namespace) -> None:
        self.options = options
        super().__init__(context)
        errors = {"mse": torchmetrics.MeanSquaredError(), "mae": torchmetrics.MeanAbsoluteError()}
        self.errors = context.register_stateful("errors", torchmetrics.MetricCollection(errors))

    def build_model(self) -> nn.Module:
        return Net()

    def build_optimizer(self, model: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.01)

    def build_training_data_loader(self) -> Any:
        place, _, name = self.options.loader.partition(":")
        return {"here": IN_PROCESS, "ahead": AHEAD}[place][name]()

    def build_callbacks(self) -> dict[str, trainlab.Callback]:
        return {"killer": Killer(self.options.kill_at)}

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        numbers, x = (batch, batch / 26) if isinstance(batch, torch.Tensor) else (batch[0], batch[1].float())
        x = x.reshape(len(numbers), -1).mean(1, keepdim=True)
        made = self.model(x)
        loss = (made - numbers.reshape(-1, 1) / 26).square().mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        self.errors(made.detach(), x)
        self.model.spread.update(made.detach().reshape(-1), x.reshape(-1))
        with (self.options.out / "trained").open("a") as file:
            print(json.dumps({"epoch": epoch_idx, "batch": batch_idx, "numbers": numbers.tolist()}), file=file)
        return {"loss": loss}


def main(arguments: list[str]) -> None:
    """Train as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--loader", required=True)
    parser.add_argument("--kill-at", type=int)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    with trainlab.init(run_dir=options.run_dir, seed=3, device="cpu", progress=False) as context:
        trial = LoaderTrial(context, options)
        trainlab.Trainer(trial, context).fit(
            max_length=Epoch(3), checkpoint_period=Batch(1), latest_checkpoint=context.latest_checkpoint
        )
        found = {
            "model": digest(context.models[0].state_dict()),
            "optimizer": digest(context.optimizers[0].state_dict()),
            "generators": digest(RngState.capture().state_dict()),
            "errors": {name: float(value) for name, value in trial.errors.compute().items()},
            "spread": float(trial.model.spread.compute()),
        }
    (options.out / "result.json").write_text(json.dumps(found))
    os._exit(0)  # taking the interpreter down would take longer than the run


def _bring_what_is_brought_late() -> None:
    """Import what the first step and the first record would import, so that forked processes need not."""
    import torch.utils.tensorboard

    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    torch.optim.Adam([parameter]).step()
    assert trainlab.Trainer and torch.utils.tensorboard.SummaryWriter


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata 0.11's own, with newer torch
    given: list[str] | None = sys.argv[1:]
    if given == ["--serve"]:
        _bring_what_is_brought_late()
        given = serve()
    if given is not None:
        main(given)
