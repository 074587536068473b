"""Optimizers and their schedulers: when a scheduler steps, averaged gradients, exact state."""

from trainlab.optim.accumulation import average_gradients
from trainlab.optim.scheduler import LRScheduler
from trainlab.optim.state import (
    check_optimizer_state,
    describe_lrs,
    load_optimizer_state,
    optimizer_state_dict,
    owned_parameters,
)

__all__ = [
    "LRScheduler",
    "average_gradients",
    "check_optimizer_state",
    "describe_lrs",
    "load_optimizer_state",
    "optimizer_state_dict",
    "owned_parameters",
]
