"""OwnLoop: models that ranks share in a loop of the user's own, which calls ``backward`` and ``step`` by itself."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidStateError
from trainlab.parallel.ddp import Replicated
from trainlab.parallel.options import DDPOptions
from trainlab.parallel.replica import Replica
from trainlab.parallel.replication import send_states, users_module

__all__ = ["OwnLoop", "is_replicated"]

# All that share models now: an optimizer may have parameters of several.
_loops: "weakref.WeakSet[OwnLoop]" = weakref.WeakSet()


class _Known(NamedTuple):
    """What is known of an optimizer that has stepped.

    Attributes:
        groups: the number of its groups.
        is_of_loop: whether the loop looks after it.
        not_shared: its parameters that the ranks do not share, frozen ones too, by what to call them.
    """

    groups: int
    is_of_loop: bool
    not_shared: dict[str, torch.Tensor]


class OwnLoop(Replicated):
    """As ``Replicated``, for a loop that tells of nothing: forward passes and optimizers tell where it stands.

    A batch begins with the first forward pass that is trained after a step of an optimizer. Every optimizer that has a
    parameter of the models, wherever it is kept, makes sure that its gradients are those of all ranks. Gradients are
    exchanged in the backward pass that follows a forward pass of the model.

    Args:
        options: of DDP.
        distributed: the ranks, which have a process group.
        device: where this rank computes.
        takes: tells whether an optimizer that has no parameter of the models belongs to the loop too.

    Raises:
        InvalidValueError: SyncBN is asked for on a CPU.
    """

    def __init__(
        self,
        options: DDPOptions,
        distributed: DistributedContext,
        device: torch.device,
        takes: Callable[[torch.optim.Optimizer], bool],
    ) -> None:
        super().__init__(options, distributed, device)
        self._stage.begin = self._begin
        self._has_stepped = True
        self._takes = takes
        # Models that are shared by others than this, or were sent.
        self._shared_elsewhere: list[nn.Module] = []
        self._sent: list[nn.Module] = []
        self._known: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Known] = weakref.WeakKeyDictionary()
        _loops.add(self)
        self._stop_watching = weakref.finalize(self, _remove, _watch(self))
        self._stop_watching.atexit = False

    def note_shared(self, model: nn.Module) -> None:
        """Take in that the ranks share a model already, whose gradients are somebody else's care.

        Args:
            model: the model.
        """
        self._shared_elsewhere.append(model)

    def send(self, model: nn.Module) -> None:
        """Give all ranks rank 0's weights and buffers of a model that is not trained; all ranks call it.

        Args:
            model: the model, alike on all ranks.
        """
        self._sent.append(model)
        send_states([model], self._group)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make sure that gradients are those of all ranks; see ``Parallel.before_step``."""
        if self._is_of_loop(optimizer):
            self._refuse_alone(optimizer)
            super().before_step(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take in that an optimizer has stepped.

        Args:
            optimizer: any optimizer.

        Raises:
            InvalidStateError: gradients that a closure computed inside of the step were not exchanged.
        """
        if self._is_of_loop(optimizer):
            super().before_step(optimizer)
            self._has_stepped = True

    def close(self) -> None:
        """Give models and optimizers back as they were; see ``Parallel.close``."""
        self._stop_watching()
        _loops.discard(self)
        super().close()

    def _begin(self) -> None:
        if self._has_stepped:
            self._has_stepped = False
            self.begin_batch(True)

    def _refuse_alone(self, optimizer: torch.optim.Optimizer) -> None:
        alone = [told for told, parameter in self._known[optimizer].not_shared.items() if parameter.requires_grad]
        if alone:
            raise InvalidStateError(
                f"This {type(optimizer).__qualname__} trains parameters that the ranks do not share, so that they "
                f"would grow apart: {', '.join(alone[:5])}{' and more' if len(alone) > 5 else ''}. Put them into a "
                "module that is in the context when ddp() is called, or call ddp() again."
            )

    def _is_of_loop(self, optimizer: torch.optim.Optimizer) -> bool:
        # Groups may be added later.
        groups = len(optimizer.param_groups)
        known = self._known.get(optimizer)
        if known is None or known.groups != groups:
            models = _parameters([*self._models, *self._shared_elsewhere, *self._sent])
            is_of_loop = any(id(one) in models for one in _owned(optimizer)) or self._takes(optimizer)
            # It is by address, and may be of one that is gone.
            self._of_optimizer.pop(id(optimizer), None)
            known = self._known[optimizer] = _Known(groups, is_of_loop, _not_shared(optimizer) if is_of_loop else {})
        return known.is_of_loop


def is_replicated(model: nn.Module) -> bool:
    """Tell whether ranks share a module already.

    Args:
        model: the module.
    """
    return isinstance(model._compiled_call_impl, Replica)


def _watch(loop: OwnLoop) -> list[Any]:
    """Hooks on all optimizers of the process, which do not keep the loop alive."""
    place = weakref.ref(loop)

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if (here := place()) is not None:
            here.before_step(optimizer)

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if (here := place()) is not None:
            here.after_step(optimizer)

    return [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()


def _parameters(models: list[nn.Module]) -> set[int]:
    return {id(parameter) for model in models for parameter in users_module(model).parameters()}


def _owned(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _not_shared(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    shared = _parameters([model for loop in _loops for model in (*loop._models, *loop._shared_elsewhere)])
    return {
        f"number {number} of group {index}, of shape {tuple(parameter.shape)}": parameter
        for index, group in enumerate(optimizer.param_groups)
        for number, parameter in enumerate(group["params"])
        if id(parameter) not in shared
    }
