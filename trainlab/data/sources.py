"""Where the batches of ``trainlab.DataLoader`` come from: map-style and iterable data sets, workers or none."""

import contextlib
import copy
import itertools
import logging
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from trainlab.data.fetch import make_fetch
from trainlab.data.order import OwnSampler, count_records, cut_piece, has_state, piece_of_rank, shuffled_order
from trainlab.data.worker_states import WorkerStates, tell_of_other_workers
from trainlab.data.workers import (
    MapRequest,
    RestoreRequest,
    StreamRequest,
    Worked,
    WorkerPool,
    read_items,
    tell_epoch,
)
from trainlab.distributed import RngState, derive_seed

__all__ = ["IndexSource", "IterableSource", "Source"]

_logger = logging.getLogger("trainlab.data")

_NOTHING: Any = object()


class Source(Protocol):
    """What gives the batches of one epoch after another, in host memory.

    Attributes:
        exact: whether ``length`` can be relied on.
        fetches_here: whether fetching one batch runs the data set's code in this process.
    """

    exact: bool
    fetches_here: bool

    @property
    def length(self) -> int | None:
        """Batches of a whole epoch; None if that is not known."""
        ...

    @property
    def records(self) -> int:
        """Global records given since the epoch's beginning."""
        ...

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch (None outside training) at a position, at which ``state_dict`` gave the state."""
        ...

    def more(self) -> bool | None:
        """Tell, without a fetch, whether a batch follows; None if only a fetch can tell."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs besides the position."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class IndexSource:
    """A map-style data set.

    Args:
        loader: the ``trainlab.DataLoader``.
        seed: what the order and the workers' seeds are made from, together with the epoch.
        data_rank: which piece of each global batch is wanted.
        data_size: out of how many.
        pinned: whether workers are to deliver into page-locked memory.
    """

    def __init__(self, loader: Any, seed: int, data_rank: int, data_size: int, pinned: bool) -> None:
        self.length: int | None = None
        self.records = 0
        self._loader = loader
        self._seed = seed
        self._rank = data_rank
        self._ranks = data_size
        self._own = OwnSampler(loader.own_sampler) if loader.own_sampler is not None else None
        self.exact = self._own is None
        self.fetches_here = loader.num_workers == 0
        self._pool = WorkerPool(loader, pinned=pinned) if loader.num_workers else None
        self._states = WorkerStates(loader)
        # Without automatic batching the ranks take turns: a global batch is one element for each.
        self._batch_size = loader.batch_size or data_size
        self._epoch: int | None = None
        self._sampler_at_start: Any = None
        self._indices: Iterator[Any] = iter(())
        self._peeked: Any = _NOTHING

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position."""
        self.records = records
        if state is not None and self.fetches_here:
            load_own_state(self._loader.dataset, state)
        if self._own is not None:
            return self._own_batches(self._own, epoch, records, batches, state)
        size = len(self._loader.dataset)
        left = size - records
        full, rest = divmod(max(left, 0), self._batch_size)
        self.length = batches + full + bool(rest and not self._loader.drop_last)
        end = records + full * self._batch_size if self._loader.drop_last else size
        if self._pool is None:
            return self._fetched_here(epoch, records, end)
        requests = self._requests(epoch, records, end, batches)
        return self._answered(self._pool, requests, epoch, batches, state)

    def more(self) -> bool | None:
        """Look at the next indices of a user's sampler; nothing is fetched."""
        if self._pool is not None or self._own is None:
            return None
        if self._peeked is _NOTHING:
            self._peeked = next(self._indices, _NOTHING)
        return self._peeked is not _NOTHING

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state at the epoch's start and now, and the data set's own."""
        state = own_state(self._loader.dataset) if self.fetches_here else self._states.state_dict()
        if self._own is not None and self._sampler_at_start is not None:
            state["sampler"] = {"epoch": self._epoch, "start": self._sampler_at_start, "now": self._own.state_dict()}
        return state

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def _order(self, epoch: int | None) -> Tensor | None:
        if not self._loader.shuffle:
            return None
        return shuffled_order(len(self._loader.dataset), self._seed, epoch or 0)

    def _piece(self, start: int, stop: int) -> tuple[int, int]:
        low, high = piece_of_rank(stop - start, self._rank, self._ranks)
        return start + low, start + high

    def _fetched_here(self, epoch: int | None, records: int, end: int) -> Generator[Any, None, None]:
        fetch = make_fetch(self._loader.dataset, self._loader.collate_fn, batched=self._loader.batched)
        order = self._order(epoch)
        if order is not None:
            order = order.to(fetch.device)
        batch_size, alone, single = self._batch_size, self._ranks == 1, not self._loader.batched
        for start in range(records, end, batch_size):
            stop = min(start + batch_size, end)
            low, high = (start, stop) if alone else self._piece(start, stop)
            if order is None:
                batch = fetch.cut(low, high)
            else:
                batch = fetch.take(int(order[low]) if single else order[low:high])
            self.records = stop
            yield batch

    def _requests(self, epoch: int | None, records: int, end: int, batches: int) -> Iterator[MapRequest]:
        order = self._order(epoch)
        for number, start in enumerate(range(records, end, self._batch_size), batches):
            stop = min(start + self._batch_size, end)
            low, high = self._piece(start, stop)
            indices: Any = slice(low, high)
            if order is not None:
                # An array, since tensors would be sent through shared memory.
                indices = order[low:high].numpy() if self._loader.batched else int(order[low])
            yield MapRequest(self._batch_seed(epoch, number), stop - start, indices)

    def _answered(
        self,
        pool: WorkerPool,
        requests: Iterator[MapRequest],
        epoch: int | None,
        batches: int,
        state: Mapping[str, Any] | None,
    ) -> Generator[Any, None, None]:
        # At once, since the state may be asked for before a batch is.
        restoring = self._states.begin(batches, 0, state)
        seed = derive_seed(self._seed, "workers", epoch or 0, batches, self._rank)
        return self._answers(pool.run(itertools.chain(restoring, requests), seed), len(restoring))

    def _answers(self, answers: Generator[Worked, None, None], restoring: int) -> Generator[Any, None, None]:
        with contextlib.closing(answers):
            for answer in itertools.islice(answers, restoring, None):
                self._states.note(answer)
                self.records += answer.records
                yield answer.batch

    def _batch_seed(self, epoch: int | None, number: int) -> int:
        return derive_seed(self._seed, "batch", epoch or 0, number, self._rank)

    def _own_batches(
        self, own: OwnSampler, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        self.length = length_of(self._loader)
        saved = (state or {}).get("sampler")
        if saved is not None:
            own.load_state_dict(saved["start"] if saved["epoch"] == epoch else saved["now"])
        self._epoch = epoch
        self._sampler_at_start = own.state_dict()
        self._peeked = _NOTHING
        self._indices = self._own_indices(own, epoch, records)
        if self._pool is None:
            return self._own_fetched_here()
        requests = (
            MapRequest(self._batch_seed(epoch, number), count, mine, from_sampler=True)
            for number, (count, mine) in enumerate(self._indices, batches)
        )
        return self._answered(self._pool, requests, epoch, batches, state)

    def _own_fetched_here(self) -> Generator[Any, None, None]:
        fetch = make_fetch(self._loader.dataset, self._loader.collate_fn, batched=self._loader.batched)
        while self.more():
            (count, mine), self._peeked = self._peeked, _NOTHING
            batch = fetch.look_up(mine)
            self.records += count
            yield batch

    def _own_indices(self, own: OwnSampler, epoch: int | None, records: int) -> Iterator[tuple[int, Any]]:
        """Pairs of the records in a global batch and this rank's part of it, from a position on."""
        loader = self._loader
        elements = own.start(self._seed, epoch)
        if loader.batch_size is not None:
            elements = itertools.islice(elements, records, None)
        else:
            elements = _from_record(elements, records)
            if loader.batched:
                for batch in elements:
                    yield len(batch), cut_piece(batch, self._rank, self._ranks)
                return
        while group := read_items(elements, self._batch_size, loader.drop_last):
            mine = cut_piece(group, self._rank, self._ranks)
            yield (len(group), mine) if loader.batched else (sum(map(count_records, group)), mine[0])


class IterableSource:
    """An iterable data set.

    Args:
        loader: the ``trainlab.DataLoader``.
        seed: what the workers' seeds are made from, together with the epoch.
        data_rank: which piece of each global batch is wanted.
        data_size: out of how many.
        pinned: whether workers are to deliver into page-locked memory.
    """

    exact: bool = False

    def __init__(self, loader: Any, seed: int, data_rank: int, data_size: int, pinned: bool) -> None:
        self.length: int | None = None
        self.records = 0
        self.fetches_here = loader.num_workers == 0
        self._loader = loader
        self._seed = seed
        self._rank = data_rank
        self._ranks = data_size
        self._pool = WorkerPool(loader, pinned=pinned) if loader.num_workers else None
        self._states = WorkerStates(loader)
        self._batch_size = loader.batch_size or data_size
        self._pass = 0
        self._rng_at_start: dict[str, Any] | None = None
        self._told = False

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position."""
        self.length = length_of(self._loader)
        self.records = records
        self._rng_at_start = None
        if self._pool is not None:
            # At once, since the state may be asked for before a batch is.
            self._pass += 1
            restoring = self._states.begin(batches, self._pass, state)
            if batches and not restoring:
                self._tell_of_reading_again(records)
            return self._answered(self._pool, epoch, 0 if restoring else batches, restoring)
        restored = state is not None and load_own_state(self._loader.dataset, state)
        if not batches or restored:
            return self._fetched_here(epoch, None, began_anew=restored and not batches)
        # Read again at once: what is drawn meanwhile must not be drawn after the caller put the generators back.
        self._tell_of_reading_again(records)
        if (rng := (state or {}).get("rng_at_start")) is not None:
            RngState.from_state_dict(rng).restore()
        return self._fetched_here(epoch, self._read_again(epoch, records), began_anew=False)

    def more(self) -> bool | None:
        """Only a fetch can tell."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the data set's own state, or the generators' at the epoch's start, which reading again needs."""
        if not self.fetches_here:
            return self._states.state_dict()
        return own_state(self._loader.dataset) or {"rng_at_start": self._rng_at_start}

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def _read_again(self, epoch: int | None, skipped: int) -> Iterator[Any]:
        records = self._begin(epoch)
        for _ in itertools.islice(records, skipped):
            pass
        return records

    def _begin(self, epoch: int | None) -> Iterator[Any]:
        if epoch is not None and not has_state(self._loader.dataset):
            self._rng_at_start = RngState.capture(devices=False).state_dict()
        tell_epoch(self._loader.dataset, epoch)
        return iter(self._loader.dataset)

    def _fetched_here(
        self, epoch: int | None, records: Iterator[Any] | None, *, began_anew: bool
    ) -> Generator[Any, None, None]:
        loader = self._loader
        if records is None:
            records = self._begin(epoch)
        while True:
            items = read_items(records, self._batch_size, loader.drop_last)
            if not items and began_anew:
                # The state was that of a finished epoch; the next one is asked for.
                records = iter(loader.dataset)
                items = read_items(records, self._batch_size, loader.drop_last)
            if not items:
                return
            began_anew = False
            mine = cut_piece(items, self._rank, self._ranks)
            batch = loader.collate_fn(mine if loader.batched else mine[0])
            self.records += len(items)
            yield batch

    def _answered(
        self, pool: WorkerPool, epoch: int | None, skipped: int, restoring: list[RestoreRequest]
    ) -> Generator[Any, None, None]:
        seed = derive_seed(self._seed, "workers", epoch or 0, self._rank)
        requests = itertools.chain(restoring, self._requests(epoch, skipped))
        ended: set[int] = set()
        with contextlib.closing(pool.run(requests, seed)) as answers:
            for answer in itertools.islice(answers, len(restoring), None):
                self._states.note(answer)
                if answer.ended:
                    ended.add(answer.worker_id)
                    if len(ended) == self._loader.num_workers:
                        return
                elif skipped:
                    skipped -= 1
                else:
                    self.records += answer.records
                    yield answer.batch

    def _requests(self, epoch: int | None, skipped: int) -> Iterator[StreamRequest]:
        loader = self._loader
        for number in itertools.count():
            yield StreamRequest(
                self._seed,
                epoch,
                self._pass,
                number < skipped,
                self._batch_size,
                loader.drop_last,
                self._rank,
                self._ranks,
            )

    def _tell_of_reading_again(self, records: int) -> None:
        if not self._told:
            self._told = True
            _logger.info(
                "There is no state to put the iterable data set %s back to: %d records of this epoch are read again.",
                type(self._loader.dataset).__name__,
                records,
            )


def own_state(dataset: Any) -> dict[str, Any]:
    """Return a copy of what a data set says of itself, ``{}`` if it says nothing."""
    return {"dataset": copy.deepcopy(dataset.state_dict())} if has_state(dataset) else {}


def load_own_state(dataset: Any, state: Mapping[str, Any]) -> bool:
    """Give a data set its state back, if there is one; tell whether it was."""
    if "dataset" not in state or not has_state(dataset):
        tell_of_other_workers(dataset, state, 0)
        return False
    dataset.load_state_dict(copy.deepcopy(state["dataset"]))
    return True


def length_of(loader: Any) -> int | None:
    """Return ``len(loader)``, None where it has none."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _from_record(elements: Iterator[Any], records: int) -> Iterator[Any]:
    """The elements from a position in records on; an element that reaches over it is cut."""
    for element in elements:
        count = count_records(element)
        if records >= count:
            records -= count
        elif records:
            yield element[records:]
            records = 0
        else:
            yield element
