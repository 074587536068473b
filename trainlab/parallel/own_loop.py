"""OwnLoop: models that ranks share in a loop of the user's own, which calls ``backward`` and ``step`` by itself."""

from typing import Any

import torch
from torch import nn

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidStateError
from trainlab.parallel.ddp import Replicated
from trainlab.parallel.options import DDPOptions
from trainlab.parallel.replica import Replica
from trainlab.parallel.replication import send_states, users_module

__all__ = ["OwnLoop", "is_replicated"]


class OwnLoop(Replicated):
    """As ``Replicated``, for a loop that tells of nothing: forward passes and optimizers tell where it stands.

    A batch begins with the first forward pass that is trained after a step of an optimizer that was added. Gradients
    are exchanged in the backward pass that follows a forward pass of the model.

    Args:
        options: of DDP.
        distributed: the ranks, which have a process group.
        device: where this rank computes.

    Raises:
        InvalidValueError: SyncBN is asked for on a CPU.
    """

    def __init__(self, options: DDPOptions, distributed: DistributedContext, device: torch.device) -> None:
        super().__init__(options, distributed, device)
        self._stage.begin = self._begin
        self._has_stepped = True
        self._hooks: list[Any] = []
        # Of each optimizer the number of groups of which all parameters were found in the models.
        self._known_groups: dict[int, int] = {}

    def add_optimizer(self, optimizer: torch.optim.Optimizer, passes: int = 1) -> None:
        """Take an optimizer in: each step of it makes sure first that its gradients are those of all ranks.

        Args:
            optimizer: the optimizer.
            passes: not used: a loop may make as many backward passes before a step as it likes.
        """
        if any(optimizer is other for other, _ in self._optimizers):
            return
        super().add_optimizer(optimizer, 1)
        self._hooks.append(optimizer.register_step_pre_hook(lambda stepped, *_: self.before_step(stepped)))
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._note_step()))

    def send(self, model: nn.Module) -> None:
        """Give all ranks rank 0's weights and buffers of a model that is not trained; all ranks call it.

        Args:
            model: the model, alike on all ranks.
        """
        send_states([model], self._group)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make sure that gradients are those of all ranks; see ``Parallel.before_step``."""
        if self._known_groups.get(id(optimizer)) != len(optimizer.param_groups):
            self._check_shared(optimizer)
            self._known_groups[id(optimizer)] = len(optimizer.param_groups)
        super().before_step(optimizer)

    def close(self) -> None:
        """Give models and optimizers back as they were; see ``Parallel.close``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        super().close()

    def _begin(self) -> None:
        if self._has_stepped:
            self._has_stepped = False
            self.begin_batch(True)

    def _note_step(self) -> None:
        self._has_stepped = True

    def _check_shared(self, optimizer: torch.optim.Optimizer) -> None:
        shared = {id(parameter) for model in self._models for parameter in users_module(model).parameters()}
        alone = [
            f"number {number} of group {index}, of shape {tuple(parameter.shape)}"
            for index, group in enumerate(optimizer.param_groups)
            for number, parameter in enumerate(group["params"])
            if parameter.requires_grad and id(parameter) not in shared
        ]
        if alone:
            raise InvalidStateError(
                f"This {type(optimizer).__qualname__} trains parameters that the ranks do not share, so that they "
                f"would grow apart: {', '.join(alone[:5])}{' and more' if len(alone) > 5 else ''}. Put them into a "
                "module that is in the context when ddp() is called, or call ddp() again."
            )


def is_replicated(model: nn.Module) -> bool:
    """Tell whether ranks share a module already.

    Args:
        model: the module.
    """
    return isinstance(model._compiled_call_impl, Replica)
