"""Replicated: every rank has the whole model, and gradients are averaged by DDP."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.parallel.options import DDPOptions
from trainlab.parallel.replica import Replica, Stage
from trainlab.parallel.replication import (
    Buffers,
    average,
    check_initialized,
    check_same,
    send_states,
    users_module,
)
from trainlab.parallel.single import Parallel

__all__ = ["Replicated"]


class Replicated(Parallel):
    """Each rank has the whole model; gradients are averaged while the backward pass computes them.

    A gradient is exchanged in whichever backward pass it comes about, if it is begun by ``before_backward``: also when
    a part or a method of the model was called, or two losses follow one forward pass.

    Args:
        options: of DDP.
        distributed: the ranks, which have a process group.
        device: where this rank computes.

    Raises:
        InvalidValueError: SyncBN is asked for on a CPU.
    """

    name = "ddp"

    def __init__(self, options: DDPOptions, distributed: DistributedContext, device: torch.device) -> None:
        if options.sync_batchnorm and device.type == "cpu":
            raise InvalidValueError(
                "torch's SyncBatchNorm works on GPUs only. Received: sync_batchnorm=True on a CPU. Leave it out, or "
                "use a layer that does not look at the batch, such as GroupNorm."
            )
        self._options = options
        self._distributed = distributed
        self._group = distributed.process_group
        self._stage = Stage()
        self._models: list[nn.Module] = []
        self._optimizers: list[tuple[torch.optim.Optimizer, int]] = []
        self._replicas: list[Replica] = []
        self._of_optimizer: dict[int, tuple[int, list[Replica]]] = {}
        self._buffers: Buffers | None = None
        # Whether the batch is the first of a group whose gradients are added up.
        self._begins_group = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Take a model in; see ``Parallel.wrap``."""
        inner = users_module(model)
        if isinstance(model, torch.jit.ScriptModule):
            raise InvalidTypeError(
                f"A TorchScript module cannot be trained by several ranks. Received: {type(model).__qualname__}. "
                "Wrap the module that it was made of, or the result of torch.compile."
            )
        check_initialized(inner)
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        if self._options.sync_batchnorm and convert(inner) is not inner:
            raise InvalidValueError(
                f"A BatchNorm layer that is the model itself cannot become a SyncBatchNorm in place. Received: "
                f"{type(inner).__qualname__} with sync_batchnorm=True. Put it into a module of yours."
            )
        self._models.append(model)
        return model

    def add_optimizer(self, optimizer: torch.optim.Optimizer, passes: int) -> None:
        """Take an optimizer in; see ``Parallel.add_optimizer``."""
        self._optimizers.append((optimizer, passes))

    def start(self) -> None:
        """Begin; see ``Parallel.start``."""
        if self._buffers is not None:
            return
        check_same(self._models, self._distributed)
        self._check_apart()
        self._buffers = Buffers(self._models, self._group)
        for number, model in enumerate(self._models):
            if any(parameter.requires_grad for parameter in model.parameters()):
                self._replicas.append(Replica(str(number), model, self._options, self._stage))
            else:
                send_states([model], self._group)
        for optimizer, passes in self._optimizers:
            for replica in self._replicas_of(optimizer):
                # What belongs to two optimizers is exchanged as often as one of them needs it.
                replica.passes = passes if replica.passes == 1 else min(passes, replica.passes)

    def begin_batch(self, reduces: bool) -> None:
        """Begin a batch; see ``Parallel.begin_batch``."""
        if not (reduces and self._begins_group):
            for replica in self._replicas:
                replica.done = 0
        self._stage.reduces = reduces
        for replica in self._replicas:
            replica.follow()
        if self._begins_group and self._buffers is not None and self._options.broadcast_buffers:
            self._buffers.send()
        self._begins_group = reduces

    def before_backward(self, loss: torch.Tensor) -> None:
        """Make ready for a backward pass; see ``Parallel.before_backward``."""
        for replica in self._replicas:
            replica.arm(loss)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make sure that gradients are those of all ranks; see ``Parallel.before_step``."""
        for replica in self._replicas_of(optimizer):
            replica.check_exchanged()

    def translate(self, error: BaseException) -> BaseException:
        """Tell an error of torch's in the words of trainlab; see ``Parallel.translate``."""
        for replica in self._replicas:
            told = replica.translate(error)
            if told is not error:
                return told
        return error

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Give a block in which models are evaluated; see ``Parallel.evaluating``."""
        if self._buffers is not None:
            self._buffers.send()
        before, self._stage.is_evaluating = self._stage.is_evaluating, True
        try:
            yield
        finally:
            self._stage.is_evaluating = before

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Average a value over the ranks; see ``Parallel.average``."""
        return average(value, self._group)

    def close(self) -> None:
        """Give the models back as they were; see ``Parallel.close``."""
        for replica in self._replicas:
            replica.release()
        self._replicas, self._of_optimizer, self._buffers = [], {}, None

    def _check_apart(self) -> None:
        """Refuse a trained parameter of two models: each would exchange its gradient."""
        seen: dict[int, int] = {}
        for number, model in enumerate(self._models):
            for name, parameter in users_module(model).named_parameters():
                other = seen.setdefault(id(parameter), number)
                if other != number and parameter.requires_grad:
                    raise InvalidStateError(
                        f"Two wrapped models share parameters, so that their gradients would be exchanged twice. "
                        f"Received: {name} of model {number}, which is in model {other} too. Wrap one module that "
                        "holds both, and call its parts."
                    )

    def _replicas_of(self, optimizer: torch.optim.Optimizer) -> list[Replica]:
        # Groups may be added later.
        groups = len(optimizer.param_groups)
        known = self._of_optimizer.get(id(optimizer))
        if known is None or known[0] != groups:
            own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            known = groups, [replica for replica in self._replicas if own & replica.owns()]
            self._of_optimizer[id(optimizer)] = known
        return known[1]
