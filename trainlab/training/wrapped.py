"""What a context wraps: models under names, optimizers and schedulers with what trainlab keeps about them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from trainlab.errors import InvalidValueError
from trainlab.optim import LRScheduler

__all__ = ["WrappedOptimizer", "WrappedScheduler", "checked_name"]


@dataclass(eq=False)
class WrappedOptimizer:
    """An optimizer and what trainlab keeps about it."""

    name: str
    optimizer: torch.optim.Optimizer
    divides: bool
    zeroes_itself: bool


@dataclass(eq=False)
class WrappedScheduler:
    """A scheduler, its optimizer's name, and that optimizer's step count when it was last asked."""

    scheduler: LRScheduler
    optimizer_name: str
    steps_seen: int = field(default=0)


def checked_name(name: str, taken: Iterable[str], what: str) -> str:
    """Refuse a name that cannot stand in a checkpoint, or is taken.

    Args:
        name: the name.
        taken: those that are.
        what: what is named.

    Returns:
        The name.

    Raises:
        InvalidValueError: it cannot be used.
    """
    if not isinstance(name, str) or not name or any(c in name for c in "/\\.\0"):
        raise InvalidValueError(f"The name of a {what} must be text without '/', '\\' and '.'. Received: {name!r}.")
    if name in taken:
        raise InvalidValueError(f"Two {what}s have the name {name!r}. Give each its own.")
    return name
