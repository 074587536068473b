"""Channel: bytes among the ranks over the job's store, for a thread that must not use a collective."""

from collections.abc import Callable
from typing import TypeVar

from trainlab.distributed.store import JobStore
from trainlab.distributed.store_server import pack, unpack
from trainlab.distributed.watchdog import Watchdog
from trainlab.errors import DistributedError, InvalidStateError, PeerFailedError

__all__ = ["Channel"]

T = TypeVar("T")


class Channel:
    """Gathers and broadcasts bytes. Every rank makes the same calls in the same order, each from one thread.

    A call waits as long as it takes, and ends with an error as soon as a rank has failed or left.

    Args:
        name: Tells it from the other channels of the job; every rank opens it once.
        store: The store of the job; default None, in one process. A connection of its own is made at the first call.
        watchdog: Of this rank; default None, in one process.
        rank: Of this process, default 0.
        size: Number of ranks, default 1.
        is_aborted: Asked while a call waits; True ends it with a DistributedError. Default None.

    Raises:
        InvalidStateError: There are several ranks, and no store or no watchdog.
    """

    def __init__(
        self,
        name: str,
        store: JobStore | None = None,
        watchdog: Watchdog | None = None,
        rank: int = 0,
        size: int = 1,
        *,
        is_aborted: Callable[[], bool] | None = None,
    ) -> None:
        if size > 1 and (store is None or watchdog is None):
            raise InvalidStateError(f"A channel of several ranks needs a store and a watchdog. Received: size={size}.")
        self.rank, self.size = rank, size
        self._name, self._job, self._watchdog, self._is_aborted = name, store, watchdog, is_aborted
        self._client: JobStore | None = None
        self._calls = 0
        self._awaited: int | None = None

    def gather(self, value: bytes) -> list[bytes] | None:
        """Bring the values of all ranks to the chief.

        Args:
            value: This rank's.

        Returns:
            The values by rank at the chief; None elsewhere, at once.

        Raises:
            PeerFailedError: A rank failed.
            DistributedError: A rank has left, ``is_aborted`` said so, or the channel is closed.
        """
        if self.size == 1:
            return [value]
        return self._explained(lambda store: self._gather(store, self._key("gather"), value))

    def broadcast(self, value: bytes | None = None) -> bytes:
        """Give all ranks the chief's value.

        Args:
            value: The chief's; None elsewhere.

        Returns:
            The chief's value.

        Raises:
            InvalidStateError: The chief gave none.
            PeerFailedError: A rank failed.
            DistributedError: The chief has left, ``is_aborted`` said so, or the channel is closed.
        """
        if self.rank == 0 and value is None:
            raise InvalidStateError("The chief broadcasts a value. Received: None.")
        if self.size == 1 and value is not None:
            return value
        return self._explained(lambda store: self._broadcast(store, self._key("broadcast"), value))

    def allgather(self, value: bytes) -> list[bytes]:
        """Bring the values of all ranks to all of them.

        Args:
            value: This rank's.

        Returns:
            The values by rank.

        Raises:
            PeerFailedError: A rank failed.
            DistributedError: A rank has left, ``is_aborted`` said so, or the channel is closed.
        """
        gathered = self.gather(value)
        return unpack(self.broadcast(None if gathered is None else pack(gathered)[4:]))

    def close(self) -> None:
        """Close the connection; later calls of several ranks fail. A second call does nothing."""
        self._job = None
        if self._client is not None:
            self._client.close()

    def _gather(self, store: JobStore, key: str, value: bytes) -> list[bytes] | None:
        if self.rank != 0:
            store.set(f"{key}/{self.rank}", value)
            return None
        return [value, *(self._take(store, f"{key}/{rank}", rank) for rank in range(1, self.size))]

    def _broadcast(self, store: JobStore, key: str, value: bytes | None) -> bytes:
        if value is None:
            return self._take(store, key, 0, readers=self.size - 1)
        store.set(key, value)
        return value

    def _take(self, store: JobStore, key: str, sender: int, readers: int = 1) -> bytes:
        self._awaited = sender
        try:
            return store.take(key, readers)
        finally:
            self._awaited = None

    def _key(self, call: str) -> str:
        self._calls += 1
        return f"channel/{self._name}/{self._calls}/{call}"

    def _explained(self, call: Callable[[JobStore], T]) -> T:
        if self._job is None or self._watchdog is None:
            raise DistributedError(f"The channel {self._name!r} is closed.")
        self._while_waiting()
        try:
            if self._client is None:
                self._client = self._job.client(self._while_waiting)
            with self._watchdog.doing(f"the channel {self._name!r}"):
                return call(self._client)
        except DistributedError as error:
            cause = self._watchdog.explain(error)
            if cause is error:
                raise
            raise cause from error

    def _while_waiting(self) -> None:
        if self._watchdog is None:
            return
        if self._watchdog.failure is not None:
            raise PeerFailedError(self._watchdog.failure.headline(self.size))
        if self._is_aborted is not None and self._is_aborted():
            raise DistributedError(f"The wait in the channel {self._name!r} was given up on rank {self.rank}.")
        if self._awaited in self._watchdog.left_ranks:
            raise DistributedError(f"Rank {self._awaited} has ended; rank {self.rank} waited for it in {self._name!r}.")
