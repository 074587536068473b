"""Data that shards itself: each rank reads records of its own, and all end an epoch together."""

import copy
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from trainlab.data.loader import DataLoader
from trainlab.data.order import chain_of_samplers
from trainlab.data.rounds import Answer, Rounds
from trainlab.data.samplers import DistributedSampler
from trainlab.data.share import NOTHING, Part, Share
from trainlab.data.sources import Source
from trainlab.data.transfer import length_or
from trainlab.distributed import Exchange, RngState, preserved_rng
from trainlab.errors import DataError

__all__ = ["ShardedLoader", "ShardedSource", "sharded", "shards_itself", "without_shards"]


class ShardedLoader:
    """A loader that gives each process records of its own, and says so; otherwise it is that loader.

    Args:
        loader: any iterable of batches.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # asked for while a copy is made, before it is there
            raise AttributeError(name)
        return getattr(self.loader, name)


def sharded(loader: Any) -> Any:
    """Say that a loader gives each process records of its own.

    A torch loader with a distributed sampler need not be marked.

    Args:
        loader: a ``trainlab.DataLoader``, or any iterable of batches, to be iterated anew in each epoch.

    Returns:
        The loader, marked: what a build hook may return on several processes.
    """
    if isinstance(loader, DataLoader):
        marked = copy.copy(loader)
        marked.sharded = True
        return marked
    return loader if isinstance(loader, ShardedLoader) else ShardedLoader(loader)


def shards_itself(loader: Any, share: Share) -> bool:
    """Tell whether each of several ranks reads records of its own.

    Args:
        loader: what a build hook returned.
        share: of this rank.

    Raises:
        DataError: its sampler is made for other ranks, or deals out what trainlab would deal out once more.
    """
    if share.alone:
        return False
    found = next(filter(None, map(_share_of, chain_of_samplers(loader))), None)
    if found is not None and found[:2] != (share.rank, share.ranks):
        raise DataError(
            f"The data loader's {found[2]} is made for rank {found[0]} of {found[1]}. Received: rank {share.rank} of "
            f"{share.ranks}. Make it from context.distributed.data_rank and data_size, or leave it out and return a "
            "trainlab.DataLoader, which deals the records out by itself."
        )
    if not isinstance(loader, DataLoader):
        return found is not None or isinstance(loader, ShardedLoader)
    if found is not None and not loader.sharded:
        raise DataError(
            "A trainlab.DataLoader deals the records out among the processes by itself, and its sampler has done so "
            f"already. Received: {found[2]}. Leave it out, or pass sharded=True."
        )
    return loader.sharded


def _share_of(sampler: Any) -> tuple[int, int, str] | None:
    """For which rank out of how many a sampler is made, and its class; None if it is for all."""
    ranks = sampler.num_workers if isinstance(sampler, DistributedSampler) else getattr(sampler, "num_replicas", None)
    rank = getattr(sampler, "rank", None)
    if not isinstance(ranks, int) or not isinstance(rank, int) or ranks < 2:
        return None
    return rank, ranks, type(sampler).__name__


def without_shards(state: Mapping[str, Any], records: int) -> Mapping[str, Any] | None:
    """Return the state of a source that all ranks read, as it is; at an epoch's beginning None for one of shards.

    Args:
        state: of the source that the position is of.
        records: the position.

    Raises:
        DataError: the position is within an epoch of shards.
    """
    inner = state["source"] if "pass" in state else state
    if inner.get("shards") is None:
        return state
    _refuse(inner["shards"], None, records)
    return None


def _refuse(before: int | None, ranks: int | None, records: int) -> None:
    """Refuse to go on within an epoch that other ranks began with shards of theirs, or none did."""
    if before == ranks or not records:
        return
    told = ["dealt out by trainlab" if one is None else f"sharded by itself for {one} ranks" for one in (before, ranks)]
    raise DataError(
        "An epoch of a data set that shards itself can be gone on with only by as many processes as began it: what "
        f"the others would have read is not known. Received: a position in data {told[0]}, now {told[1]}. Start as "
        "many processes as before, or resume from a checkpoint made at the end of an epoch."
    )


@dataclass(slots=True)
class _Ahead:
    """This rank's next batch, with what is needed to fetch it again, and what the ranks tell of theirs."""

    batch: Any
    before: dict[str, Any]
    round: "Future[Answer]"


class ShardedSource:
    """The batches of one rank's own source, for as long as any rank has one.

    A rank that ran out gets its last batch again, to be counted as nothing; one that had none at all gets another
    rank's first. The batch after the one that is given is fetched already, in this thread, so that whether it exists
    is agreed upon while training goes on.

    Args:
        source: of this rank's records; it knows nothing of ranks.
        share: which rank this is.
        exchange: connects the ranks; used by this object alone.
        measures: the source counts an element as one record though it may hold several: those in it are counted.
            Default False.
    """

    exact = False

    def __init__(self, source: Source, share: Share, exchange: Exchange, *, measures: bool = False) -> None:
        self.length: int | None = None
        self.total: int | None = None
        self.records = 0
        self.part: Part | None = None
        self.fetches_here = source.fetches_here
        self._source = source
        self._share = share
        self._exchange = exchange
        self._measures = measures
        self._rounds: Rounds | None = None
        self._running: Generator[Any, None, None] | None = None
        self._ahead: _Ahead | None = None
        self._latest: Any = NOTHING
        self._epoch: int | None = None
        self._given = 0
        # The state of an ended pass, which the source is to be put back to in the next epoch.
        self._carried: Any = None

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position."""
        _refuse((state or {}).get("shards"), self._share.ranks, records)
        self._end_running()
        self.records, self._epoch, self._given, self._latest = records, epoch, 0, NOTHING
        if state is None or state.get("shards") != self._share.ranks:
            self._begin_after(epoch)
        elif state["epoch"] == epoch:
            self._go_on(epoch, state)
        else:
            self._carried = None
            self._running = self._source.batches(epoch, 0, 0, state["source"])
        return self._together()

    def more(self) -> bool | None:
        """Tell whether any rank has a batch."""
        if self._ahead is None:
            self._ahead = self._fetch(first=True)
        return not self._ahead.round.result().ended

    def first_batch(self) -> Any:
        """No whole batches are dealt out."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's own position, before the batch that is fetched already."""
        position = self._position() if self._ahead is None else self._ahead.before
        return {"shards": self._share.ranks, "epoch": self._epoch, "ahead": self._ahead is not None, **position}

    def close(self) -> None:
        """End the workers and the thread."""
        self._end_running()
        self._source.close()
        rounds, self._rounds = self._rounds, None
        if rounds is not None:
            rounds.close()

    def _begin_after(self, epoch: int | None) -> None:
        """Begin an epoch after the one before it."""
        carried, self._carried = self._carried, None
        if carried is None:
            self._running = self._source.batches(epoch, 0, 0, None)
            return
        with preserved_rng(devices=False):  # what is drawn to put it back was drawn before
            self._running = self._source.batches(epoch, 0, 0, carried)

    def _go_on(self, epoch: int | None, state: Mapping[str, Any]) -> None:
        """Go on within an epoch, which uses this process's generators if a batch was fetched ahead."""
        self._given = state["batches"]
        self._carried = state["source"] if state["ended"] else None
        if not state["ended"]:
            self._running = self._source.batches(epoch, state["records"], state["batches"], state["source"])
        if state["ahead"]:
            if state["rng"] is not None:
                RngState.from_state_dict(state["rng"]).restore()
            self._ahead = self._fetch(first=True)

    def _position(self) -> dict[str, Any]:
        ended = self._running is None
        return {
            "records": self._source.records,
            "batches": self._given,
            "ended": ended,
            "source": self._source.state_dict() if self._carried is None else self._carried,
            "rng": RngState.capture(devices=False).state_dict() if self.fetches_here and not ended else None,
        }

    def _fetch(self, *, first: bool) -> _Ahead:
        if self._running is None and self._ahead is not None:
            batch, before = NOTHING, self._ahead.before
        else:
            before = self._position()
            batch = NOTHING if self._running is None else next(self._running, NOTHING)
            if batch is NOTHING:
                self._running = None
                before = self._position()
        has = batch is not NOTHING
        if self._rounds is None:
            self._rounds = Rounds(self._exchange, self._share.rank, self._share.ranks)
        records = None
        if has:
            records = self._source.records - before["records"]
            if self._measures:
                records = length_or(batch, records)
        # What others may borrow is handed over in an epoch's first round only.
        lent = batch if first and has else None
        return _Ahead(batch, before, self._rounds.begin(records, lend=first, batch=lent))

    def _together(self) -> Generator[Any, None, None]:
        if self._ahead is None:
            self._ahead = self._fetch(first=True)
        while True:
            batch, answer = self._ahead.batch, self._ahead.round.result()
            if answer.ended:
                return
            if batch is not NOTHING:
                self._latest = batch
                self._given += 1
            elif self._latest is NOTHING:
                self._latest = answer.lent
            self._ahead = self._fetch(first=False)
            total = sum(filter(None, answer.records))
            self.records += total
            self.part = Part(0, answer.records[self._share.rank] or 0, total)
            yield self._latest

    def _end_running(self) -> None:
        running, self._running, self._ahead = self._running, None, None
        if running is not None:
            running.close()
