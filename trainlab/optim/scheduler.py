"""LRScheduler: a torch scheduler together with when it steps."""

import copy
import enum
from collections.abc import Mapping
from typing import Any

import torch

from trainlab.errors import CheckpointMismatchError, InvalidTypeError, InvalidValueError

__all__ = ["LRScheduler"]

# Entries of a torch scheduler's state that hold the states of others: schedulers, or objects that are called.
_NESTED = ("_schedulers", "lr_lambdas", "_scale_fn_custom")


class LRScheduler:
    """A torch learning rate scheduler together with when it steps.

    Args:
        scheduler: a scheduler of ``torch.optim.lr_scheduler``, or a subclass of one; ``ReduceLROnPlateau``
            only with MANUAL_STEP, as it needs a metric.
        step_mode: when it steps.
        frequency: it steps at every so-manieth time, an int ≥ 1. Default 1.

    Attributes:
        scheduler: the torch scheduler.
        step_mode: when it steps.
        frequency: at every how-manieth time.
        optimizer: the optimizer whose rates it sets.

    Raises:
        InvalidTypeError: the scheduler or the mode has the wrong type.
        InvalidValueError: the frequency is no int ≥ 1, or ``ReduceLROnPlateau`` comes with another mode.
    """

    class StepMode(enum.Enum):
        """When a scheduler steps.

        Attributes:
            STEP_EVERY_EPOCH: at the end of an epoch.
            STEP_EVERY_BATCH: after a batch; with gradient accumulation, after the last batch of a group,
                once for each batch of it.
            MANUAL_STEP: only when you call its ``step``.
            STEP_EVERY_OPTIMIZER_STEP: after a step that its optimizer really made.
        """

        STEP_EVERY_EPOCH = 1
        STEP_EVERY_BATCH = 2
        MANUAL_STEP = 3
        STEP_EVERY_OPTIMIZER_STEP = 4

    def __init__(self, scheduler: Any, step_mode: StepMode, frequency: int = 1) -> None:
        if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
            raise InvalidTypeError(
                "A learning rate scheduler must be one of torch.optim.lr_scheduler, or a subclass of one. "
                f"Received: {scheduler!r} ({type(scheduler).__qualname__})."
            )
        modes = self.StepMode
        if not isinstance(step_mode, modes):
            raise InvalidTypeError(
                f"step_mode must be one of {', '.join(f'LRScheduler.{mode}' for mode in modes)}. "
                f"Received: {step_mode!r} ({type(step_mode).__qualname__})."
            )
        if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1:
            raise InvalidValueError(f"frequency must be an int of at least 1. Received: {frequency!r}.")
        plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if plateau and step_mode is not modes.MANUAL_STEP:
            raise InvalidValueError(
                "ReduceLROnPlateau steps on a metric, so it can only be used with LRScheduler.StepMode.MANUAL_STEP. "
                f"Received: {step_mode}. Pass MANUAL_STEP and call its step(metric), for example after a validation."
            )
        self.scheduler: Any = scheduler
        self.step_mode = step_mode
        self.frequency = frequency

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose rates the scheduler sets.

        Returns:
            The torch optimizer.
        """
        optimizer: torch.optim.Optimizer = self.scheduler.optimizer
        return optimizer

    def step(self, *args: Any) -> None:
        """Step the scheduler now, whatever its mode.

        Args:
            *args: what its ``step`` takes: the metric for ``ReduceLROnPlateau``, else nothing.
        """
        self.scheduler.step(*args)

    def get_last_lr(self) -> list[Any]:
        """Give the rates that the scheduler set last.

        Returns:
            A rate for each parameter group.
        """
        rates: list[Any] = self.scheduler.get_last_lr()
        return rates

    def step_after_batch(
        self, *, batches_trained: int, aggregation: int, optimizer_steps_before: int, optimizer_steps_after: int
    ) -> None:
        """Step as often as the mode says after a batch; to be called once ``train_batch`` has returned.

        Args:
            batches_trained: batches of the run so far, this one included.
            aggregation: an optimizer step is possible after every so many batches, an int ≥ 1.
            optimizer_steps_before: steps that the optimizer had really made before this batch.
            optimizer_steps_after: the same after this batch; steps that were skipped count in neither.
        """
        if self.step_mode is self.StepMode.STEP_EVERY_BATCH:
            if batches_trained % aggregation == 0:
                self._step_at_multiples(batches_trained - aggregation, batches_trained)
        elif self.step_mode is self.StepMode.STEP_EVERY_OPTIMIZER_STEP:
            self._step_at_multiples(optimizer_steps_before, optimizer_steps_after)

    def step_after_epoch(self, *, epochs_trained: int, batches_trained: int, aggregation: int) -> None:
        """Step if the mode says so at an epoch's end.

        Args:
            epochs_trained: epochs of the run so far, this one included.
            batches_trained: batches of the run so far.
            aggregation: an optimizer step is possible after every so many batches, an int ≥ 1.
        """
        # Before the first possible optimizer step there is no rate that a scheduler could follow.
        if self.step_mode is self.StepMode.STEP_EVERY_EPOCH and batches_trained >= aggregation:
            self._step_at_multiples(epochs_trained - 1, epochs_trained)

    def state_dict(self) -> dict[str, Any]:
        """Give the scheduler's state as data.

        Returns:
            A dict that shares nothing with the scheduler. Functions are left out, as torch does with those of
            ``LambdaLR``: they come from the program.
        """
        return {
            "type": type(self.scheduler).__qualname__,
            "state": _data_of(self.scheduler.state_dict(), self.scheduler),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; functions stay those of this scheduler.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            CheckpointMismatchError: it is the state of another kind of scheduler.
        """
        here, found = type(self.scheduler).__qualname__, state.get("type")
        if found != here or not isinstance(state.get("state"), Mapping):
            raise CheckpointMismatchError(
                "The saved state of a learning rate scheduler does not fit. "
                f"Expected: {here}. Received: {found!r}. Wrap the same schedulers in the same order."
            )
        nested = len(self.scheduler.state_dict().get("_schedulers", ()))
        if len(state["state"].get("_schedulers", ())) != nested:
            raise CheckpointMismatchError(
                f"The saved {here} combines another number of schedulers. "
                f"Expected: {nested}. Received: {len(state['state'].get('_schedulers', ()))}. Combine the same ones."
            )
        self.scheduler.load_state_dict(copy.deepcopy(dict(state["state"])))

    def _step_at_multiples(self, after: int, until: int) -> None:
        """Step once for each multiple of the frequency in (after, until]."""
        for _ in range(until // self.frequency - after // self.frequency):
            self.scheduler.step()


def _data_of(state: Mapping[str, Any], owner: Any) -> dict[str, Any]:
    data = {key: value for key, value in state.items() if not callable(value)}
    for key in _NESTED:
        inner, owners = data.get(key), getattr(owner, key, None)
        if isinstance(inner, list):
            owners = owners if isinstance(owners, list) else [None] * len(inner)
            data[key] = [_data_of_one(one, its) for one, its in zip(inner, owners, strict=True)]
        elif inner is not None:
            data[key] = _data_of_one(inner, owners)
    return copy.deepcopy(data)


def _data_of_one(state: Any, owner: Any) -> Any:
    if isinstance(owner, type):
        return None  # torch takes what the class defines for the state of the function that it is used as
    return _data_of(state, owner) if isinstance(state, Mapping) else state
