"""Small Trials that the tests of training share."""

from typing import Any

import torch
from torch import nn

import trainlab

RECORDS = 64
BATCH = 4


def line(records: int = RECORDS) -> torch.utils.data.TensorDataset:
    """Records of y = 2x + 1 with a little noise, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(records, 1, generator=generator)
    return torch.utils.data.TensorDataset(x, 2 * x + 1 + 0.1 * torch.randn(records, 1, generator=generator))


class LineTrial(trainlab.Trial):
    """Linear regression in the declarative style, that remembers which batches it trained."""

    records = RECORDS
    shuffle = True

    def __init__(self, context: trainlab.TrialContext) -> None:
        self.seen: list[tuple[int, int]] = []
        self.inputs: list[torch.Tensor] = []
        self.callbacks: dict[str, trainlab.Callback] = {}
        super().__init__(context)

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.05)

    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(line(self.records), batch_size=BATCH, shuffle=self.shuffle)

    def build_validation_data_loader(self) -> Any:
        return trainlab.DataLoader(line(), batch_size=16)

    def build_callbacks(self) -> dict[str, trainlab.Callback]:
        return self.callbacks

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        self.seen.append((epoch_idx, batch_idx))
        x, y = batch
        self.inputs.append(x)
        loss = nn.functional.mse_loss(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        return {"loss": nn.functional.mse_loss(self.model(x), y)}


class HandWrittenTrial(trainlab.Trial):
    """The same with an __init__ of its own that wraps everything itself."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        self.context = context
        self.model = context.wrap_model(nn.Linear(1, 1))
        self.optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=0.1))

    build_training_data_loader = LineTrial.build_training_data_loader
    build_validation_data_loader = LineTrial.build_validation_data_loader
    evaluate_batch = LineTrial.evaluate_batch
    records = RECORDS
    shuffle = False

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return loss


def weights(trial: Any) -> dict[str, bytes]:
    """The bytes of every entry of a Trial's model."""
    return {key: value.numpy().tobytes() for key, value in trial.model.state_dict().items()}
