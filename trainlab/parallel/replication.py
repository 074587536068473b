"""The same model on every rank: compared, and given rank 0's weights and buffers."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from trainlab.distributed import DistributedContext
from trainlab.errors import DisagreementError, InvalidStateError

__all__ = ["Buffers", "average", "check_initialized", "check_same", "send_states", "users_module"]

# So many bytes travel at once, as in torch's own DDP.
_PIECE = 250 * 2**20


def users_module(model: nn.Module) -> nn.Module:
    """Return the user's own module of a compiled one, whose state dict has the keys of the user's module.

    Args:
        model: a module, perhaps the result of ``torch.compile``.
    """
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def check_initialized(model: nn.Module) -> None:
    """Refuse a model whose shapes are not known yet.

    Args:
        model: the user's module.

    Raises:
        InvalidStateError: it has a lazy layer that has seen no input.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if isinstance(tensor, UninitializedParameter | UninitializedBuffer)]
    if lazy:
        raise InvalidStateError(
            f"Several ranks cannot share a model whose shapes are not known yet. Received: {', '.join(lazy[:5])} of a "
            f"{type(model).__qualname__}. Call the model once on an example before wrap_model."
        )


def check_same(models: Sequence[nn.Module], distributed: DistributedContext) -> None:
    """Compare the names, shapes and dtypes of the models' parameters and buffers among the ranks, which all call this.

    Args:
        models: this rank's models.
        distributed: the ranks.

    Raises:
        DisagreementError: they differ; the message names a rank and the first difference.
    """
    own = [_described(users_module(model)) for model in models]
    digests = distributed.allgather(xxhash.xxh3_64_hexdigest(repr(own).encode()))
    if len(set(digests)) == 1:
        return
    of_ranks = distributed.allgather(own)
    rank = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    raise DisagreementError(f"The ranks have different models. {_difference(of_ranks[0], of_ranks[rank], rank)}")


def send_states(models: Iterable[nn.Module], group: Any) -> None:
    """Give all ranks rank 0's parameters and buffers.

    Args:
        models: the models, alike on all ranks.
        group: the process group.
    """
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    _send(tensors, group)


class Buffers:
    """The buffers of some models, as they are at the time at which they are sent.

    Args:
        models: the models.
        group: the process group.
    """

    def __init__(self, models: Iterable[nn.Module], group: Any) -> None:
        self._group = group
        # Not the tensors: a module may put another one in a buffer's place.
        self._places = [(part._buffers, name) for model in models for part in model.modules() for name in part._buffers]

    def send(self) -> None:
        """Give all ranks rank 0's buffers."""
        if self._places:
            tensors = (buffers.get(name) for buffers, name in self._places)
            _send([tensor for tensor in tensors if tensor is not None], self._group)


def average(value: torch.Tensor, group: Any) -> torch.Tensor:
    """Average a value over the ranks.

    Args:
        value: of the same shape on all ranks.
        group: the process group.

    Returns:
        The mean, detached.
    """
    total = value.detach().clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)


def _send(tensors: list[torch.Tensor], group: Any) -> None:
    if tensors:
        with torch.no_grad():
            dist._broadcast_coalesced(group, tensors, _PIECE, 0)  # type: ignore[attr-defined]


def _described(model: nn.Module) -> list[tuple[str, str]]:
    return [
        (name, f"{kind} of shape {tuple(tensor.shape)} and {tensor.dtype}{', frozen' * frozen}")
        for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers()))
        for name, tensor in tensors
        for frozen in [kind == "parameter" and not tensor.requires_grad]
    ]


def _difference(first: list[Any], other: list[Any], rank: int) -> str:
    if len(first) != len(other):
        return f"Rank 0 has wrapped {len(first)} and rank {rank} {len(other)}."
    number = next(index for index, pair in enumerate(zip(first, other, strict=True)) if pair[0] != pair[1])
    mine, theirs = dict(first[number]), dict(other[number])
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            return (
                f"Model {number}, {name}: {mine.get(name, 'nothing')} on rank 0, {theirs.get(name, 'nothing')} on rank "
                f"{rank}."
            )
    return f"Model {number} has its parameters and buffers in another order on rank {rank} than on rank 0."
