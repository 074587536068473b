"""What can be chosen about DDP and FSDP2."""

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["DDPOptions", "FSDPOptions"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Options:
    """Refuses names that it does not know, with those that it does."""

    def __new__(cls, **given: Any) -> Any:
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InvalidTypeError(
                f"{cls.__name__} has no option {', '.join(map(repr, unknown))}. It has: {', '.join(known)}."
            )
        return super().__new__(cls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPOptions(_Options):
    """How each rank has the whole model and the gradients are averaged while they are computed.

    Args:
        gradient_as_bucket_view: whether gradients live in the memory that is exchanged, which saves a copy of them.
            Default True.
        static_graph: whether each batch uses the same parameters in the same way, each backward pass after one forward
            pass of its own; allows re-entrant activation checkpoints. Runs are then no longer resumed bit by bit on
            more than two ranks. Default False.
        find_unused_parameters: whether some parameters may get no gradient in a batch; costs a walk through each
            graph. Default False.
        bucket_cap_mb: how many MiB of gradients are exchanged at once, a number > 0. Default 25.
        broadcast_buffers: whether the buffers of rank 0, such as the statistics of BatchNorm, replace those of the
            others before each batch; they do before each validation in any case. Default True.
        sync_batchnorm: whether BatchNorm layers normalise over the batches of all ranks; needs GPUs. Default False.

    Raises:
        InvalidTypeError: an option is unknown or of a wrong type.
        InvalidValueError: a value cannot be used.
    """

    gradient_as_bucket_view: bool = True
    static_graph: bool = False
    find_unused_parameters: bool = False
    bucket_cap_mb: float = 25.0
    broadcast_buffers: bool = True
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        _check_bools(
            self,
            "gradient_as_bucket_view",
            "static_graph",
            "find_unused_parameters",
            "broadcast_buffers",
            "sync_batchnorm",
        )
        size = self.bucket_cap_mb
        if isinstance(size, bool) or not isinstance(size, int | float):
            raise InvalidTypeError(f"bucket_cap_mb is a number of MiB. Received: {size!r}.")
        if not 0 < size < math.inf:
            raise InvalidValueError(f"bucket_cap_mb must be above 0 and finite. Received: {size!r}.")
        if self.static_graph and self.find_unused_parameters:
            raise InvalidValueError(
                "static_graph=True finds unused parameters by itself, once. Leave find_unused_parameters out, or set "
                "static_graph=False if they differ from batch to batch."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSDPOptions(_Options):
    """How each rank has a part of each parameter, its gradient and its optimizer state.

    Args:
        wrap: classes of the modules that are gathered one at a time, such as a transformer's block; what is in none of
            them is gathered with the model. Default: the model as a whole.
        param_dtype: in which number format parameters are gathered and computed with: "fp32", "bf16", "fp16", a torch
            dtype, or None for their own. Default None.
        reduce_dtype: in which gradients are exchanged; None for that of ``param_dtype``. Default None.
        reshard_after_forward: whether gathered parameters are given up between forward and backward pass; an int
            keeps them in parts over so many ranks. Default True.
        cpu_offload: whether parameters, gradients and optimizer states stay in the memory of the host. Default False.
        shard_size: over how many ranks a model is sharded, a divisor of the number of ranks; there are as many copies
            as fit. Default None, over all of them.

    Raises:
        InvalidTypeError: an option is unknown or of a wrong type.
        InvalidValueError: a value cannot be used.
    """

    wrap: tuple[type[nn.Module], ...] = ()
    param_dtype: str | torch.dtype | None = None
    reduce_dtype: str | torch.dtype | None = None
    reshard_after_forward: bool | int = True
    cpu_offload: bool = False
    shard_size: int | None = None

    def __post_init__(self) -> None:
        given: Any = self.wrap
        wrap = (given,) if isinstance(given, type) else given
        if not isinstance(wrap, tuple | list | set | frozenset) or not all(
            isinstance(kind, type) and issubclass(kind, nn.Module) for kind in wrap
        ):
            raise InvalidTypeError(f"wrap is a tuple of classes of modules. Received: {given!r}.")
        object.__setattr__(self, "wrap", tuple(wrap))
        for name in ("param_dtype", "reduce_dtype"):
            object.__setattr__(self, name, _dtype(name, getattr(self, name)))
        _check_bools(self, "cpu_offload")
        if not isinstance(self.reshard_after_forward, int):
            raise InvalidTypeError(
                f"reshard_after_forward is a bool or a number of ranks. Received: {self.reshard_after_forward!r}."
            )
        if not isinstance(self.reshard_after_forward, bool) and self.reshard_after_forward < 2:
            raise InvalidValueError(
                f"reshard_after_forward must be at least 2 as a number of ranks. Received: "
                f"{self.reshard_after_forward!r}. Pass True to keep one part a rank, False to keep the whole."
            )
        size = self.shard_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise InvalidTypeError(f"shard_size is a number of ranks or None. Received: {size!r}.")
        if size is not None and size < 1:
            raise InvalidValueError(f"shard_size must be at least 1. Received: {size!r}.")


def _check_bools(options: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(options, name), bool):
            raise InvalidTypeError(f"{name} is True or False. Received: {getattr(options, name)!r}.")


def _dtype(name: str, value: Any) -> torch.dtype | None:
    if value is None:
        return None
    dtype = _DTYPES.get(value) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidValueError(
            f"{name} must be one of {', '.join(map(repr, _DTYPES))}, a floating-point torch dtype or None. "
            f"Received: {value!r}."
        )
    return dtype
