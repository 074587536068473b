"""Parts: a tensor of a checkpoint that lies in several files, of which only what is asked for is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainlab.errors import InvalidValueError

__all__ = ["Box", "Parts", "Piece", "tiles"]

# Of cuts, one inside of the other. Without a limit a hostile file could ask for as many as it has parts.
_MOST_ROUNDS = 16
# Reads the rows from one number to another of a piece, all of what they have in the other dimensions.
ReadRows = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True)
class Box:
    """A part of a tensor, without its elements.

    Attributes:
        offset: where it begins, in each dimension.
        shape: its sizes.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def common(self, other: "Box") -> "Box | None":
        """Give what two boxes have in common.

        Args:
            other: the other one, of the same number of dimensions.

        Returns:
            The box, None if it has no element.
        """
        begins = tuple(map(max, zip(self.offset, other.offset, strict=True)))
        ends = map(min, zip(self.ends, other.ends, strict=True))
        sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
        return Box(begins, sizes) if all(size > 0 for size in sizes) else None

    def seen_from(self, other: "Box") -> tuple[slice, ...]:
        """Give the index that selects this box from a tensor that holds another.

        Args:
            other: a box that holds this one.

        Returns:
            The index.
        """
        begins = [begin - origin for begin, origin in zip(self.offset, other.offset, strict=True)]
        return tuple(slice(begin, begin + size) for begin, size in zip(begins, self.shape, strict=True))

    @property
    def ends(self) -> tuple[int, ...]:
        """Where it ends, in each dimension."""
        return tuple(begin + size for begin, size in zip(self.offset, self.shape, strict=True))


@dataclass(frozen=True)
class Piece:
    """What one file holds of a tensor.

    Attributes:
        box: which part.
        read_rows: reads it.
    """

    box: Box
    read_rows: ReadRows


class Parts:
    """A tensor that was distributed over ranks when it was saved. Its data is read when it is asked for.

    Args:
        shape: its shape.
        dtype: its dtype.
        pieces: what the files hold; together they are the whole.

    Attributes:
        shape: its shape.
        dtype: its dtype.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, pieces: Sequence[Piece]) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self._pieces = tuple(pieces)

    def whole(self) -> torch.Tensor:
        """Read all of it.

        Returns:
            The tensor, on the CPU, in memory of its own.

        Raises:
            CheckpointDamagedError: a file is not what was written.
            CheckpointError: a file cannot be read, or there is not enough memory.
        """
        return self.part((0,) * len(self.shape), tuple(self.shape))

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """Read a part, from the files that hold something of it.

        Args:
            offset: where it begins, in each dimension.
            shape: its sizes.

        Returns:
            The part, on the CPU, in memory of its own.

        Raises:
            InvalidValueError: it reaches beyond the tensor.
            CheckpointDamagedError: a file is not what was written.
            CheckpointError: a file cannot be read, or there is not enough memory.
        """
        wanted = Box(tuple(offset), tuple(shape))
        are_as_many = len(wanted.offset) == len(wanted.shape) == len(self.shape)
        bounds = zip(offset, wanted.ends, self.shape, strict=True) if are_as_many else []
        if not are_as_many or not all(0 <= begin <= end <= size for begin, end, size in bounds):
            raise InvalidValueError(
                f"A part lies within its tensor. Received: offset {list(offset)} and shape {list(shape)} of a tensor "
                f"of shape {list(self.shape)}."
            )
        shared = [(piece, piece.box.common(wanted)) for piece in self._pieces] if 0 not in wanted.shape else []
        found = [(piece, common) for piece, common in shared if common is not None]
        if len(found) == 1 and not wanted.shape:
            return found[0][0].read_rows(0, 1)
        if len(found) == 1 and wanted.shape[1:] == found[0][0].box.shape[1:]:
            return _rows(*found[0])
        try:
            made = torch.empty(wanted.shape, dtype=self.dtype)
        except RuntimeError as error:  # what torch says instead of MemoryError
            raise MemoryError(str(error)) from error
        for piece, common in found:
            rows = _rows(piece, common)
            inner = common.seen_from(piece.box)
            made[common.seen_from(wanted)] = rows[(slice(None),) + inner[1:]]  # noqa: RUF005 (Python 3.10)
        return made

    def cut_dimensions(self) -> set[int]:
        """Tell along which dimensions it is cut.

        Returns:
            Their numbers; empty if one file holds all of it.
        """
        return {d for piece in self._pieces for d, size in enumerate(piece.box.shape) if size != self.shape[d]}

    def __repr__(self) -> str:
        return f"Parts(shape={list(self.shape)}, dtype={self.dtype}, in {len(self._pieces)} files)"


def tiles(whole: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Tell whether parts are a whole, each element of it once.

    They must come apart by straight cuts, each through all of what is left to be cut, as the shards of a DTensor do,
    which take one round of cuts a dimension: this is told in a time that hardly grows faster than their number.

    Args:
        whole: the sizes of the whole.
        boxes: the parts, each with elements and of as many dimensions.

    Returns:
        Whether they are.
    """
    box = Box((0,) * len(whole), tuple(whole))
    return bool(boxes) and _are_all(box, list(boxes), _MOST_ROUNDS)


def _are_all(whole: Box, boxes: list[Box], rounds: int) -> bool:
    if len(boxes) == 1:
        return boxes[0] == whole
    for d in range(len(whole.shape) if rounds else 0):
        slabs = _slabs(whole, boxes, d)
        if slabs is None:
            return False
        if len(slabs) > 1:
            return all(_are_all(slab, inside, rounds - 1) for slab, inside in slabs)
    return False


def _slabs(whole: Box, boxes: list[Box], d: int) -> list[tuple[Box, list[Box]]] | None:
    """The finest cut of a whole along a dimension that goes through no part; None if some of it is in no part."""
    groups: list[list[Box]] = []
    end = whole.offset[d]
    for box in sorted(boxes, key=lambda box: box.offset[d]):
        if box.offset[d] > end or (box.offset[d] < end and not groups):
            return None
        if box.offset[d] == end:
            groups.append([])
        groups[-1].append(box)
        end = max(end, box.ends[d])
    if end != whole.ends[d]:
        return None
    slabs = []
    for group in groups:
        begin, until = group[0].offset[d], max(box.ends[d] for box in group)
        offset = (*whole.offset[:d], begin, *whole.offset[d + 1 :])
        slabs.append((Box(offset, (*whole.shape[:d], until - begin, *whole.shape[d + 1 :])), group))
    return slabs


def _rows(piece: Piece, common: Box) -> torch.Tensor:
    """What a piece holds of the rows of a part: all of what they have in the other dimensions."""
    if not common.shape:
        return piece.read_rows(0, 1)
    begin = common.offset[0] - piece.box.offset[0]
    return piece.read_rows(begin, begin + common.shape[0])
