"""DistributedContext: which process this is among how many, and how they exchange objects."""

from types import TracebackType
from typing import TypeVar

from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError

__all__ = ["DistributedContext"]

T = TypeVar("T")


class DistributedContext:
    """The rank of this process, the number of processes, and exchanges of Python objects among them.

    Either none of the six numbers is given, for a single process, or all of them are.

    Args:
        rank: Of this process among all, 0 to ``size - 1``.
        size: Number of processes.
        local_rank: Of this process on its node, 0 to ``local_size - 1``.
        local_size: Number of processes on this node.
        cross_rank: Of this node, 0 to ``cross_size - 1``.
        cross_size: Number of nodes.
        chief_ip: Address of the node of rank 0; required with more than one node, default None.

    Attributes:
        data_rank: Which share of the data this process reads, 0 to ``data_size - 1``.
        data_size: Number of shares.

    Raises:
        InvalidTypeError: A number is no integer.
        InvalidValueError: Some of the numbers are given and others are not, one is out of range, or
            there are several nodes and no ``chief_ip``.
    """

    def __init__(
        self,
        *,
        rank: int | None = None,
        size: int | None = None,
        local_rank: int | None = None,
        local_size: int | None = None,
        cross_rank: int | None = None,
        cross_size: int | None = None,
        chief_ip: str | None = None,
    ) -> None:
        given = {
            "rank": rank,
            "size": size,
            "local_rank": local_rank,
            "local_size": local_size,
            "cross_rank": cross_rank,
            "cross_size": cross_size,
        }
        numbers = _all_or_none(given)
        self.rank, self.size = _rank_of("", numbers)
        self.local_rank, self.local_size = _rank_of("local_", numbers)
        self.cross_rank, self.cross_size = _rank_of("cross_", numbers)
        if max(self.local_size, self.cross_size) > self.size:
            raise InvalidValueError(
                f"There are no more processes on a node, and no more nodes, than processes. Received: {numbers}."
            )
        if self.cross_size > 1 and chief_ip is None:
            raise InvalidValueError(
                f"Several nodes find each other at the chief's address. Received: cross_size={self.cross_size} and "
                "no chief_ip. Pass chief_ip, the address of the node of rank 0."
            )
        self.chief_ip = chief_ip
        self.data_rank, self.data_size = self.rank, self.size

    def get_rank(self) -> int:
        """The rank of this process.

        Returns:
            0 to ``get_size() - 1``; 0 is the chief.
        """
        return self.rank

    def get_size(self) -> int:
        """The number of processes.

        Returns:
            At least 1.
        """
        return self.size

    def get_local_rank(self) -> int:
        """The rank of this process on its node.

        Returns:
            0 to ``local_size - 1``.
        """
        return self.local_rank

    def get_num_agents(self) -> int:
        """The number of nodes.

        Returns:
            At least 1.
        """
        return self.cross_size

    def broadcast(self, value: T) -> T:
        """Give every process the object of rank 0.

        Args:
            value: Any object that can be pickled; that of rank 0 counts.

        Returns:
            Rank 0's object.

        Raises:
            InvalidStateError: There are several processes.
        """
        self._require_one("broadcast")
        return value

    def broadcast_local(self, value: T) -> T:
        """Give every process the object of the first rank on its node.

        Args:
            value: Any object that can be pickled; that of the node's first rank counts.

        Returns:
            The object of the node's first rank.

        Raises:
            InvalidStateError: There are several processes.
        """
        self._require_one("broadcast_local")
        return value

    def gather(self, value: T) -> list[T] | None:
        """Bring the objects of all processes to rank 0.

        Args:
            value: Any object that can be pickled.

        Returns:
            The objects in the order of the ranks at rank 0; None elsewhere.

        Raises:
            InvalidStateError: There are several processes.
        """
        self._require_one("gather")
        return [value]

    def gather_local(self, value: T) -> list[T] | None:
        """Bring the objects of the node's processes to its first rank.

        Args:
            value: Any object that can be pickled.

        Returns:
            The node's objects in the order of the ranks at its first rank; None elsewhere.

        Raises:
            InvalidStateError: There are several processes.
        """
        self._require_one("gather_local")
        return [value]

    def allgather(self, value: T) -> list[T]:
        """Bring the objects of all processes to all of them.

        Args:
            value: Any object that can be pickled.

        Returns:
            The objects in the order of the ranks.

        Raises:
            InvalidStateError: There are several processes.
        """
        self._require_one("allgather")
        return [value]

    def allgather_local(self, value: T) -> list[T]:
        """Bring the objects of the node's processes to all of them.

        Args:
            value: Any object that can be pickled.

        Returns:
            The node's objects in the order of the ranks.

        Raises:
            InvalidStateError: There are several processes.
        """
        self._require_one("allgather_local")
        return [value]

    def close(self) -> None:
        """Give back what the context holds. A second call does nothing."""

    def __enter__(self) -> "DistributedContext":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DistributedContext(rank={self.rank}, size={self.size})"

    def _require_one(self, call: str) -> None:
        if self.size > 1:
            raise InvalidStateError(
                f"Several processes are not supported yet. Received: {call}() on rank {self.rank} of {self.size}. "
                "Train with one process: DistributedContext() without arguments."
            )


_ONE_PROCESS = {"rank": 0, "size": 1, "local_rank": 0, "local_size": 1, "cross_rank": 0, "cross_size": 1}


def _all_or_none(given: dict[str, int | None]) -> dict[str, int]:
    present = {name: number for name, number in given.items() if number is not None}
    if not present:
        return dict(_ONE_PROCESS)
    missing = [name for name in given if name not in present]
    if missing:
        raise InvalidValueError(
            f"The ranks and sizes are given all or none. Received: {present}, and no {', '.join(missing)}. "
            "Pass the others too, or none of them for a single process."
        )
    for name, number in present.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidTypeError(f"{name} is an int. Received: {number!r} of type {type(number).__name__}.")
    return present


def _rank_of(prefix: str, numbers: dict[str, int]) -> tuple[int, int]:
    rank, size = numbers[f"{prefix}rank"], numbers[f"{prefix}size"]
    if size < 1 or not 0 <= rank < size:
        raise InvalidValueError(
            f"{prefix}size is at least 1 and {prefix}rank is between 0 and {prefix}size - 1. "
            f"Received: {prefix}rank={rank}, {prefix}size={size}."
        )
    return rank, size
