"""A script as a user of Determined wrote it: two models, a plateau scheduler, batches of dicts, gradients clipped."""

from typing import Any, cast

import numpy as np
import torch
from determined import pytorch
from torch import nn


class Waves(torch.utils.data.Dataset):
    """Points of one wave, as dicts."""

    def __init__(self, count: int) -> None:
        self.x = np.linspace(-1, 1, count, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = self.x[index]
        return {"x": np.array([x]), "y": np.array([np.sin(3 * x)], dtype=np.float32), "name": f"point {index}"}


class WorstPoint(pytorch.MetricReducer):
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.worst = 0.0

    def update(self, errors: torch.Tensor) -> None:
        self.worst = max(self.worst, float(errors.abs().max()))

    def per_slot_reduce(self) -> float:
        return self.worst

    def cross_slot_reduce(self, per_slot_metrics: list[float]) -> float:
        return max(per_slot_metrics)


class PlateauCallback(pytorch.PyTorchCallback):
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self.scheduler.step(metrics["mse"])


class WaveTrial(pytorch.PyTorchTrial):
    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        super().__init__(context)
        self.context = context
        hidden = self.context.get_hparam("hidden")
        self.body = self.context.wrap_model(nn.Sequential(nn.Linear(1, hidden), nn.Tanh()))
        self.head = self.context.wrap_model(nn.Linear(hidden, 1))
        self.body_opt = self.context.wrap_optimizer(torch.optim.Adam(self.body.parameters(), lr=0.02))
        self.head_opt = self.context.wrap_optimizer(torch.optim.SGD(self.head.parameters(), lr=0.1))
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.head_opt, patience=1)
        self.context.wrap_lr_scheduler(self.plateau, step_mode=pytorch.LRScheduler.StepMode.MANUAL_STEP)
        self.worst = cast(WorstPoint, self.context.wrap_reducer(WorstPoint(), name="worst", for_training=False))

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        return {"plateau": PlateauCallback(self.plateau)}

    def build_training_data_loader(self) -> pytorch.DataLoader:
        return pytorch.DataLoader(Waves(48), batch_size=self.context.get_per_slot_batch_size(), shuffle=True)

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        return pytorch.DataLoader(Waves(30), batch_size=self.context.get_per_slot_batch_size())

    def clip(self, params: Any) -> None:
        torch.nn.utils.clip_grad_value_(params, 1.0)

    def train_batch(self, batch: pytorch.TorchData, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        batch = cast(dict[str, torch.Tensor], batch)
        loss = nn.functional.mse_loss(self.head(self.body(batch["x"])), batch["y"])
        self.context.backward(loss)
        self.context.step_optimizer(self.body_opt, clip_grads=self.clip)
        self.context.step_optimizer(self.head_opt, clip_grads=self.clip)
        return {"mse": loss, "first": batch["name"][0], "epoch_start": self.context.is_epoch_start()}

    def evaluate_batch(self, batch: pytorch.TorchData) -> dict[str, Any]:
        batch = cast(dict[str, torch.Tensor], batch)
        errors = self.head(self.body(batch["x"])) - batch["y"]
        self.worst.update(errors)
        return {"mse": (errors**2).mean()}


def main(epochs: int) -> Any:
    with pytorch.init(hparams={"hidden": 16, "global_batch_size": 8}) as train_context:
        trial = WaveTrial(train_context)
        trainer = pytorch.Trainer(trial, train_context)
        trainer.configure_profiler(enabled=True)
        trainer.fit(
            max_length=pytorch.Epoch(epochs),
            validation_period=pytorch.Epoch(5),
            checkpoint_policy="none",
            checkpoint_period=pytorch.Batch(100),
        )
        return trial
