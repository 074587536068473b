"""Job: what a TrialContext does with Parallel in each batch, and little else, to train a model on the ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from trainlab.parallel import Parallel
from trainlab.precision import Precision

RECORDS = 12


class Job:
    """A run on one rank.

    Args:
        parallel: how models are shared.
        rank: of this process.
        size: number of processes.
        accumulation: so many batches belong to a step.
    """

    def __init__(self, parallel: Parallel, rank: int, size: int, accumulation: int = 1) -> None:
        self.parallel, self.rank, self.size = parallel, rank, size
        self.accumulation = accumulation
        self.batches_trained = 0
        self.scaler: torch.amp.GradScaler | None = None

    def wrap(self, model: Any) -> Any:
        return self.parallel.wrap(model)

    def wrap_precise(self, model: Any, name: str) -> Any:
        """As `wrap`, with forward passes in a precision of trainlab's."""
        model = self.parallel.wrap(model)
        precision = Precision(name, torch.device("cpu"))
        precision.attach(model)
        self.scaler = precision.scaler
        return model

    def optimizer(self, *models: nn.Module, kind: Any = torch.optim.SGD, passes: int = 1, **options: Any) -> Any:
        options = options or {"lr": 0.1}
        made = kind([p for model in models for p in model.parameters() if p.requires_grad], **options)
        self.parallel.add_optimizer(made, passes)
        return made

    def start(self) -> None:
        self.parallel.start()

    def batches(self, number: int, of: Callable[[int], torch.Tensor] | None = None) -> Iterator[torch.Tensor]:
        """Give this rank's piece of each global batch, with the begin and the end of the batch around it."""
        for _ in range(number):
            self.parallel.begin_batch(reduces=(self.batches_trained + 1) % self.accumulation == 0)
            yield self.piece((of or records)(self.batches_trained))
            self.batches_trained += 1

    def piece(self, whole: torch.Tensor) -> torch.Tensor:
        length = len(whole) // self.size
        return whole[self.rank * length : (self.rank + 1) * length]

    def backward(self, loss: torch.Tensor, **options: Any) -> None:
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        self.parallel.before_backward(loss)
        try:
            loss.backward(**options)
        except RuntimeError as error:
            raise self.parallel.translate(error) from error

    def step(self, optimizer: Any, clip: Callable[[Any], Any] | None = None, zeroes: bool = True) -> None:
        if (self.batches_trained + 1) % self.accumulation:
            return
        self.parallel.before_step(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= self.accumulation
        if clip is not None:
            clip(parameters)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        if zeroes:
            optimizer.zero_grad()


def records(batch: int, width: int = 4) -> torch.Tensor:
    """A global batch."""
    return torch.randn(RECORDS, width, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, of which this rank may have a part."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def weights(*models: nn.Module) -> list[torch.Tensor]:
    """All parameters and buffers."""
    return [whole(tensor) for model in models for tensor in (*model.parameters(), *model.buffers())]


def mlp(seed: int = 0, width: int = 4, out: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, out)).double()
