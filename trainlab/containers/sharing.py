"""What the ranks share of a context, in the way in which a Trainer's do."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from trainlab.containers.holder import Holder
from trainlab.distributed import init_distributed, is_distributed
from trainlab.errors import InvalidStateError
from trainlab.parallel import DDPOptions, is_replicated, users_module
from trainlab.parallel.own_loop import OwnLoop

__all__ = ["Shared"]


class Shared:
    """The modules and optimizers of a container, shared among the ranks. All ranks make it together.

    Args:
        container: whose.
        options: of DDP.

    Attributes:
        options: those.

    Raises:
        InvalidStateError: there is no process group, or a module cannot be shared.
        DisagreementError: the ranks have different modules.
    """

    def __init__(self, container: Holder, options: DDPOptions) -> None:
        if not is_distributed():
            raise InvalidStateError(
                "ddp() shares modules among ranks, and no process group is open. Start the ranks with --distributed, "
                "torchrun or trainlab.launch, and call trainlab.distributed.init_distributed() first (an experiment "
                "with --distributed does)."
            )
        self.options = options
        found = list(_flat(container))
        distributed = init_distributed()
        shared, trained, others = _modules(found)
        # Not the container itself: modules that are shared keep the loop alive, and would keep all else.
        place = weakref.ref(container)
        self._loop = OwnLoop(options, distributed, _device_of([*trained, *others]), lambda one: _is_in(one, place()))
        for module in shared:
            self._loop.note_shared(module)
        for module in trained:
            self._loop.wrap(module)
        self._loop.start()
        for module in others:
            self._loop.send(module)

    def close(self) -> None:
        """Give modules and optimizers back as they were."""
        self._loop.close()


def _flat(container: Holder) -> Iterator[Any]:
    """Everything that is not a container, each once."""
    seen: set[int] = set()
    waiting: list[Any] = [container]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Holder):
            waiting += [value._parts[key] for key in reversed(list(value._keys()))]
        elif type(value) is tuple:
            waiting += reversed(value)
        else:
            yield value


def _is_in(optimizer: torch.optim.Optimizer, container: Holder | None) -> bool:
    return container is not None and any(one is optimizer for one in _flat(container))


def _modules(found: list[Any]) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """The modules that ranks share already, those that are trained, and those that only are the same on all ranks.

    A part of another module is shared with it, and a module with what ``torch.compile`` has made of it; an average of
    a model is never trained.
    """
    modules = [one for one in found if isinstance(one, nn.Module)]
    shared = [one for one in modules if _is_shared(one)]
    parts = {id(part) for one in modules for part in users_module(one).modules() if part is not users_module(one)}
    parts |= {id(users_module(one)) for one in shared}
    # The compiled one of two comes last, and stays.
    whole = {id(users_module(one)): one for one in sorted(modules, key=lambda one: users_module(one) is not one)}
    apart = [one for key, one in whole.items() if key not in parts]
    trained = [one for one in apart if _is_trained(one)]
    return shared, trained, [one for one in apart if not _is_trained(one)]


def _is_shared(module: nn.Module) -> bool:
    own = users_module(module)
    return isinstance(own, DistributedDataParallel) or is_replicated(module) or is_replicated(own)


def _is_trained(module: nn.Module) -> bool:
    if isinstance(module, AveragedModel):
        return False
    return any(parameter.requires_grad for parameter in module.parameters())


def _device_of(modules: list[nn.Module]) -> torch.device:
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
