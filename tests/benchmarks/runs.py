"""Runs that are measured alone, each in an interpreter of its own."""

import itertools
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import trainlab
from tests.benchmarks.contenders import Prebuilt, parts
from trainlab import Batch


class AlternatingTrial(trainlab.Trial):
    """Trains chunks of batches through trainlab and through a raw loop in turns: same process, model and optimizer."""

    CHUNK = 200

    def __init__(self, context: Any) -> None:
        model, optimizer = parts()
        self.context = context
        self.model = context.wrap_model(model)
        self.optimizer = context.wrap_optimizer(optimizer)
        self.batches = Prebuilt()
        self.ours: list[float] = []
        self.raw: list[float] = []
        self.began: float | None = None

    def build_training_data_loader(self) -> Any:
        return self.batches

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        if batch_idx % self.CHUNK == 0:
            self._change_turns()
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}

    def _change_turns(self) -> None:
        now = time.perf_counter()
        if self.began is not None:
            self.ours.append((now - self.began) / self.CHUNK)
        self.raw.append(self._train_raw())
        self.began = time.perf_counter()

    def _train_raw(self) -> float:
        model, optimizer = self.model, self.optimizer
        began = time.perf_counter()
        for x, y in itertools.islice(self.batches, self.CHUNK):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - began) / self.CHUNK


def alternate(chunks: int, quiet: bool) -> dict[str, float]:
    """Train in turns with a raw loop.

    Returns:
        Median seconds of a step of each, the median ratio of neighbouring chunks, and the CPU time of
        background threads as a share of all the time (they run in both chunks, so that the ratio lacks them).
    """
    with trainlab.init(device="cpu", progress=not quiet, enable_tensorboard_logging=not quiet) as context:
        context.experimental.disable_dataset_reproducibility_checks()
        trial = AlternatingTrial(context)
        trainer = trainlab.Trainer(trial, context)
        report = Batch(10_000 if quiet else 100)
        trainer.fit(max_length=Batch(1000), reporting_period=report)
        trial.ours, trial.raw, trial.began = [], [], None
        wall, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
        trainer.fit(max_length=Batch(1000 + chunks * trial.CHUNK + 1), reporting_period=report)
        wall = time.perf_counter() - wall
        background = (time.process_time() - process) - (time.thread_time() - thread)
    # A chunk of ours lies between two raw ones: against their mean, so that a drift of the machine's speed cancels.
    around = [(before + after) / 2 for before, after in zip(trial.raw, trial.raw[1:], strict=False)]
    ratios = [a / b for a, b in zip(trial.ours, around, strict=True)]
    return {
        "raw": statistics.median(trial.raw),
        "ours": statistics.median(trial.ours),
        "ratio": statistics.median(ratios),
        "background": background / wall,
    }


class StallTrial(trainlab.Trial):
    """Saves a checkpoint after every batch; notes how long it was held, and how long torch.save takes."""

    def __init__(self, context: Any, width: int) -> None:
        self.context = context
        self.model = context.wrap_model(nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10)))
        self.optimizer = context.wrap_optimizer(torch.optim.Adam(self.model.parameters()))
        self.held: list[float] = []
        self.saved: list[float] = []
        self.synced: list[float] = []
        self.trained = 0.0

    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(
            torch.utils.data.TensorDataset(torch.rand(6400, 784), torch.randint(0, 10, (6400,))), batch_size=64
        )

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        if batch_idx:
            self.held.append(time.perf_counter() - self.trained)
            self.saved.append(self._save(synced=False))
            self.synced.append(self._save(synced=True))
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        self.trained = time.perf_counter()
        return {"loss": loss}

    def _save(self, *, synced: bool) -> float:
        began = time.perf_counter()
        with Path("state.pt").open("wb") as file:
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        return time.perf_counter() - began


def checkpoint_stall(width: int, rounds: int) -> tuple[float, float, float]:
    """Seconds that a checkpoint holds training, that torch.save takes, and that torch.save with fsync takes."""
    with trainlab.init(device="cpu", progress=False) as context:
        trial = StallTrial(context, width)
        trainlab.Trainer(trial, context).fit(max_length=Batch(rounds + 3), checkpoint_period=Batch(1))
    # The first two write into fresh memory and fresh folders.
    return tuple(statistics.median(times[2:]) for times in (trial.held, trial.saved, trial.synced))  # type: ignore[return-value]


class LongTrial(trainlab.Trial):
    """A tiny model on so many records that one epoch has 600,000 batches."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.model = context.wrap_model(nn.Linear(1, 1))
        self.optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=1e-3))
        self.first_batch: tuple[int, float] | None = None

    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(torch.rand(4_800_000, 1), batch_size=8, shuffle=True)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        if self.first_batch is None:
            self.first_batch = batch_idx, time.perf_counter()
        loss = self.model(batch).square().mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return loss


def make_long_run(folder: str) -> dict[str, str]:
    """Train 500,000 batches, with checkpoints after 5 and after 500,000.

    Returns:
        The two checkpoints by what to call them.
    """
    at = {}
    with trainlab.init(device="cpu", progress=False, run_dir=f"{folder}/run") as context:
        trainer = trainlab.Trainer(LongTrial(context), context)
        for step in (5, 500_000):
            result = trainer.fit(max_length=Batch(step), reporting_period=Batch(10_000))
            at[f"step {step:,}"] = str(result.last_checkpoint)
    return at


def resume(checkpoint: str, folder: str) -> float:
    """Seconds from the call of fit, resuming from a checkpoint, to its first batch."""
    with trainlab.init(device="cpu", progress=False) as context:
        trial = LongTrial(context)
        trainer = trainlab.Trainer(trial, context)
        began = time.perf_counter()
        step = int(Path(checkpoint).name.partition("-")[2])
        trainer.fit(max_length=Batch(step + 1), latest_checkpoint=checkpoint)
        assert trial.first_batch is not None
        index, reached = trial.first_batch
        assert index == step, f"the first batch was {index}, not {step}"
        return reached - began
