"""Contexts, and what the tests put into them."""

import enum
import math
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel

from trainlab import ContextObject, Counter
from trainlab.checkpoint import register_class


@register_class
class Phase(enum.Enum):
    WARM = 1
    HOT = 2


class Fussy:
    """Takes no state but its own; remembers what it was given."""

    def __init__(self, value: int = 0, refuses: bool = False) -> None:
        self.value, self.refuses = value, refuses

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.refuses:
            raise KeyError("not mine")
        self.value = state["value"]


class Versioned(nn.Linear):
    """A module that takes only its own version, as a saved tokenizer or a quantized layer does."""

    def __init__(self, version: int) -> None:
        super().__init__(1, 1)
        self.version = version

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if state["version"] != self.version:
            raise ValueError("another version")


def make(seed: int, **more: Any) -> ContextObject:
    torch.manual_seed(seed)
    ctx = ContextObject()
    ctx.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    ctx.optimizer = torch.optim.Adam(ctx.model.parameters(), lr=0.1)
    ctx.scheduler = torch.optim.lr_scheduler.StepLR(ctx.optimizer, 2)
    ctx.ema = AveragedModel(ctx.model)
    ctx.scaler = torch.amp.GradScaler("cpu", init_scale=8.0 + seed)
    ctx.counter = Counter(seed)
    ctx.loss = nn.functional.mse_loss
    ctx.epoch, ctx.best = seed, None
    ctx.parts = {"heads": [nn.Linear(2, 2), nn.Linear(2, 3)], "names": ["a", "b"]}
    for name, value in more.items():
        setattr(ctx, name, value)
    return ctx


def train(ctx: ContextObject, steps: int) -> None:
    for _ in range(steps):
        loss = ctx.loss(ctx.model(torch.randn(8, 3)), torch.ones(8, 1))
        loss.backward()
        ctx.optimizer.step()
        ctx.optimizer.zero_grad()
        ctx.scheduler.step()
        ctx.ema.update_parameters(ctx.model)
        ctx.counter.step()


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, types and all."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


SCHEDULERS: dict[str, Any] = {
    "step": lambda o: schedulers.StepLR(o, 3),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.5),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
    "sequence": lambda o: schedulers.SequentialLR(o, [schedulers.LinearLR(o), schedulers.StepLR(o, 3)], [2]),
    "other sequence": lambda o: schedulers.SequentialLR(o, [schedulers.LinearLR(o), schedulers.LinearLR(o)], [2]),
    "chain": lambda o: schedulers.ChainedScheduler([schedulers.StepLR(o, 3)], o),
    "scaler": lambda o: torch.amp.GradScaler("cpu"),
}


def scheduled(kind: str) -> ContextObject:
    ctx = ContextObject(optimizer=torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))
    ctx.scheduler = SCHEDULERS[kind](ctx.optimizer)
    return ctx


def copied(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return type(state)((key, copied(value)) for key, value in state.items())
    return type(state)(map(copied, state)) if isinstance(state, list | tuple) else state
