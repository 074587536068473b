"""What one rank gets of the global batches: a piece of each, or whole ones in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainlab.errors import InvalidValueError

__all__ = ["NOTHING", "Joined", "Part", "Share", "piece_of_rank"]

NOTHING: Any = object()
"""What there is in place of a batch, or of what one is made of, where there is none."""

_DEALS = ("pieces", "batches")
_UNEVEN = ("scale", "drop", "pad")


class Part(NamedTuple):
    """What a rank got of one global batch.

    Args:
        number: of the global batch in its epoch, from 0.
        local_records: records of this rank's that count; 0 if what it got only stands in.
        global_records: records of all ranks' that count.
    """

    number: int
    local_records: int
    global_records: int


@dataclass(frozen=True, slots=True)
class Joined:
    """What a global batch is made of that consists of whole batches, the first of which is rank 0's, and so on.

    Args:
        batches: of a batch sampler, one for each rank; at the end of an epoch maybe fewer.
    """

    batches: Sequence[Any]

    def __len__(self) -> int:
        return sum(map(len, self.batches))


@dataclass(frozen=True, slots=True)
class Share:
    """The rule by which ranks share the global batches.

    Args:
        rank: the data rank whose share this is.
        ranks: number of data ranks.
        deal: "pieces": contiguous pieces of each batch; "batches": whole batches, number k to rank k modulo ranks.
        uneven: what becomes of a batch that is no multiple of the ranks, where pieces are dealt. "scale": pieces
            differ by at most one record, and a rank without one gets the batch's first to stand in; "drop": its last
            records are left out; "pad": it is filled up with its own first ones.

    Raises:
        InvalidValueError: for an unknown ``deal`` or ``uneven``, or a rank out of range.
    """

    rank: int = 0
    ranks: int = 1
    deal: str = "pieces"
    uneven: str = "scale"

    def __post_init__(self) -> None:
        if self.deal not in _DEALS:
            raise InvalidValueError(f"deal is one of {_DEALS}. Received: {self.deal!r}.")
        if self.uneven not in _UNEVEN:
            raise InvalidValueError(f"uneven is one of {_UNEVEN}. Received: {self.uneven!r}.")
        if not 0 <= self.rank < self.ranks:
            raise InvalidValueError(f"A data rank is 0 to data_size - 1. Received: {self.rank} of {self.ranks}.")

    @property
    def alone(self) -> bool:
        """Whether there is one rank, which gets everything."""
        return self.ranks == 1

    @property
    def whole(self) -> bool:
        """Whether whole batches are dealt out."""
        return self.deal == "batches"

    def takes(self, number: int) -> bool:
        """Tell whether this rank gets anything of the global batch of this number."""
        return not self.whole or number % self.ranks == self.rank

    def turns(self, total: int | None) -> int | None:
        """Return how many batches this rank gets out of ``total`` global ones; None if that is None."""
        return len(range(self.rank, total, self.ranks)) if self.whole and total is not None else total

    def bounds(self, size: int) -> tuple[int, int] | None:
        """Return the first record of this rank's piece of a batch of so many, and the one after the last.

        Beyond ``size`` the batch's records are counted on from its first; None if the batch is left out.
        """
        if self.whole or self.ranks == 1:
            return 0, size
        if self.uneven == "scale":
            return piece_of_rank(size, self.rank, self.ranks)
        each = size // self.ranks if self.uneven == "drop" else -(-size // self.ranks)
        return (self.rank * each, (self.rank + 1) * each) if each else None

    def part(self, number: int, size: int) -> Part:
        """Return what this rank gets of the global batch ``number`` of ``size`` records, that it does get."""
        if self.whole or self.ranks == 1:
            return Part(number, size, size)
        if self.uneven == "scale":
            return Part(number, size * (self.rank + 1) // self.ranks - size * self.rank // self.ranks, size)
        each = size // self.ranks if self.uneven == "drop" else -(-size // self.ranks)
        return Part(number, each, each * self.ranks)

    def part_of(self, number: int, records: Any) -> Part:
        """Return what this rank gets of the global batch ``number``, given as for ``cut``, that it does get."""
        if not isinstance(records, Joined):
            return self.part(number, len(records))
        sizes = [len(batch) for batch in records.batches]
        if self.uneven == "pad":
            sizes = [sizes[rank % len(sizes)] for rank in range(self.ranks)]
        return Part(number, sizes[self.rank] if self.rank < len(sizes) else 0, sum(sizes))

    def cut(self, records: Any) -> Any:
        """Return this rank's piece of a batch given as a sequence, or as ``Joined``; None if the batch is left out."""
        if isinstance(records, Joined):
            batches = records.batches
            # Whole, also to stand in: the user's batches may be no use in part.
            return batches[self.rank % len(batches)] if self.uneven != "drop" or len(batches) == self.ranks else None
        if not hasattr(records, "__getitem__"):
            records = list(records)
        size = len(records)
        bounds = self.bounds(size)
        if bounds is None:
            return None
        start, stop = bounds
        if stop <= size:
            return records[start:stop]
        return [records[index % size] for index in range(start, stop)]

    def positions(self, start: int, size: int) -> "slice | Tensor":
        """Return where this rank's piece lies, of a batch that is not left out and begins at ``start``."""
        low, high = self.bounds(size) or (0, 0)
        return slice(start + low, start + high) if high <= size else start + torch.arange(low, high) % size

    def off_by(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Count the records that are left out or repeated.

        Args:
            sizes: pairs of a batch's size and how many batches have it.

        Returns:
            The number; 0 where nothing is left out nor repeated.
        """
        if self.whole or self.uneven == "scale":
            return 0
        sign = 1 if self.uneven == "drop" else -1
        return sum(times * (sign * size % self.ranks) for size, times in sizes)


def piece_of_rank(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Cut a global batch into contiguous pieces that differ by at most one record.

    Args:
        size: records in the global batch.
        rank: the data rank that asks.
        ranks: number of data ranks.

    Returns:
        First record and the one after the last. A rank without a record gets the batch's first one (to be
        counted as nothing), so that every rank always has something to run.
    """
    start, stop = size * rank // ranks, size * (rank + 1) // ranks
    return (start, stop) if stop > start else (0, min(1, size))
