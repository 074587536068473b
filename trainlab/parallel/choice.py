"""Which way of sharing models a run takes."""

import logging

import torch

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.parallel.ddp import Replicated
from trainlab.parallel.fsdp import Sharded
from trainlab.parallel.options import DDPOptions, FSDPOptions
from trainlab.parallel.single import Parallel

__all__ = ["make_parallel"]

logger = logging.getLogger("trainlab.parallel")

_OPTIONS: dict[str, type[DDPOptions] | type[FSDPOptions]] = {
    "auto": DDPOptions,
    "ddp": DDPOptions,
    "fsdp": FSDPOptions,
}


def make_parallel(
    name: str,
    options: DDPOptions | FSDPOptions | None,
    distributed: DistributedContext,
    device: torch.device,
) -> Parallel:
    """Choose how the ranks share models.

    Args:
        name: "ddp", "fsdp", or "auto" for "ddp" as soon as there are several ranks.
        options: of the class that belongs to the name; None for the defaults.
        distributed: the ranks. One process without a process group shares with nobody, whatever the name.
        device: where this rank computes.

    Returns:
        The way of sharing.

    Raises:
        InvalidValueError: the name is unknown, or an option cannot be used here.
        InvalidTypeError: the options belong to another name.
    """
    if name not in _OPTIONS:
        raise InvalidValueError(f"parallel must be one of {', '.join(map(repr, _OPTIONS))}. Received: {name!r}.")
    kind = _OPTIONS[name]
    if options is None:
        options = kind()
    if not isinstance(options, kind):
        raise InvalidTypeError(
            f"parallel={name!r} takes {kind.__name__}. Received: {options!r}. Pass parallel='fsdp' with FSDPOptions, "
            "parallel='ddp' with DDPOptions."
        )
    if distributed.process_group is None or (name == "auto" and distributed.size == 1):
        if name == "fsdp":
            logger.info("parallel='fsdp' in one process without a process group: the model is not sharded.")
        return Parallel()
    if isinstance(options, FSDPOptions):
        return Sharded(options, distributed, device)
    return Replicated(options, distributed, device)
