from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from tests.checkpoint.ranks import as_rank, share
from tests.checkpoint.samples import same
from trainlab.checkpoint import Parts, is_sharded, only_parts, part_of, place_like, place_tree, without_parts
from trainlab.checkpoint.parts import Box, Piece, tiles
from trainlab.errors import CheckpointError, CheckpointMismatchError

PLACEMENTS: list[tuple[tuple[int, ...], list[Placement]]] = [
    ((4,), [Shard(0)]),
    ((3,), [Shard(1)]),
    ((3,), [Replicate()]),
    ((2, 3), [Replicate(), Shard(0)]),
    ((3, 2), [Shard(0), Replicate()]),
    ((2, 3), [Shard(0), Shard(1)]),
    ((2, 3), [Shard(1), Shard(1)]),
    ((2, 2), [Replicate(), Replicate()]),
]


def parts_of(whole: torch.Tensor) -> Parts:
    """A tensor as if it lay in one file."""
    box = Box((0,) * whole.dim(), tuple(whole.shape))
    return Parts(whole.shape, whole.dtype, [Piece(box, lambda begin, end: whole[begin:end] if whole.dim() else whole)])


@settings(max_examples=60)
@given(how=st.sampled_from(PLACEMENTS), shape=st.tuples(st.integers(0, 8), st.integers(0, 5)))
def test_all_ranks_together_save_each_element_once(
    how: tuple[tuple[int, ...], Sequence[Placement]], shape: tuple[int, int]
) -> None:
    """Whatever the mesh, the placements and the sizes, the ranks' parts are the whole tensor."""
    mesh, placements = how
    ranks = torch.Size(mesh).numel()
    whole = torch.arange(shape[0] * shape[1], dtype=torch.float64).reshape(shape)
    rebuilt, boxes = torch.full_like(whole, -1.0), []
    for rank in range(ranks):
        with as_rank(rank, ranks, mesh) as grid:
            part = part_of(share(whole, grid, placements))
        inside = whole[tuple(slice(b, b + s) for b, s in zip(part.offset, part.local.shape, strict=True))]
        assert (part.shape == shape and same(part.local, inside)) or not part.local.numel()
        if part.is_mine:
            boxes.append(Box(part.offset, tuple(part.local.shape)))
            rebuilt[boxes[-1].seen_from(Box((0, 0), shape))] = part.local
    assert torch.equal(rebuilt, whole)
    assert tiles(shape, boxes) == bool(whole.numel())


@settings(max_examples=40)
@given(how=st.sampled_from(PLACEMENTS), shape=st.tuples(st.integers(0, 8), st.integers(1, 5)), lies=st.booleans())
def test_a_saved_tensor_is_placed_as_another_is(
    how: tuple[tuple[int, ...], Sequence[Placement]], shape: tuple[int, int], lies: bool
) -> None:
    """Each rank gets of a whole tensor, or of parts, what the tensor that it replaces has there, in its own dtype."""
    mesh, placements = how
    ranks = torch.Size(mesh).numel()
    whole = torch.arange(shape[0] * shape[1], dtype=torch.float64).reshape(shape)
    for rank in range(ranks):
        with as_rank(rank, ranks, mesh) as grid:
            like = share(torch.zeros(shape), grid, placements)
            placed = place_like(parts_of(whole) if lies else whole, like)
            assert isinstance(placed, DTensor) and tuple(placed.placements) == tuple(placements)
            expected = share(whole, grid, placements).to_local()
            assert same(placed.to_local(), expected)
            assert placed.to_local().untyped_storage().data_ptr() != like.to_local().untyped_storage().data_ptr() or (
                not like.to_local().numel()
            )


def test_what_is_not_distributed_stays_whole() -> None:
    """Where there is no DTensor a saved tensor is given as it is, and parts are put together."""
    whole = torch.arange(6.0).reshape(2, 3)
    assert place_like(whole, torch.zeros(2, 3)) is whole
    assert same(place_like(parts_of(whole), torch.zeros(2, 3)), whole)
    assert not is_sharded(whole) and part_of(whole).local is whole


def test_another_shape_is_refused() -> None:
    """A tensor of another shape is not cut as if it were the one that is wanted."""
    with as_rank(0, 2) as grid, pytest.raises(CheckpointMismatchError, match=r"\[4, 3\] for \[5, 3\]"):
        place_like(torch.zeros(4, 3), share(torch.zeros(5, 3), grid, [Shard(0)]))


def test_partial_sums_are_refused() -> None:
    """A tensor whose numbers are not yet those of the whole cannot be saved by mistake."""
    with as_rank(0, 2) as grid:
        partial = DTensor.from_local(torch.ones(2), grid, [Partial()], run_check=False)
        with pytest.raises(CheckpointError, match="redistribute"):
            part_of(partial)


def test_only_what_is_shared_is_kept_of_a_state() -> None:
    """Another rank than the first adds its parts at the places of the first one's state, and nothing else of it."""
    with as_rank(1, 2) as grid:
        shard = share(torch.zeros(4), grid, [Shard(0)])
        state = {"state": {0: {"step": torch.tensor(1.0), "average": shard}, 1: {"step": 2}}, "groups": [{"lr": 0.1}]}
        assert only_parts(state) == {"state": {0: {"average": shard}}}
        assert only_parts([1, (shard, torch.zeros(2))]) == [None, [shard, None]]
        assert only_parts({"lr": [0.1]}) is None


def test_a_tree_is_placed_like_another() -> None:
    """Of a state that a callback saved the tensors come back as those that it has now, and whole where it has none."""
    whole = torch.arange(4.0)
    with as_rank(1, 2) as grid:
        like = {"average": [share(torch.zeros(4), grid, [Shard(0)])], "steps": 0}
        placed = place_tree({"average": [parts_of(whole)], "other": (parts_of(whole), 3), "steps": 5}, like)
        assert same(placed["average"][0].to_local(), whole[2:])
        assert same(placed["other"][0], whole) and placed["other"][1] == placed["steps"] - 2 == 3
        assert same(without_parts({"a": [parts_of(whole)]}), {"a": [whole]})
