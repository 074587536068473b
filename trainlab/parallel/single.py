"""Parallel: what a run asks of the way in which ranks share a model; with one rank there is nothing to share."""

import contextlib

import torch
from torch import nn

__all__ = ["Parallel"]


class Parallel:
    """One process without a group: every call gives back what it is given, or does nothing.

    Attributes:
        name: "single", "ddp" or "fsdp".
        shards: whether parameters are DTensors, of which each rank has a part.
        collective_forward: whether a forward pass waits for the other ranks, so that all have to make it.
    """

    name = "single"
    shards = False
    collective_forward = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Take a model in, on its device and before its optimizers are made.

        Args:
            model: the module; may be the result of ``torch.compile``.

        Returns:
            The same object, which is what the user calls.

        Raises:
            InvalidStateError, InvalidValueError: the ranks cannot share it so; the message says what to set.
            DisagreementError: the ranks have different models.
        """
        return model

    def add_optimizer(self, optimizer: torch.optim.Optimizer, passes: int) -> None:
        """Take an optimizer in, over parameters of wrapped models.

        Args:
            optimizer: the optimizer.
            passes: so many backward passes belong to one step of it in a batch; gradients are exchanged in the last.

        Raises:
            InvalidValueError: it cannot work with parameters that are shared so.
        """

    def start(self) -> None:
        """Begin: the models get rank 0's weights and buffers. A second call does nothing.

        Gradients that are there are kept as this rank's own, not yet exchanged.

        Raises:
            InvalidStateError, InvalidValueError: the ranks cannot share a model so; the message says what to set.
            DisagreementError: the ranks have different models.
        """

    def begin_batch(self, reduces: bool) -> None:
        """Begin a batch.

        Args:
            reduces: whether gradients are exchanged in it; False for the batches of an accumulation but the last.
        """

    def before_backward(self, loss: torch.Tensor) -> None:
        """Make ready for a backward pass.

        Args:
            loss: the tensor whose ``backward`` is called next.
        """

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make sure that the gradients of an optimizer are those of all ranks.

        Args:
            optimizer: the optimizer that is about to step; not yet clipped.

        Raises:
            InvalidStateError: some gradients were not exchanged; the message says which and what to do.
        """

    def translate(self, error: BaseException) -> BaseException:
        """Tell an error of torch's in the words of trainlab.

        Args:
            error: any exception of a forward or backward pass or a step.

        Returns:
            An error that says what to do, to be raised from the given one; the given one itself if nothing is known
            about it.
        """
        return error

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """Give a block in which models are evaluated: with rank 0's buffers, and without an exchange of gradients.

        All ranks enter it together.

        Returns:
            A context manager.
        """
        return contextlib.nullcontext()

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Average a value over the ranks; all ranks call it.

        Args:
            value: of the same shape on all ranks, floating point.

        Returns:
            The mean, detached.
        """
        return value

    def close(self) -> None:
        """Give the models back as they were; sharded ones stay so, and cannot be called without the other ranks."""
