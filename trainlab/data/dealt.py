"""Whole batches dealt out among ranks, of a source that knows nothing of ranks."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from trainlab.data.order import SharedRng
from trainlab.data.share import Part, Share
from trainlab.data.sources import Source
from trainlab.distributed import derive_seed

__all__ = ["DealtSource"]

_NOTHING: Any = object()


class DealtSource:
    """Every ``ranks``-th batch of a source that all ranks read alike, or all batches of one that is this rank's own.

    Its epochs are read from their beginning.

    Args:
        source: where the batches come from.
        share: whose batches are wanted.
        seed: of the random numbers that are drawn while it is read; the same on all ranks.
        own: this rank's source gives other records than those of other ranks. Its batch ``i`` counts as global batch
            ``i * ranks + rank``.
    """

    def __init__(self, source: Source, share: Share, seed: int, *, own: bool) -> None:
        self.exact = source.exact
        self.fetches_here = source.fetches_here
        self.part: Part | None = None
        self.total: int | None = None
        self._source = source
        self._share = share
        self._seed = seed
        self._own = own
        self._first: Any = _NOTHING

    @property
    def length(self) -> int | None:
        """Batches that this rank gets in a whole epoch."""
        return self._source.length if self._own else self._share.turns(self._source.length)

    @property
    def records(self) -> int:
        """Records read since the epoch's beginning."""
        return self._source.records

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch."""
        self._first = _NOTHING
        self.total = None
        if self._own:
            return self._numbered(self._source.batches(epoch, records, batches, state))
        rng = SharedRng(derive_seed(self._seed, "records", epoch or 0))
        with rng.in_place():
            running = self._source.batches(epoch, records, batches, state)
        if self.exact:
            self.total = self._source.length
        return self._every_rankth(running, rng)

    def more(self) -> bool | None:
        """Only a fetch can tell."""
        return None

    def first_batch(self) -> Any:
        """Return the first global batch, for a rank that read the epoch to its end and got none."""
        return self._first

    def state_dict(self) -> dict[str, Any]:
        """Return the source's."""
        return self._source.state_dict()

    def close(self) -> None:
        """End the workers."""
        self._source.close()

    def _numbered(self, running: Generator[Any, None, None]) -> Generator[Any, None, None]:
        before = self._source.records
        for number, batch in enumerate(running):
            count = self._source.records - before
            before = self._source.records
            self.part = Part(number * self._share.ranks + self._share.rank, count, count)
            yield batch

    def _every_rankth(self, running: Iterator[Any], rng: SharedRng) -> Generator[Any, None, None]:
        number, before = -1, self._source.records
        for number, batch in enumerate(rng.read(running)):
            count = self._source.records - before
            before = self._source.records
            if self._share.takes(number):
                self.part, self._first = Part(number, count, count), None
                yield batch
            elif self._first is _NOTHING:
                self._first = batch
        self.total = number + 1
