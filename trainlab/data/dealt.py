"""Whole batches dealt out among ranks, of a source that knows nothing of ranks."""

import itertools
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from trainlab.data.order import SharedRng
from trainlab.data.rounds import Round
from trainlab.data.share import NOTHING, Part, Share
from trainlab.data.sources import Source
from trainlab.distributed import Exchange, derive_seed

__all__ = ["DealtSource"]


class DealtSource:
    """Every ``ranks``-th batch of a source that all ranks read alike, or all batches of one that is this rank's own.

    Its epochs are read from their beginning.

    Args:
        source: where the batches come from.
        share: whose batches are wanted.
        seed: of the random numbers that are drawn while it is read; the same on all ranks.
        own: this rank's source gives other records than those of other ranks. Its batch ``i`` counts as global batch
            ``i * ranks + rank``.
        exchange: connects the ranks, so that one without a batch of its own has another's first one to stand in.
            Default None: it has none.
    """

    def __init__(self, source: Source, share: Share, seed: int, *, own: bool, exchange: Exchange | None = None) -> None:
        self.exact = source.exact
        self.fetches_here = source.fetches_here
        self.part: Part | None = None
        self.total: int | None = None
        self._source = source
        self._share = share
        self._seed = seed
        self._own = own
        self._exchange = exchange
        self._first: Any = NOTHING

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
        self._first = NOTHING
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
        """Return another rank's first batch, for a rank that read the epoch to its end and got none."""
        return self._first

    def state_dict(self) -> dict[str, Any]:
        """Return the source's."""
        return self._source.state_dict()

    def close(self) -> None:
        """End the workers."""
        self._source.close()

    def _numbered(self, running: Generator[Any, None, None]) -> Generator[Any, None, None]:
        before = self._source.records
        first = next(running, NOTHING)
        self._lend(first)
        if first is NOTHING:
            return
        for number, batch in enumerate(itertools.chain([first], running)):
            count = self._source.records - before
            before = self._source.records
            self.part = Part(number * self._share.ranks + self._share.rank, count, count)
            yield batch

    def _lend(self, batch: Any) -> None:
        """Lend this rank's first batch to those that have none, or borrow one."""
        if self._exchange is None:
            return
        has = batch is not NOTHING
        told = Round(self._share.rank, self._share.ranks, 1 if has else None, True, batch if has else None)
        answer = told.hold(self._exchange)
        if not has and not answer.ended:
            self._first = answer.lent

    def _every_rankth(self, running: Iterator[Any], rng: SharedRng) -> Generator[Any, None, None]:
        number, before = -1, self._source.records
        for number, batch in enumerate(rng.read(running)):
            count = self._source.records - before
            before = self._source.records
            if self._share.takes(number):
                self.part, self._first = Part(number, count, count), None
                yield batch
            elif self._first is NOTHING:
                self._first = batch
        self.total = number + 1
