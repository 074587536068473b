"""Sharded: every rank has a part of each parameter, by FSDP2."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.parallel.options import FSDPOptions
from trainlab.parallel.replication import (
    Buffers,
    average,
    check_initialized,
    check_same,
    send_states,
    users_module,
)
from trainlab.parallel.single import Parallel

__all__ = ["Sharded"]


class Sharded(Parallel):
    """Each rank has a part of each parameter, of its gradient and of its optimizer state, as DTensors.

    A model is gathered for its forward and backward pass, part by part where ``FSDPOptions.wrap`` says so. Gradients
    are exchanged in each backward pass of a batch that reduces, whatever number of them belongs to a step.

    Args:
        options: of FSDP2.
        distributed: the ranks, which have a process group.
        device: where this rank computes.

    Raises:
        InvalidValueError: the numbers of ranks do not fit each other, or this torch cannot shard on a CPU.
    """

    name = "fsdp"
    shards = True
    collective_forward = True

    def __init__(self, options: FSDPOptions, distributed: DistributedContext, device: torch.device) -> None:
        if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise InvalidValueError(
                f"This torch can shard models on GPUs only. Received: parallel='fsdp' on a CPU, torch "
                f"{torch.__version__}. Update torch, or set parallel='ddp'."
            )
        size = distributed.size
        shard_size = options.shard_size or size
        if size % shard_size:
            raise InvalidValueError(
                f"shard_size must divide the number of ranks. Received: shard_size={shard_size} of {size} ranks."
            )
        parts = options.reshard_after_forward
        if not isinstance(parts, bool) and (parts >= shard_size or shard_size % parts):
            raise InvalidValueError(
                f"reshard_after_forward must divide the number of ranks that share a model and be less. Received: "
                f"reshard_after_forward={parts}, {shard_size} ranks. Pass True to keep one part a rank."
            )
        self._options = options
        self._distributed = distributed
        self._device = device
        self._group = distributed.process_group
        self._mesh: Any = None
        self._models: list[nn.Module] = []
        self._found: set[type[nn.Module]] = set()
        self._buffers: Buffers | None = None
        self._reduces = True
        self._begins_group = True
        # Whether models may hold gradients that were not exchanged.
        self._accumulates = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Take a model in; see ``Parallel.wrap``."""
        inner = users_module(model)
        _check_kind(inner)
        check_initialized(inner)
        owners = self._owners(inner)
        check_same([inner], self._distributed)
        send_states([inner], self._group)
        self._shard(inner, owners)
        self._models.append(inner)
        return model

    def add_optimizer(self, optimizer: torch.optim.Optimizer, passes: int) -> None:
        """Take an optimizer in; see ``Parallel.add_optimizer``."""
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InvalidValueError(
                "LBFGS looks at all parameters as one vector, which sharded ones are not. Received: LBFGS with "
                "parallel='fsdp'. Set parallel='ddp'."
            )

    def start(self) -> None:
        """Begin; see ``Parallel.start``."""
        if self._buffers is not None:
            return
        missing = [kind for kind in self._options.wrap if kind not in self._found]
        if missing and self._models:
            raise InvalidValueError(
                f"FSDPOptions.wrap names classes that no wrapped model has a module of. Received: "
                f"{', '.join(kind.__qualname__ for kind in missing)}. Name the class of the repeated part of the "
                "model, such as a transformer's block."
            )
        self._refuse_unsharded()
        self._buffers = Buffers(self._models, self._group)
        self._buffers.send()

    def begin_batch(self, reduces: bool) -> None:
        """Begin a batch; see ``Parallel.begin_batch``."""
        if reduces is not self._reduces:
            for model in self._models:
                model.set_requires_gradient_sync(reduces)  # type: ignore[operator]
            self._reduces = reduces
        if self._begins_group and self._buffers is not None:
            self._buffers.send()
        self._begins_group = reduces

    def before_backward(self, loss: torch.Tensor) -> None:
        """Make ready for a backward pass; see ``Parallel.before_backward``."""
        self._accumulates |= not self._reduces

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make sure that gradients are those of all ranks; see ``Parallel.before_step``."""
        if self._accumulates:
            self._refuse_local({id(parameter) for group in optimizer.param_groups for parameter in group["params"]})
        self._reshard()

    def translate(self, error: BaseException) -> BaseException:
        """Tell an error of torch's in the words of trainlab; see ``Parallel.translate``."""
        text = str(error)
        if "storage of size 0" in text:
            return InvalidStateError(
                "A backward pass needs parameters that were given up after an earlier one, as a gradient of a gradient "
                f"does; sharded models cannot be trained so. Set parallel='ddp'. torch says: {text}"
            )
        if "mixed torch.Tensor and DTensor" in text or "through the root module first" in text:
            return InvalidStateError(
                "A part, a method or a parameter of a sharded model was used past the model itself, which gathers its "
                f"parameters for a forward pass. Call the model, and choose inside its forward what it does. torch "
                f"says: {text}"
            )
        return error

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Give a block in which models are evaluated; see ``Parallel.evaluating``."""
        if self._buffers is not None:
            self._buffers.send()
        try:
            yield
        finally:
            self._reshard()

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Average a value over the ranks; see ``Parallel.average``."""
        return average(value, self._group)

    # -- inner parts -------------------------------------------------------------------------

    def _owners(self, inner: nn.Module) -> list[nn.Module]:
        """Find the modules that are gathered by themselves, parts before what they are parts of.

        Raises:
            InvalidValueError: a parameter is in two of them.
        """
        owners = [part for part in inner.modules() if part is inner or isinstance(part, self._options.wrap)]
        paths = {path: part for path, part in inner.named_modules(remove_duplicate=False) if part in set(owners)}
        seen: dict[int, tuple[str, nn.Module]] = {}
        for name, parameter in inner.named_parameters(remove_duplicate=False):
            path = name.rpartition(".")[0]
            while path not in paths:
                path = path.rpartition(".")[0]
            other, owner = seen.setdefault(id(parameter), (name, paths[path]))
            if owner is not paths[path]:
                raise InvalidValueError(
                    f"A tied parameter cannot be in two parts of a model that are sharded apart: they would no longer "
                    f"be one. Received: {other} and {name}. Leave the class of one of these parts out of "
                    "FSDPOptions.wrap."
                )
        return owners[::-1]

    def _shard(self, inner: nn.Module, owners: list[nn.Module]) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        options = self._options
        # On a CPU the parameters are in the host's memory as they are.
        offloads = options.cpu_offload and self._device.type != "cpu"
        self._found.update(kind for kind in options.wrap for part in owners if isinstance(part, kind))
        for part in owners:
            fully_shard(
                part,
                mesh=self._ranks(),
                reshard_after_forward=options.reshard_after_forward,
                mp_policy=MixedPrecisionPolicy(
                    param_dtype=options.param_dtype,  # type: ignore[arg-type]
                    reduce_dtype=options.reduce_dtype,  # type: ignore[arg-type]
                ),
                offload_policy=CPUOffloadPolicy() if offloads else OffloadPolicy(),
            )

    def _refuse_unsharded(self) -> None:
        """Refuse trained parameters that came into a model after it was wrapped: each rank would train its own."""
        from torch.distributed.tensor import DTensor

        for model in self._models:
            late = [n for n, p in model.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
            if late:
                raise InvalidStateError(
                    f"Parameters of a {type(model).__qualname__} came into it after it was wrapped, and are not "
                    f"sharded: {', '.join(late[:5])}. Call wrap_model when the model is complete."
                )

    def _ranks(self) -> Any:
        if self._mesh is None:
            from torch.distributed.device_mesh import init_device_mesh

            size, shard_size = self._distributed.size, self._options.shard_size
            if shard_size is None or shard_size == size:
                self._mesh = init_device_mesh(self._device.type, (size,), mesh_dim_names=("shard",))
            else:
                shape = (size // shard_size, shard_size)
                self._mesh = init_device_mesh(self._device.type, shape, mesh_dim_names=("data", "shard"))
        return self._mesh

    def _parts(self) -> Iterator[Any]:
        from torch.distributed.fsdp import FSDPModule

        return (part for model in self._models for part in model.modules() if isinstance(part, FSDPModule))

    def _reshard(self) -> None:
        """Give up what a forward pass has gathered and left so: it would be used after a step, too."""
        if self._options.reshard_after_forward is not True:
            for part in self._parts():
                part.reshard()

    def _refuse_local(self, own: set[int]) -> None:
        """Refuse a step while gradients of an accumulation wait inside FSDP for an exchange that did not come.

        Args:
            own: the identities of the parameters that are to be stepped.
        """
        for part in self._parts():
            state = part._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            for parameter in (parameter for group in groups if group is not None for parameter in group.fsdp_params):
                if id(parameter.sharded_param) not in own:
                    continue
                whole = getattr(parameter, "_unsharded_param", None)
                if parameter.unsharded_accumulated_grad is not None or (whole is not None and whole.grad is not None):
                    raise InvalidStateError(
                        f"Gradients of a {type(part).__qualname__} were added up and not exchanged, so that this step "
                        "would not use them. With aggregation_frequency each model must be in a backward pass of the "
                        "last batch of a group."
                    )


def _check_kind(inner: nn.Module) -> None:
    """Refuse modules that FSDP2 cannot gather for a forward pass."""
    kind = type(inner).__qualname__
    if isinstance(inner, torch.jit.ScriptModule):
        raise InvalidTypeError(
            f"A TorchScript module cannot be sharded. Received: {kind}. Wrap the module that it was made of."
        )
    if type(inner).forward is nn.Module.forward:
        raise InvalidTypeError(
            f"A sharded model is gathered for its forward pass, and this one has none. Received: {kind}. Wrap each of "
            "its parts, or give it a forward."
        )
    sparse = [name for name, part in inner.named_modules() if getattr(part, "sparse", False) is True]
    if sparse:
        raise InvalidValueError(
            f"Sparse gradients cannot be sharded. Received: sparse=True of {', '.join(sparse[:5])} in a {kind}. Set "
            "sparse=False, or parallel='ddp'."
        )
