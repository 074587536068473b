"""Where the batches of an iterable data set come from: every rank reads all of it, and takes its part."""

import contextlib
import functools
import itertools
import logging
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from trainlab.data.order import SharedRng, has_state
from trainlab.data.share import NOTHING, Part, Share
from trainlab.data.sources import length_of, load_own_state, own_state
from trainlab.data.worker_states import WorkerStates
from trainlab.data.workers import RestoreRequest, StreamRequest, WorkerPool, read_items, tell_epoch
from trainlab.distributed import RngState, derive_seed

__all__ = ["IterableSource"]

_logger = logging.getLogger("trainlab.data")


class IterableSource:
    """An iterable data set.

    On several ranks each reads all records, in the order of one process, with random numbers that are the same on
    all of them: those of a worker are a function of the seed, the epoch, the batch and the worker; without workers
    they are of generators that are put in place for each read. Only this rank's part becomes a batch. Number ``k`` of
    worker ``w`` out of ``W`` counts as batch ``k * W + w`` where whole batches are dealt out.

    Args:
        loader: the ``trainlab.DataLoader``.
        seed: what the workers' seeds are made from, together with the epoch.
        share: what this rank gets of each global batch.
        pinned: whether workers are to deliver into page-locked memory.
    """

    exact: bool = False

    def __init__(self, loader: Any, seed: int, share: Share, pinned: bool) -> None:
        self.length: int | None = None
        self.total: int | None = None
        self.records = 0
        self.part: Part | None = None
        self.fetches_here = loader.num_workers == 0
        self._loader = loader
        self._seed = seed
        self._share = share
        self._pool = WorkerPool(loader, pinned=pinned) if loader.num_workers else None
        self._states = WorkerStates(loader)
        self._batch_size = loader.batch_size or 1
        self._pass = 0
        self._rng_at_start: dict[str, Any] | None = None
        self._rng: SharedRng | None = None
        self._first: Any = NOTHING
        self._told = False

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position."""
        self.length = self._share.turns(length_of(self._loader))
        self.total = None
        self.records = records
        self._rng_at_start = None
        self._first = NOTHING
        if self._pool is not None:
            # At once, since the state may be asked for before a batch is.
            self._pass += 1
            restoring = self._states.begin(batches, self._pass, state)
            if batches and not restoring:
                self._tell_of_reading_again(records)
            return self._answered(self._pool, epoch, (0, 0) if restoring else (records, batches), restoring)
        restored = state is not None and load_own_state(self._loader.dataset, state)
        if not self._share.alone:
            return self._begin_for_ranks(epoch, records, batches, state or {}, restored=restored)
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

    def first_batch(self) -> Any:
        """Return the first global batch, for a rank that read the epoch to its end and got none."""
        return self._first() if isinstance(self._first, functools.partial) else self._first

    def state_dict(self) -> dict[str, Any]:
        """Return the data set's own state, or the generators' at the epoch's start, which reading again needs."""
        if not self.fetches_here:
            return self._states.state_dict()
        state = own_state(self._loader.dataset)
        if not state:
            return {"rng_at_start": self._rng_at_start}
        if self._rng is not None:
            state["rng"] = self._rng.state_dict()
        return state

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
            batch = loader.collate_fn(items if loader.batched else items[0])
            self.records += len(items)
            yield batch

    def _begin_for_ranks(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any], *, restored: bool
    ) -> Generator[Any, None, None]:
        """Begin at a position where several ranks read alike; nothing is drawn from the process's generators."""
        seed = derive_seed(self._seed, "records", epoch or 0)
        if restored or not batches:
            self._rng = SharedRng(seed, state.get("rng") if batches else None)
            return self._fetched_for_ranks(self._rng, epoch, None, began_anew=restored and not batches)
        self._tell_of_reading_again(records)
        self._rng = SharedRng(seed, state.get("rng_at_start"))
        with self._rng.in_place():
            rest = self._read_again(epoch, records)
        return self._fetched_for_ranks(self._rng, epoch, rest, began_anew=False)

    def _fetched_for_ranks(
        self, rng: SharedRng, epoch: int | None, records: Iterator[Any] | None, *, began_anew: bool
    ) -> Generator[Any, None, None]:
        share, loader, passed = self._share, self._loader, 0
        for number in itertools.count():
            with rng.in_place():
                if records is None:
                    records = self._begin(epoch)
                items = read_items(records, self._batch_size, loader.drop_last)
            if not items and began_anew:
                with rng.in_place(anew=True):
                    records = iter(loader.dataset)
                    items = read_items(records, self._batch_size, loader.drop_last)
            if not items:
                self.total = number
                return
            began_anew = False
            passed += len(items)
            mine = share.cut(items) if share.takes(number) else None
            if number == 0 and share.whole:
                self._first = functools.partial(loader.collate_fn, items if loader.batched else items[0])
            if mine is None:
                continue
            batch = loader.collate_fn(mine if loader.batched else mine[0])
            self.records, passed = self.records + passed, 0
            self.part, self._first = share.part(number, len(items)), NOTHING
            yield batch

    def _answered(
        self, pool: WorkerPool, epoch: int | None, position: tuple[int, int], restoring: list[RestoreRequest]
    ) -> Generator[Any, None, None]:
        skipped, passed, number, share = position[0], 0, 0, self._share
        # As on rank 0 everywhere, for all ranks' workers are to read the same.
        seed = derive_seed(self._seed, "workers", epoch or 0, 0)
        requests = itertools.chain(restoring, self._requests(epoch, position[1]))
        ended: set[int] = set()
        with contextlib.closing(pool.run(requests, seed)) as answers:
            for answer in itertools.islice(answers, len(restoring), None):
                self._states.note(answer)
                if answer.ended:
                    ended.add(answer.worker_id)
                    if len(ended) == self._loader.num_workers:
                        self.total = number
                        return
                    continue
                number += 1
                if skipped > 0:
                    skipped -= answer.records
                elif answer.passed_over:
                    passed += answer.records
                    if self._first is NOTHING:
                        self._first = answer.batch
                else:
                    self.records, passed = self.records + passed + answer.records, 0
                    if not share.alone:
                        self.part, self._first = share.part(number - 1, answer.records), None
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
                self._share,
            )

    def _tell_of_reading_again(self, records: int) -> None:
        if not self._told:
            self._told = True
            _logger.info(
                "There is no state to put the iterable data set %s back to: %d records of this epoch are read again.",
                type(self._loader.dataset).__name__,
                records,
            )
