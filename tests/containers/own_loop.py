"""A training loop of one's own on digits, made of trainlab's parts; it can be killed at any step."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import trainlab
from trainlab.checkpoint import newest_of_run
from trainlab.distributed import init_distributed
from trainlab.runs.current import CurrentRun, Seeds, begin_run, end_run

WAITING = "waits to be killed"


def open_run(folder: Path, **params: Any) -> CurrentRun:
    """Begin a run of an experiment in this process."""
    run = CurrentRun("own", folder, {"checkpoint": None, "cuda": False, **params}, 0, Seeds(0))
    begin_run(run)
    return run


def close_run(run: CurrentRun) -> None:
    """End it as an experiment does."""
    run.at_end.close()
    end_run(run)


def train(folder: str, steps: int, killed_after: int | None = None, *, dropout: float = 0.0) -> dict[str, Any]:
    """Go on from the newest checkpoint in the folder, or begin; save after each fifth step.

    After the step ``killed_after`` it says so and waits: a rank that ended by itself might fail another in its step.

    Returns:
        The model's state dict, and the context as it was at the end.
    """
    distributed = "RANK" in os.environ
    if distributed:
        init_distributed()
    run = open_run(Path(folder), checkpoint=newest_of_run(folder), distributed=distributed)
    try:
        return _train(steps, killed_after, dropout)
    finally:
        close_run(run)


def _train(steps: int, killed_after: int | None, dropout: float) -> dict[str, Any]:
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data[:230], dtype=torch.float32) / 16, torch.tensor(digits.target[:230]))
    ctx = trainlab.context
    ctx.model = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 10))
    ctx.optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=1e-2)
    ctx.scheduler = torch.optim.lr_scheduler.StepLR(ctx.optimizer, 4, gamma=0.5)
    ctx.loader = trainlab.BetterDataLoader(data, shuffle=True, random_seed=3, batch_size=32)
    ctx.recorder = trainlab.Recorder()
    ctx.rng = torch.default_generator
    ctx.losses = []
    ctx.autotransform()
    while ctx.recorder.count < steps:
        for x, y in trainlab.iterate(ctx.loader):
            loss = nn.functional.cross_entropy(ctx.model(x), y)
            ctx.optimizer.zero_grad()
            loss.backward()
            ctx.optimizer.step()
            ctx.scheduler.step()
            ctx.recorder.scalar("train/loss", loss)
            ctx.losses.append(loss.item())
            ctx.recorder.step()
            if ctx.recorder.count % 5 == 0:
                trainlab.save_checkpoint(ctx, ctx.recorder.count)
            if ctx.recorder.count == killed_after:
                ctx.recorder.flush()  # so that there is something to be cut
                print(WAITING, flush=True)
                signal.pause()
            if ctx.recorder.count == steps:
                break
    return {"model": dict(ctx.model.state_dict()), "losses": list(ctx.losses), "lr": ctx.scheduler.get_last_lr()}
