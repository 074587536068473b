import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainlab.checkpoint import Parts
from trainlab.checkpoint.parts import Box, Piece, tiles
from trainlab.errors import InvalidValueError


def grid(shape: tuple[int, ...], chance: random.Random) -> list[Box]:
    """A random cut of a whole along some of its dimensions, uneven, and otherwise in each slab."""

    def cut(offset: tuple[int, ...], sizes: tuple[int, ...], dimensions: list[int]) -> list[Box]:
        if not dimensions:
            return [Box(offset, sizes)]
        d, rest = dimensions[0], dimensions[1:]
        places = sorted({0, sizes[d], *(chance.randint(0, sizes[d]) for _ in range(2))})
        found = []
        for begin, end in itertools.pairwise(places):
            inner = (*sizes[:d], end - begin, *sizes[d + 1 :])
            found += cut((*offset[:d], offset[d] + begin, *offset[d + 1 :]), inner, rest)
        return found

    dimensions = chance.sample(range(len(shape)), chance.randint(0, len(shape)))
    boxes = cut((0,) * len(shape), shape, dimensions)
    chance.shuffle(boxes)
    return boxes


SHAPES = st.lists(st.integers(1, 6), min_size=0, max_size=3).map(tuple)


@settings(max_examples=200)
@given(shape=SHAPES, seed=st.integers(0, 2**32))
def test_parts_are_the_whole_or_they_are_not(shape: tuple[int, ...], seed: int) -> None:
    """Parts that are a tensor are accepted, and not if one is missing, there twice, moved, larger or smaller."""
    chance = random.Random(seed)
    boxes = grid(shape, chance)
    assert tiles(shape, boxes)
    index = chance.randrange(len(boxes))
    one, rest = boxes[index], boxes[:index] + boxes[index + 1 :]
    assert not tiles(shape, rest)
    assert not tiles(shape, [*boxes, one])
    if shape:
        d = chance.randrange(len(shape))
        for change in (-1, 1):
            sizes = (*one.shape[:d], one.shape[d] + change, *one.shape[d + 1 :])
            moved = (*one.offset[:d], one.offset[d] + change, *one.offset[d + 1 :])
            assert not tiles(shape, [*rest, Box(moved, one.shape)])
            assert not sizes[d] or not tiles(shape, [*rest, Box(one.offset, sizes)])


def test_a_great_many_parts_are_judged_at_once() -> None:
    """The parts of a hostile file are judged in a time that grows no faster than their number, as it were."""
    many = [Box((row, column), (1, 1)) for row in range(120) for column in range(120)]
    assert tiles((120, 120), many)
    assert not tiles((120, 120), [*many[:-1], Box((0, 0), (1, 1))])
    stairs = [Box((step, 0), (1, 4_000 - step)) for step in range(4_000)]
    assert not tiles((4_000, 4_000), stairs)
    assert not tiles((2**62, 2**62), [Box((0, 0), (2**62, 2**61)), Box((0, 2**61), (2**62, 2**61 - 1))])


@settings(max_examples=150)
@given(shape=SHAPES, seed=st.integers(0, 2**32))
def test_any_part_can_be_read_from_any_others(shape: tuple[int, ...], seed: int) -> None:
    """However a tensor was cut when it was saved, any part of it is read right, and nothing else."""
    chance = random.Random(seed)
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    everything = Box((0,) * len(shape), shape)
    read = []

    def piece(box: Box) -> Piece:
        def rows(begin: int, end: int) -> torch.Tensor:
            read.append(box)
            held = whole[box.seen_from(everything)]
            return (held[begin:end] if shape else held).clone()

        return Piece(box, rows)

    parts = Parts(shape, whole.dtype, [piece(box) for box in grid(shape, chance)])
    assert torch.equal(parts.whole(), whole)
    read.clear()
    begins = tuple(chance.randint(0, size) for size in shape)
    sizes = tuple(chance.randint(0, size - begin) for size, begin in zip(shape, begins, strict=True))
    wanted = Box(begins, sizes)
    assert torch.equal(parts.part(begins, sizes), whole[wanted.seen_from(everything)])
    assert all(box.common(wanted) for box in read) and len(read) == len(set(read))
    for offset, size in (((0,) * len(shape) + (0,), shape), ((-1, *begins[1:]), sizes), (begins, (7, *sizes[1:]))):
        if shape:
            with pytest.raises(InvalidValueError, match="lies within"):
                parts.part(offset, size)
