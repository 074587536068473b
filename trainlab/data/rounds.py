"""Rounds in which all ranks tell what they have for the next batch, held on a thread of their own."""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from trainlab.distributed import Exchange
from trainlab.errors import InvalidStateError

__all__ = ["Answer", "Round", "Rounds"]

# What the end of a stream waits at most for a round that others are still to join; the thread ends with it anyway.
_PATIENCE = 1.0
_open: "weakref.WeakSet[Rounds]" = weakref.WeakSet()


class Answer(NamedTuple):
    """What a round found.

    Args:
        records: of each rank's next batch; None for a rank without one.
        lent: a batch of another rank's, in an epoch's first round if only some have one; else None.
    """

    records: list[int | None]
    lent: Any

    @property
    def ended(self) -> bool:
        """Whether no rank has a batch."""
        return all(one is None for one in self.records)


class Rounds:
    """Holds rounds one after the other, while training goes on.

    Args:
        exchange: connects the ranks; for this object alone.
        rank: this data rank.
        ranks: number of data ranks.
    """

    def __init__(self, exchange: Exchange, rank: int, ranks: int) -> None:
        self._exchange = exchange
        self._rank = rank
        self._ranks = ranks
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # A daemon, for it may be waiting for a rank that is gone when the program ends.
        self._thread = threading.Thread(
            target=_work, args=(self._tasks, exchange), name="trainlab-data-rounds", daemon=True
        )
        self._end = weakref.finalize(self, self._tasks.put, None)
        self._thread.start()
        _open.add(self)

    def begin(self, records: int | None, *, lend: bool, batch: Any = None) -> "Future[Answer]":
        """Begin a round; all ranks have to.

        Args:
            records: of this rank's next batch; None if it has none.
            lend: this is the first round of an epoch: a rank without a batch gets one of another's.
            batch: this rank's, to be lent.

        Returns:
            What the round will have found, or the error that it ended with.

        Raises:
            InvalidStateError: after ``close``.
        """
        if not self._end.alive:
            raise InvalidStateError("The stream is closed. Begin an epoch again, which opens it.")
        future: Future[Answer] = Future()
        self._tasks.put((future, Round(self._rank, self._ranks, records, lend, batch)))
        return future

    def close(self) -> None:
        """End the thread, once the round that it is in is over; it is waited for, but not for ever."""
        self._end()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)


@atexit.register
def _close_forgotten_rounds() -> None:
    """End the threads while they still can come back from a round: the process is aborted for one that does later."""
    for rounds in list(_open):
        rounds.close()


class Round(NamedTuple):
    """What a rank tells in a round.

    Args:
        rank: this data rank.
        ranks: number of data ranks.
        records: of this rank's next batch; None if it has none.
        lend: a rank without a batch gets one of another's.
        batch: this rank's, to be lent.
    """

    rank: int
    ranks: int
    records: int | None
    lend: bool
    batch: Any

    def hold(self, exchange: Exchange) -> Answer:
        """Hold it, together with all other ranks."""
        # One more than the records, so that a batch of none differs from no batch.
        mine = 0 if self.records is None else self.records + 1
        counts = exchange.maximum([mine if rank == self.rank else 0 for rank in range(self.ranks)])
        lent = None
        if self.lend and any(counts) and not all(counts):
            lender = next(rank for rank, count in enumerate(counts) if count)
            lent = exchange.broadcast(self.batch if lender == self.rank else None, lender)
        return Answer([count - 1 if count else None for count in counts], lent)


def _work(tasks: "queue.SimpleQueue[tuple[Future[Answer], Round] | None]", exchange: Exchange) -> None:
    work: Callable[[Exchange], Answer]
    while (task := tasks.get()) is not None:
        future, work = task[0], task[1].hold
        try:
            future.set_result(work(exchange))
        except BaseException as error:  # it is raised where the batch is asked for
            future.set_exception(error)
        del task, future, work  # a batch that was lent is not kept while the thread waits
