"""Ranks that are threads of this process: each gets pickled copies of the others' values, as processes do."""

import pickle
import threading
from collections.abc import Callable
from typing import Any


class ThreadExchange:
    """The exchange of one such rank.

    Args:
        rank: its rank.
        size: how many ranks there are.
        board: where all of them lay down what they send.
        meeting: where they wait for each other.
    """

    def __init__(self, rank: int, size: int, board: list[bytes], meeting: threading.Barrier) -> None:
        self.rank, self.size, self.calls = rank, size, 0
        self._board, self._meeting = board, meeting

    def allgather(self, value: Any) -> list[Any]:
        """Give every rank the values of all, in order."""
        self.calls += 1
        self._board[self.rank] = pickle.dumps(value)
        self._meeting.wait()
        found = [value if r == self.rank else pickle.loads(content) for r, content in enumerate(self._board)]
        self._meeting.wait()
        return found


def on_ranks(size: int, function: Callable[[ThreadExchange], Any]) -> list[Any]:
    """Call a function on each of several ranks.

    Args:
        size: how many.
        function: takes the rank's exchange.

    Returns:
        What it returned, or raised, by rank.
    """
    board, meeting, found = [b""] * size, threading.Barrier(size, timeout=120), [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = function(ThreadExchange(rank, size, board, meeting))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def dealt(size: int, function: Callable[[ThreadExchange], Any]) -> Any:
    """Call a function on each of several ranks that must all return the same.

    Args:
        size: how many.
        function: takes the rank's exchange.

    Returns:
        What all of them returned.
    """
    first, *others = on_ranks(size, function)
    for found in (first, *others):
        if isinstance(found, Exception):
            raise found
        # repr tells NaN from NaN, and floats to the last bit.
        assert repr(found) == repr(first)
    return first
