"""What a steady batch costs in frames and Python calls: counted, so that no noise touches it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import trainlab
from tests.benchmarks.counting import CallCounter, frames_above
from trainlab import Batch

FOLDER = Path(trainlab.__file__).parent


class CountedTrial(trainlab.Trial):
    """Counts from one train_batch to the next, in the middle of a window and of an epoch."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        self.counter = CallCounter(FOLDER)
        self.frames: list[tuple[str, str]] = []
        super().__init__(context)

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters())

    def build_training_data_loader(self) -> Any:
        records = torch.utils.data.TensorDataset(torch.rand(400, 8), torch.randint(0, 4, (400,)))
        return trainlab.DataLoader(records, batch_size=4, shuffle=True)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        if batch_idx == 51:
            self.counter.stop()
            self.frames = frames_above(FOLDER)
        x, y = batch
        if batch_idx == 50:
            self.counter.start()
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}


def counted(open_run: Any) -> CountedTrial:
    """Train past the counted batch, with the defaults on."""
    context = open_run(progress=True)
    trial = CountedTrial(context)
    trainlab.Trainer(trial, context).fit(max_length=Batch(80))
    return trial


def test_few_calls_per_batch(open_run: Any) -> None:
    """A steady batch makes at most 15 Python calls of trainlab's, with all defaults on."""
    calls = counted(open_run).counter.calls
    assert ("context.py", "step_optimizer") in calls, "the counter saw nothing"
    assert ("progress.py", "count_batch") in calls, "the counter stopped before the batch was counted"
    assert len(calls) <= 15, calls


def test_few_frames_above_train_batch(open_run: Any) -> None:
    """A traceback out of train_batch shows at most four frames of trainlab's, in at most two files."""
    frames = counted(open_run).frames
    assert ("trainer.py", "fit") in frames
    assert len(frames) <= 4, frames
    assert len({name for name, _ in frames}) <= 2, frames
