"""Where batches come from; those of a map-style data set, fetched here or by workers."""

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from trainlab.data.fetch import Fetch, make_fetch
from trainlab.data.order import OwnSampler, SharedRng, count_records, has_state, shuffled_order
from trainlab.data.share import NOTHING, Joined, Part, Share
from trainlab.data.worker_states import WorkerStates, tell_of_other_workers
from trainlab.data.workers import MapRequest, Worked, WorkerPool, read_items
from trainlab.distributed import derive_seed

__all__ = ["IndexSource", "Source", "length_of", "load_own_state", "own_state"]


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
        """Batches that this rank gets in a whole epoch; None if that is not known."""
        ...

    @property
    def total(self) -> int | None:
        """Global batches of a whole epoch, where whole ones are dealt out; known at the epoch's end at the latest."""
        ...

    @property
    def part(self) -> Part | None:
        """What the batch given last was to this rank; None with one rank, and before the first."""
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

    def first_batch(self) -> Any:
        """Return the first global batch, where whole ones were dealt out and this rank got none in the epoch."""
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
        share: what this rank gets of each global batch.
        pinned: whether workers are to deliver into page-locked memory.
    """

    def __init__(self, loader: Any, seed: int, share: Share, pinned: bool) -> None:
        self.length: int | None = None
        self.total: int | None = None
        self.records = 0
        self.part: Part | None = None
        self._loader = loader
        self._seed = seed
        self._share = share
        self._own = OwnSampler(loader.own_sampler) if loader.own_sampler is not None else None
        self.exact = self._own is None
        self.fetches_here = loader.num_workers == 0
        self._pool = WorkerPool(loader, pinned=pinned) if loader.num_workers else None
        self._states = WorkerStates(loader)
        self._batch_size = loader.batch_size or 1
        # A batch that goes to one rank as a whole is augmented alike whichever rank that is.
        self._rank_in_seeds = 0 if share.whole else share.rank
        self._epoch: int | None = None
        self._sampler_at_start: Any = None
        self._indices: Iterator[Any] = iter(())
        self._peeked: Any = NOTHING
        self._first: Any = NOTHING

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position."""
        self.records = records
        self._epoch = epoch
        if state is not None and self.fetches_here:
            load_own_state(self._loader.dataset, state)
        if self._own is not None:
            return self._own_batches(self._own, epoch, records, batches, state)
        size = len(self._loader.dataset)
        full, rest = divmod(max(size - records, 0), self._batch_size)
        keeps_rest = rest > 0 and not self._loader.drop_last and self._share.bounds(rest) is not None
        self.total = batches + full + keeps_rest
        self.length = self._share.turns(self.total)
        end = size if keeps_rest else records + full * self._batch_size
        if self._pool is None:
            if self._share.alone:
                return self._fetched_here(epoch, records, end)
            return self._parts_fetched_here(epoch, records, end, batches)
        ask = self._requests if self._share.alone else self._requests_of_parts
        requests = ask(epoch, records, end, batches)
        return self._answered(self._pool, requests, epoch, batches, state)

    def more(self) -> bool | None:
        """Look at the next indices of a user's sampler; nothing is fetched."""
        if self._pool is not None or self._own is None:
            return None
        if self._peeked is NOTHING:
            self._peeked = next(self._indices, NOTHING)
        return self._peeked is not NOTHING

    def first_batch(self) -> Any:
        """Fetch the first global batch in this process, for a rank that got none."""
        fetch = self._fetch()
        if self._own is not None:
            return fetch.look_up(self._first)
        order = self._order(self._epoch)
        wanted = self._wanted(order, 0, min(self._batch_size, len(self._loader.dataset)))
        return self._fetched(fetch, wanted)

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

    def _fetch(self) -> Fetch:
        return make_fetch(self._loader.dataset, self._loader.collate_fn, batched=self._loader.batched)

    def _order(self, epoch: int | None) -> Tensor | None:
        if not self._loader.shuffle:
            return None
        return shuffled_order(len(self._loader.dataset), self._seed, epoch or 0)

    def _fetched_here(self, epoch: int | None, records: int, end: int) -> Generator[Any, None, None]:
        fetch, order = self._fetch(), self._order(epoch)
        if order is not None:
            order = order.to(fetch.device)
        batch_size, single = self._batch_size, not self._loader.batched
        for start in range(records, end, batch_size):
            stop = min(start + batch_size, end)
            if order is None:
                batch = fetch.cut(start, stop)
            else:
                batch = fetch.take(int(order[start]) if single else order[start:stop])
            self.records = stop
            yield batch

    def _parts_fetched_here(
        self, epoch: int | None, records: int, end: int, batches: int
    ) -> Generator[Any, None, None]:
        fetch = self._fetch()
        for part, passed, wanted in self._wanted_of_each(self._order(epoch), records, end, batches):
            batch = self._fetched(fetch, wanted)
            self.records += passed
            self.part = part
            yield batch

    @staticmethod
    def _fetched(fetch: Fetch, wanted: Any) -> Any:
        if isinstance(wanted, slice):
            return fetch.cut(wanted.start, wanted.stop)
        return fetch.take(wanted.to(fetch.device) if isinstance(wanted, Tensor) else wanted)

    def _wanted_of_each(
        self, order: Tensor | None, records: int, end: int, batches: int
    ) -> Iterator[tuple[Part, int, Any]]:
        """This rank's part of each global batch: what it is, the records up to its end, and which ones are wanted."""
        share, passed = self._share, 0
        for number, start in enumerate(range(records, end, self._batch_size), batches):
            size = min(self._batch_size, end - start)
            passed += size
            if share.takes(number):
                yield share.part(number, size), passed, self._wanted(order, start, size)
                passed = 0

    def _wanted(self, order: Tensor | None, start: int, size: int) -> Any:
        """Which records this rank wants of a global batch: a slice, a tensor of indices, or one index."""
        wanted = self._share.positions(start, size)
        if order is not None:
            wanted = order[wanted]
        return wanted if isinstance(wanted, slice) or self._loader.batched else int(wanted[0])

    def _requests(self, epoch: int | None, records: int, end: int, batches: int) -> Iterator[MapRequest]:
        order, single = self._order(epoch), not self._loader.batched
        for number, start in enumerate(range(records, end, self._batch_size), batches):
            stop = min(start + self._batch_size, end)
            indices: Any = slice(start, stop)
            if order is not None:
                # An array, since tensors would be sent through shared memory.
                indices = int(order[start]) if single else order[start:stop].numpy()
            yield MapRequest(self._batch_seed(epoch, number), stop - start, indices)

    def _requests_of_parts(self, epoch: int | None, records: int, end: int, batches: int) -> Iterator[MapRequest]:
        for part, passed, wanted in self._wanted_of_each(self._order(epoch), records, end, batches):
            indices = wanted.numpy() if isinstance(wanted, Tensor) else wanted
            yield MapRequest(self._batch_seed(epoch, part.number), passed, indices, note=part)

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
        seed = derive_seed(self._seed, "workers", epoch or 0, batches, self._share.rank)
        return self._answers(pool.run(itertools.chain(restoring, requests), seed), len(restoring))

    def _answers(self, answers: Generator[Worked, None, None], restoring: int) -> Generator[Any, None, None]:
        with contextlib.closing(answers):
            for answer in itertools.islice(answers, restoring, None):
                self._states.note(answer)
                self.records += answer.records
                self.part = answer.note
                yield answer.batch

    def _batch_seed(self, epoch: int | None, number: int) -> int:
        return derive_seed(self._seed, "batch", epoch or 0, number, self._rank_in_seeds)

    def _own_batches(
        self, own: OwnSampler, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        self.length = self._share.turns(length_of(self._loader))
        self.total = None
        saved = (state or {}).get("sampler")
        if saved is not None:
            own.load_state_dict(saved["start"] if saved["epoch"] == epoch else saved["now"])
        self._sampler_at_start = own.state_dict()
        self._peeked = NOTHING
        groups = self._groups(own, epoch, records)
        self._indices = self._own_indices(groups, batches)
        if self._pool is None:
            return self._own_fetched_here()
        requests = (
            MapRequest(self._batch_seed(epoch, number), count, mine, from_sampler=True, note=part)
            for number, count, mine, part in self._indices
        )
        return self._answered(self._pool, requests, epoch, batches, state)

    def _own_fetched_here(self) -> Generator[Any, None, None]:
        fetch = self._fetch()
        while self.more():
            (_, count, mine, part), self._peeked = self._peeked, NOTHING
            batch = fetch.look_up(mine)
            self.records += count
            self.part = part
            yield batch

    def _groups(self, own: OwnSampler, epoch: int | None, records: int) -> Iterator[Any]:
        """What global batches are made of, from a position on: lists of a sampler's elements, or its own batches."""
        loader = self._loader
        elements = own.start(self._seed, epoch)
        if loader.batch_size is not None:
            elements = itertools.islice(elements, records, None)
        else:
            # An element is a batch of keys, or one key, which may stand for several records.
            elements = _from_record(elements, records, len if loader.batched else count_records)
        groups = elements
        if loader.batches_joined > 1:
            groups = map(Joined, iter(functools.partial(read_items, elements, loader.batches_joined, False), []))
        elif loader.batch_size is not None or not loader.batched:
            groups = iter(functools.partial(read_items, elements, self._batch_size, loader.drop_last), [])
        if self._share.alone or own.draws_at_the_start_only():
            return groups
        # What a sampler draws as it goes has to be the same on all ranks.
        return SharedRng(derive_seed(self._seed, "sampling", epoch or 0)).read(groups)

    def _own_indices(self, groups: Iterator[Any], batches: int) -> Iterator[tuple[int, int, Any, Part | None]]:
        """Of each batch that this rank gets: its number, the records up to its end, its keys and what part it is."""
        share, batched, passed, number = self._share, self._loader.batched, 0, batches - 1
        for number, group in enumerate(groups, batches):
            passed += len(group) if batched else sum(map(count_records, group))
            if share.alone:
                mine, part = group, None
            else:
                mine = share.cut(group) if share.takes(number) else None
                if number == 0:
                    self._first = group if batched else group[0]
                if mine is None:
                    continue
                part = share.part_of(number, group)
            yield number, passed, mine if batched else mine[0], part
            passed = 0
        self.total = number + 1


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


def _from_record(elements: Iterator[Any], records: int, count_in: Callable[[Any], int]) -> Iterator[Any]:
    """The elements from a position in records on; an element that reaches over it is cut."""
    for element in elements:
        count = count_in(element)
        if records >= count:
            records -= count
        elif records:
            yield element[records:]
            records = 0
        else:
            yield element
