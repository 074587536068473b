"""Worker processes that fetch batches: torch's, with seeds, signals and an end of their own."""

import atexit
import contextlib
import ctypes
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from trainlab.data.fetch import Fetch, make_fetch
from trainlab.data.order import has_state, seed_host
from trainlab.data.share import Share
from trainlab.data.transfer import pin
from trainlab.distributed import derive_seed

__all__ = [
    "MapRequest",
    "RestoreRequest",
    "StreamRequest",
    "Worked",
    "WorkerPool",
    "protected_start",
    "read_items",
    "tell_epoch",
]

_IGNORED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
_PR_SET_PDEATHSIG = 1
# The workers started by this process, with its id: a forked child has a copy of this, and none of the workers.
_started: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()


@dataclass(slots=True)
class Worked:
    """What a worker sends back.

    Args:
        records: global records in the batch; 0 if there is none.
        batch: the batch.
        worker_id: who sends it.
        ended: the worker's part of an iterable data set is over.
        state: that of the worker's copy of the data set, pickled; None if it has none.
        note: what came with the request.
        passed_over: the records were read, and are no batch for this rank.
    """

    records: int
    batch: Any
    worker_id: int = 0
    ended: bool = False
    state: bytes | None = None
    note: Any = None
    passed_over: bool = False

    def pin_memory(self) -> "Worked":
        """Copy the batch into page-locked memory; torch's pinning thread asks for it."""
        self.batch = pin(self.batch)
        return self


@dataclass(slots=True)
class MapRequest:
    """One batch of a map-style data set.

    Args:
        seed: for the generators, set right before the fetch.
        records: global records in the batch, and in those before it that are no batches for this rank.
        indices: ``slice`` for consecutive records, an array, an int, or what a sampler gave.
        from_sampler: they are what a user's sampler gave.
        note: comes back with the answer.
    """

    seed: int
    records: int
    indices: Any
    from_sampler: bool = False
    note: Any = None

    def answer(self, work: "_Work") -> Worked:
        """Fetch it."""
        seed_host(self.seed)
        batch = self._fetched(work.fetch())
        return Worked(self.records, batch, _worker_id(), state=work.state(), note=self.note)

    def _fetched(self, fetch: Fetch) -> Any:
        if self.from_sampler:
            return fetch.look_up(self.indices)
        if isinstance(self.indices, slice):
            return fetch.cut(self.indices.start, self.indices.stop)
        return fetch.take(torch.from_numpy(self.indices) if isinstance(self.indices, np.ndarray) else self.indices)


@dataclass(slots=True)
class StreamRequest:
    """The next batch of the worker's own pass over an iterable data set.

    Args:
        seed: the stream's.
        epoch: number of the epoch; None outside training.
        passing: number of the pass; another than before makes the worker begin anew.
        skip: read the records and send nothing.
        batch_size: records of a global batch.
        drop_last: leave out a last batch that is not full.
        share: what this rank gets of each batch.
    """

    seed: int
    epoch: int | None
    passing: int
    skip: bool
    batch_size: int
    drop_last: bool
    share: Share

    def answer(self, work: "_Work") -> Worked:
        """Read it."""
        worker_id = _worker_id()
        if work.passing != self.passing:
            work.passing, work.batches, work.ended, work.records = self.passing, 0, False, None
        if work.ended:
            return Worked(0, None, worker_id, ended=True)
        # The same on all ranks, which read the same records. (The 0 was a rank.)
        items = self._read(work, derive_seed(self.seed, "worker", self.epoch or 0, work.batches, worker_id, 0))
        number = work.batches
        work.batches += 1
        # A data set that has come to its end may say that it is at its beginning.
        work.ended = len(items) < self.batch_size
        if self.drop_last and work.ended:
            items = []
        if not items:
            return Worked(0, None, worker_id, ended=True, state=work.state())
        mine = items if self.share.alone else self._mine(items, number, worker_id)
        if self.skip:
            return Worked(len(items), None, worker_id, state=work.state(), passed_over=mine is None)
        wanted = items if mine is None and self.share.whole and number == 0 else mine  # it may have to stand in
        batch = None if wanted is None else work.collate_fn(wanted if work.batched else wanted[0])
        return Worked(len(items), batch, worker_id, state=work.state(), passed_over=mine is None)

    def _mine(self, items: list[Any], number: int, worker_id: int) -> Any:
        """This rank's part of the worker's batch of this number; None if it gets none."""
        info = get_worker_info()
        turn = number * (1 if info is None else info.num_workers) + worker_id
        return self.share.cut(items) if self.share.takes(turn) else None

    def _read(self, work: "_Work", seed: int) -> list[Any]:
        seed_host(seed)
        if work.records is None:
            tell_epoch(work.dataset, self.epoch)
            work.records = iter(work.dataset)
        items = read_items(work.records, self.batch_size, drop_last=False)
        if not items and work.anew:
            # The state was that of a finished pass; the next one is asked for.
            seed_host(seed)
            work.records = iter(work.dataset)
            items = read_items(work.records, self.batch_size, drop_last=False)
        work.anew = False
        return items


@dataclass(slots=True)
class RestoreRequest:
    """Put the worker's copy of the data set back to a state.

    Args:
        state: what came with an answer of this worker; None to leave it as it is.
        passing: number of the pass over an iterable data set that goes on.
    """

    state: bytes | None
    passing: int

    def answer(self, work: "_Work") -> Worked:
        """Do so."""
        if self.state is not None:
            state = pickle.loads(self.state)
            work.dataset.load_state_dict(state["dataset"])
            work.passing, work.records = self.passing, None
            work.batches, work.ended = state["batches"], state["ended"]
            work.anew = state["anew"] or state["ended"]  # it is iterated next in a pass after the one that it knows
        return Worked(0, None)


def _worker_id() -> int:
    info = get_worker_info()
    return 0 if info is None else int(info.id)


def tell_epoch(dataset: Any, epoch: int | None) -> None:
    """Call ``set_epoch`` of a data set that has one, in training (``epoch`` is not None)."""
    if epoch is not None and callable(set_epoch := getattr(dataset, "set_epoch", None)):
        set_epoch(epoch)


def read_items(records: Iterator[Any], batch_size: int, drop_last: bool) -> list[Any]:
    """Read what one batch is made of.

    Args:
        records: an iterator over an iterable data set.
        batch_size: number of records.
        drop_last: whether fewer than ``batch_size`` are as good as none.

    Returns:
        The records, ``[]`` at the end.
    """
    items = list(itertools.islice(records, batch_size))
    return [] if drop_last and len(items) < batch_size else items


class WorkerPool:
    """The worker processes of one loader, kept from epoch to epoch where that is asked for.

    Args:
        loader: the ``trainlab.DataLoader`` whose arguments they get.
        pinned: whether batches are to arrive in page-locked memory.
    """

    def __init__(self, loader: Any, *, pinned: bool) -> None:
        self._requests = _Requests()
        self._generator = torch.Generator()
        self._keep = bool(loader.persistent_workers)
        self._iterator: Any = None
        self._engine: Any = torch.utils.data.DataLoader(
            _Work(loader.dataset, loader.collate_fn, loader.batched, has_state(loader.dataset)),  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._requests,
            num_workers=loader.num_workers,
            collate_fn=_unchanged,
            pin_memory=pinned,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=self._generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            in_order=loader.in_order,
        )

    def run(self, requests: Iterable[Any], seed: int) -> Generator[Worked, None, None]:
        """Have requests answered.

        Args:
            requests: in the order in which the answers are wanted; read ahead of the answers.
            seed: for the workers' generators at their start; this process's own are not drawn from.

        Returns:
            The answers. Closing it ends the workers, unless they are kept.
        """
        self._requests.upcoming = requests
        self._generator.manual_seed(seed)
        self._iterator = protected_start(self._engine)
        try:
            while True:
                try:
                    answer = next(self._iterator)
                except StopIteration:
                    return
                yield answer
        finally:
            self._requests.upcoming = ()  # they know their source, and it the pool
            if not self._keep:
                self.close()

    def close(self) -> None:
        """End the workers."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        workers = list(getattr(iterator, "_workers", ()))
        if callable(shut_down := getattr(iterator, "_shutdown_workers", None)):
            shut_down()
        for worker in workers:
            # One that is stuck in a user's code: it ignores the signal that torch ends it with.
            if worker.is_alive():
                worker.kill()
                worker.join()
        if hasattr(self._engine, "_iterator"):
            self._engine._iterator = None


class _Requests:
    """What torch's loader takes for a sampler; the requests are put in before each pass."""

    def __init__(self) -> None:
        self.upcoming: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.upcoming)

    def __len__(self) -> int:
        raise TypeError("The number of requests is not known.")


@dataclass
class _Work:
    """What torch's loader takes for a data set: it answers requests in a worker process."""

    dataset: Any
    collate_fn: Callable[[Any], Any]
    batched: bool
    stateful: bool
    passing: int | None = None
    batches: int = 0
    ended: bool = False
    anew: bool = False
    records: Iterator[Any] | None = None
    _fetch: Fetch | None = field(default=None, repr=False)

    def __getitem__(self, request: Any) -> Worked:
        try:
            answer: Worked = request.answer(self)
        except StopIteration as error:  # torch's loader would take it for the end of the epoch
            raise RuntimeError("The data set raised StopIteration where a record was asked for.") from error
        return answer

    def state(self) -> bytes | None:
        if not self.stateful:
            return None
        # Pickled here, for the queue pickles in another thread, while the data set goes on.
        told = {"dataset": self.dataset.state_dict(), "batches": self.batches, "ended": self.ended, "anew": False}
        return pickle.dumps(told)

    def fetch(self) -> Fetch:
        if self._fetch is None:
            self._fetch = make_fetch(self.dataset, self.collate_fn, batched=self.batched)
        return self._fetch


def protected_start(loader: Any, start: Callable[[Any], Any] = iter) -> Any:
    """Start a torch loader's workers such that they ignore signals and end with this process.

    Args:
        loader: a ``torch.utils.data.DataLoader``; it is afterwards what it was.
        start: what starts them; default ``iter``.

    Returns:
        What ``start`` gives for it.
    """
    users = loader.worker_init_fn
    loader.worker_init_fn = _WorkerStart(users, loader.multiprocessing_context or multiprocessing)
    try:
        with _signals_held_back():
            started = start(loader)
    finally:
        loader.worker_init_fn = users
    for iterator in (started, getattr(loader, "_iterator", None)):
        for worker in getattr(iterator, "_workers", ()):
            _started[worker] = os.getpid()
    return started


@atexit.register
def _end_forgotten_workers() -> None:
    """Kill the workers that are still there: Python ends them with SIGTERM, which they ignore, and waits for ever."""
    mine = [worker for worker, owner in list(_started.items()) if owner == os.getpid() and worker.is_alive()]
    if not mine:
        return
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for a worker that is killed
    for worker in mine:
        worker.kill()
        worker.join()


class _WorkerStart:
    """The first thing that a worker does."""

    def __init__(self, users: Callable[[int], None] | None, context: Any) -> None:
        self._users = users
        # A fork server would be a parent in between; and the kernel looks at the thread that forked, not the process.
        direct = context.get_start_method() != "forkserver"
        self._parent = os.getpid() if direct and threading.current_thread() is threading.main_thread() else None

    def __call__(self, worker_id: int) -> None:
        _end_with(self._parent)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, _Work):
            # WorkerInfo refuses plain assignments; users are to find their own data set in it.
            object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._users is not None:
            self._users(worker_id)


def _end_with(parent: int | None) -> None:
    """Have this process killed when the training process dies; ``parent`` if the kernel can be asked to."""
    if sys.platform == "linux" and parent is not None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch_parent, name="trainlab-parent", daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Workers begin with the signals held back that they are going to ignore, so that none ends them before."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unchanged(answer: Any) -> Any:
    return answer
