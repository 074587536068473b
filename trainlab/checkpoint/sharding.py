"""Tensors of which each rank holds a part: torch's DTensors, and how they go into a checkpoint and come back."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainlab.checkpoint.classes import field_names, kind_of
from trainlab.checkpoint.parts import Parts
from trainlab.checkpoint.tensor_forms import memory_key
from trainlab.errors import CheckpointError, CheckpointMismatchError

__all__ = [
    "LocalPart",
    "is_sharded",
    "only_parts",
    "part_of",
    "place_as_part",
    "place_like",
    "place_tree",
    "shared_key",
    "without_parts",
]


@dataclass(frozen=True)
class LocalPart:
    """What this rank holds of a tensor.

    Attributes:
        local: its part, which shares memory with the whole tensor's; without elements if it has none.
        shape: the whole tensor's shape.
        offset: where the part begins, in each dimension.
        is_mine: whether this rank saves the part: it has elements, and no other rank saves the same ones.
    """

    local: torch.Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    is_mine: bool


def is_sharded(value: Any) -> bool:
    """Whether a value is a DTensor.

    Args:
        value: anything.

    Returns:
        Whether it is; without importing what defines them.
    """
    if type(value) is torch.Tensor or not isinstance(value, torch.Tensor):
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def part_of(tensor: torch.Tensor) -> LocalPart:
    """Tell which part of a tensor this rank holds. Nothing is sent.

    Args:
        tensor: a DTensor, sharded on any dimensions or replicated, over a mesh of any number of dimensions; any other
            tensor is one whole part.

    Returns:
        The part. Of replicas the first is the one that saves it.

    Raises:
        CheckpointError: it is distributed in another way (partial sums, strided shards).
    """
    if not is_sharded(tensor):
        whole = tuple(tensor.shape)
        return LocalPart(tensor, whole, (0,) * len(whole), bool(tensor.numel()))
    sharded: Any = tensor
    local = sharded.detach().to_local()
    local = local.wait() if hasattr(local, "wait") else local
    offset, size, is_first = _cut_over(sharded.device_mesh, sharded.placements, sharded.shape)
    if size != tuple(local.shape) and (local.numel() or math.prod(size)):
        raise _not_storable(sharded.placements, sharded.device_mesh)
    return LocalPart(local, tuple(tensor.shape), offset, is_first and bool(local.numel()))


def place_like(saved: "torch.Tensor | Parts", like: torch.Tensor) -> torch.Tensor:
    """Give of a saved tensor what another one holds on this rank. Nothing is sent, and no more is read than is needed.

    Args:
        saved: what was saved: a whole tensor, or the parts of one.
        like: a tensor of the same shape: how it is distributed, and if it is, on which device.

    Returns:
        A DTensor of the same mesh and placements if ``like`` is one; otherwise the whole tensor. It has the saved
        dtype, and may share memory with ``saved``.

    Raises:
        CheckpointMismatchError: the shapes differ.
        CheckpointError: ``like`` is distributed in a way that is not known.
    """
    if not is_sharded(like) or is_sharded(saved):
        return saved.whole() if isinstance(saved, Parts) else saved
    if tuple(saved.shape) != tuple(like.shape):
        raise CheckpointMismatchError(
            f"A saved tensor has another shape than the one that it is to replace. Received: {list(saved.shape)} for "
            f"{list(like.shape)}. Build the model as it was when the checkpoint was written."
        )
    part = part_of(like)
    made: Any = torch.empty_like(like.detach(), dtype=saved.dtype)
    if part.local.numel():
        made.to_local().copy_(_cut(saved, part.offset, tuple(part.local.shape)))
    return made  # type: ignore[no-any-return]


def place_as_part(saved: Parts, like: torch.Tensor) -> torch.Tensor:
    """Give what this rank is to hold of a saved tensor, beside another of another shape. Nothing is sent.

    Args:
        saved: the parts of a tensor that was one of several things kept for ``like``, such as the sums of its rows.
        like: a DTensor.

    Returns:
        A DTensor of the same mesh. Where ``like`` is sharded it is, too, along the dimension along which it was cut;
        one that was not cut is replicated.

    Raises:
        CheckpointError: ``like`` is distributed in a way that is not known.
    """
    module, sharded = sys.modules["torch.distributed.tensor"], like
    cut = sorted(saved.cut_dimensions())
    placements = [
        module.Shard(cut[0]) if cut and type(placement) is module.Shard else module.Replicate()
        for placement in sharded.placements  # type: ignore[attr-defined]
    ]
    mesh: Any = sharded.device_mesh  # type: ignore[attr-defined]
    offset, size, _ = _cut_over(mesh, placements, saved.shape)
    strides = torch.empty(saved.shape, device="meta").stride()
    local = saved.part(offset, size).to(like.device)
    made: torch.Tensor = module.DTensor.from_local(
        local, mesh, placements, run_check=False, shape=saved.shape, stride=strides
    )
    return made


def place_tree(saved: Any, like: Any) -> Any:
    """Place the tensors of a tree as those at the same places of another tree.

    Args:
        saved: nested dicts, lists and tuples, with ``Parts`` in them.
        like: another tree, such as the ``state_dict()`` of what is to be loaded. Where it has a DTensor of the same
            shape the saved tensor becomes one, too; where it has none ``Parts`` become whole tensors.

    Returns:
        The tree; containers without a tensor to be placed are those of ``saved``.
    """
    if isinstance(saved, (Parts, torch.Tensor)):
        fits = isinstance(like, torch.Tensor) and tuple(like.shape) == tuple(saved.shape)
        if fits and is_sharded(like):
            return place_like(saved, like)
        return saved.whole() if isinstance(saved, Parts) else saved
    if isinstance(saved, Mapping):
        of = like if isinstance(like, Mapping) else {}
        return _rebuilt(saved, {key: place_tree(value, of.get(key)) for key, value in saved.items()})
    if type(saved) in (list, tuple):
        others = like if isinstance(like, list | tuple) and len(like) == len(saved) else [None] * len(saved)
        made = [place_tree(value, other) for value, other in zip(saved, others, strict=True)]
        return saved if all(new is old for new, old in zip(made, saved, strict=True)) else type(saved)(made)
    return saved


def without_parts(saved: Any) -> Any:
    """Make the tensors of a tree whole.

    Args:
        saved: nested dicts, lists and tuples, with ``Parts`` in them.

    Returns:
        The tree with tensors in the place of them.
    """
    return place_tree(saved, None)


def only_parts(tree: Any) -> Any:
    """Keep of a state what each rank has a part of: what a rank but the first adds to a checkpoint.

    Args:
        tree: what the first rank saves at the same place: containers of any kind, with DTensors in them.

    Returns:
        Dicts and lists with the DTensors where they were, None in lists for all else, and no entry in dicts; None if
        there is no DTensor.
    """
    if is_sharded(tree):
        return tree
    if isinstance(tree, Mapping):
        kept = {key: only_parts(value) for key, value in tree.items()}
        return {key: value for key, value in kept.items() if value is not None} or None
    if kind_of(type(tree)) in ("namedtuple", "dataclass"):
        return only_parts({name: getattr(tree, name) for name in field_names(type(tree))})
    if isinstance(tree, list | tuple):
        items = [only_parts(value) for value in tree]
        return items if any(item is not None for item in items) else None
    return None


def shared_key(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What two tensors have in common exactly if they are the same numbers in the same memory, DTensors too.

    Args:
        tensor: any strided tensor.

    Returns:
        The key, as ``memory_key``. Of a DTensor it tells even where this rank has no element of it.
    """
    if not is_sharded(tensor):
        return memory_key(tensor)
    part = part_of(tensor)
    if not tensor.numel():
        return None
    # Memory without elements has no address; the object that stands for it does.
    own = memory_key(part.local) or (part.local.untyped_storage()._cdata, part.local.storage_offset())
    return ("part", *own, tensor.dtype, part.shape, part.offset)


def _rebuilt(saved: Mapping[Any, Any], made: dict[Any, Any]) -> Any:
    """The same kind of mapping; the same one if nothing changed."""
    if all(made[key] is value for key, value in saved.items()):
        return saved
    if type(saved) is dict:
        return made
    copied: Any = saved.copy()  # type: ignore[attr-defined]  # every mapping of a checkpoint has it
    copied.update(made)
    return copied


def _cut(saved: "torch.Tensor | Parts", offset: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    if isinstance(saved, Parts):
        return saved.part(offset, size)
    return saved[tuple(slice(begin, begin + count) for begin, count in zip(offset, size, strict=True))]


def _cut_over(
    mesh: Any, placements: Sequence[Any], whole: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Offset and size of this rank's part, and whether it is the first of its replicas.

    Source: ``torch.distributed.tensor.Shard``: a dimension is cut as by ``torch.chunk``, for one dimension of the mesh
    after the other.
    """
    module = sys.modules["torch.distributed.tensor"]
    offset, size = [0] * len(whole), list(whole)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return tuple(offset), (0,) * len(size), False
    is_first = True
    for number, placement in enumerate(placements):
        if type(placement) is module.Replicate:
            is_first = is_first and coordinate[number] == 0
        elif type(placement) is module.Shard:
            dimension = placement.dim % len(size)
            length = -(-size[dimension] // mesh.size(number))
            begin = min(length * coordinate[number], size[dimension])
            offset[dimension] += begin
            size[dimension] = min(length, size[dimension] - begin)
        else:
            raise _not_storable(placements, mesh)
    return tuple(offset), tuple(size), is_first


def _not_storable(placements: Sequence[Any], mesh: Any) -> CheckpointError:
    return CheckpointError(
        f"A checkpoint cannot hold a tensor that is distributed in this way. Received: {placements} over "
        f"{mesh}. Redistribute it with .redistribute() to Shard and Replicate."
    )
