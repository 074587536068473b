"""Small Trials, written as a user of Determined writes them, that the tests of compat share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from trainlab.compat import determined as pytorch

LR = 0.1


class OneWeightTrial(pytorch.PyTorchTrial):
    """One weight w, from 0; every record says that 1 · w should be 1: the loss is (w - 1)²."""

    records = 64
    batch_size = 4

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        self.context = context
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        self.model = context.wrap_model(model)
        self.optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=LR))
        self.callbacks: dict[str, pytorch.PyTorchCallback] = {}
        self.seen: list[tuple[int, int]] = []
        self.batches: list[list[float]] = []
        self.weights: list[float] = []

    @property
    def weight(self) -> float:
        return float(self.model.weight.detach())

    def data(self) -> TensorDataset:
        """Records (1, 1, number of the record)."""
        ones = torch.ones(self.records, 1)
        return TensorDataset(ones, ones, torch.arange(self.records))

    def build_training_data_loader(self) -> Any:
        return pytorch.DataLoader(self.data(), batch_size=self.batch_size)

    def build_validation_data_loader(self) -> Any:
        return pytorch.DataLoader(self.data(), batch_size=self.batch_size)

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        return self.callbacks

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        x, y, number = batch
        self.seen.append((epoch_idx, batch_idx))
        self.batches.append(number.tolist())
        loss = nn.functional.mse_loss(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        self.weights.append(self.weight)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y, _ = batch
        return {"loss": nn.functional.mse_loss(self.model(x), y)}


class Counter(pytorch.PyTorchCallback):
    """Counts the calls of its hooks, and keeps what they were given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def count(self, hook: str) -> int:
        return len(self.given(hook))

    def given(self, hook: str) -> list[Any]:
        return [given for name, given in self.calls if name == hook]

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        self.calls.append(("on_trial_startup", (first_batch_idx, checkpoint_uuid)))

    def on_trial_shutdown(self) -> None:
        self.calls.append(("on_trial_shutdown", None))

    def on_training_start(self) -> None:
        self.calls.append(("on_training_start", None))

    def on_training_epoch_start(self, epoch_idx: int) -> None:
        self.calls.append(("on_training_epoch_start", epoch_idx))

    def on_training_epoch_end(self, epoch_idx: int) -> None:
        self.calls.append(("on_training_epoch_end", epoch_idx))

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: list[dict[str, Any]]) -> None:
        self.calls.append(("on_training_workload_end", (avg_metrics, batch_metrics)))

    def on_validation_start(self) -> None:
        self.calls.append(("on_validation_start", None))

    def on_validation_epoch_start(self) -> None:
        self.calls.append(("on_validation_epoch_start", None))

    def on_validation_epoch_end(self, outputs: list[Any]) -> None:
        self.calls.append(("on_validation_epoch_end", outputs))

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self.calls.append(("on_validation_end", dict(metrics)))

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        self.calls.append(("on_checkpoint_upload_end", uuid))


def fit(context: pytorch.PyTorchTrialContext, trial: Any = None, **arguments: Any) -> tuple[Any, Counter]:
    """Train a Trial (a OneWeightTrial if none is given) with a Counter among its callbacks."""
    trial = OneWeightTrial(context) if trial is None else trial
    counter = Counter()
    trial.callbacks = {**trial.callbacks, "counter": counter}
    pytorch.Trainer(trial, context).fit(**arguments)
    return trial, counter


def saved(context: pytorch.PyTorchTrialContext) -> list[int]:
    """The batches at which checkpoints were made."""
    folder = context.run_dir / "checkpoints"
    return sorted(int(path.name.removeprefix("batch-")) for path in folder.iterdir()) if folder.is_dir() else []


Open = Callable[..., pytorch.PyTorchTrialContext]
