"""DistributedContext: which process this is among how many, and how they exchange objects."""

import importlib.util
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from trainlab.distributed.channel import Channel
from trainlab.distributed.exchange import Exchange
from trainlab.distributed.group import Groups, Limits, is_group_open
from trainlab.distributed.packing import is_packed, pack, pack_error, unpack
from trainlab.distributed.places import (
    Place,
    place_of_deepspeed,
    place_of_environment,
    place_of_torchrun,
    port_of_environment,
)
from trainlab.distributed.watchdog import Watchdog
from trainlab.errors import (
    DisagreementError,
    InvalidStateError,
    InvalidTypeError,
    InvalidValueError,
    MissingDependencyError,
    PeerFailedError,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["DistributedContext", "current_context", "join"]

T = TypeVar("T")

# The context that opened what connects this process with others; further ones share it.
_current: "list[DistributedContext]" = []


class DistributedContext:
    """The rank of this process, the number of processes, and exchanges of Python objects among them.

    Either none of the six numbers is given, for a single process, or all of them are. With several processes the
    constructor connects them: over the process group of torch that is open, or by opening one at ``chief_ip`` and the
    port of the environment variable MASTER_PORT (29500 if it is not set). So it returns when all have come. A second
    context in the same process shares the first one's connections, and the first one closes them.

    As a context manager it closes itself, and tells the other ranks of an error that leaves the block (see ``guard``).

    Args:
        rank: Of this process among all, 0 to ``size - 1``.
        size: Number of processes.
        local_rank: Of this process on its node, 0 to ``local_size - 1``.
        local_size: Number of processes on this node.
        cross_rank: Of this node, 0 to ``cross_size - 1``.
        cross_size: Number of nodes.
        chief_ip: Address of the node of rank 0; required with more than one node, default None.
        timeout: Seconds that an exchange or a collective waits for the other ranks at most. Default None: the
            environment variable TRAINLAB_TIMEOUT, or 600.
        heartbeat_timeout: Seconds without a sign of life after which a rank is given up. Default None: the environment
            variable TRAINLAB_HEARTBEAT_TIMEOUT, or 60.

    Attributes:
        rank: Of this process.
        size: Number of processes.
        local_rank: Of this process on its node.
        local_size: Number of processes on this node.
        cross_rank: Of this node.
        cross_size: Number of nodes.
        chief_ip: Address of the node of rank 0; None where it is not known.
        data_rank: Which share of the data this process reads, 0 to ``data_size - 1``.
        data_size: Number of shares.
        is_chief: Whether this is rank 0, which alone writes what the job writes once.
        exchange: Objects and numbers among all ranks, for the main thread.
        watchdog: Finds out which rank failed first.
        process_group: torch's default group; None for a process without one.

    Raises:
        InvalidTypeError: A number is no integer.
        InvalidValueError: Some of the numbers are given and others are not, one is out of range, there are several
            nodes and no ``chief_ip``, or torch's open group has other numbers.
        DistributedError: The processes do not find each other.
    """

    _closed: bool
    _owned: bool

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
        timeout: float | None = None,
        heartbeat_timeout: float | None = None,
    ) -> None:
        given = {
            "rank": rank,
            "size": size,
            "local_rank": local_rank,
            "local_size": local_size,
            "cross_rank": cross_rank,
            "cross_size": cross_size,
        }
        place = _place_of(given, chief_ip)
        self._connect(place, Limits.of(timeout, heartbeat_timeout), "gloo")

    @classmethod
    def from_torch_distributed(
        cls, *, timeout: float | None = None, heartbeat_timeout: float | None = None
    ) -> "DistributedContext":
        """The context of a process that torchrun started, or whose process group of torch is open.

        Args:
            timeout: As the class's.
            heartbeat_timeout: As the class's.

        Returns:
            The context. It reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK and GROUP_WORLD_SIZE; where
            the last four are not set, as in processes of ``torch.multiprocessing``, the ranks find out by their hosts
            who is on which node.

        Raises:
            InvalidValueError: No group is open, and RANK or WORLD_SIZE is not set or makes no sense.
            DistributedError: The processes do not find each other.
        """
        place = place_of_environment() if is_group_open() else place_of_torchrun()
        return join(place, timeout=timeout, heartbeat_timeout=heartbeat_timeout)

    @classmethod
    def from_deepspeed(
        cls, *, timeout: float | None = None, heartbeat_timeout: float | None = None
    ) -> "DistributedContext":
        """The context of a process that DeepSpeed's launcher started.

        Args:
            timeout: As the class's.
            heartbeat_timeout: As the class's.

        Returns:
            The context. It reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, CROSS_RANK and CROSS_SIZE.

        Raises:
            MissingDependencyError: DeepSpeed is not installed.
            InvalidValueError: RANK or WORLD_SIZE is not set, or a variable makes no sense.
            DistributedError: The processes do not find each other.
        """
        if importlib.util.find_spec("deepspeed") is None:
            raise MissingDependencyError(
                "from_deepspeed() needs DeepSpeed, which is not installed. Install it with `pip install deepspeed`, "
                "or start the program with torchrun and use from_torch_distributed()."
            )
        return join(place_of_deepspeed(), timeout=timeout, heartbeat_timeout=heartbeat_timeout)

    @property
    def process_group(self) -> "ProcessGroup | None":
        """The default group of torch; None for a process without one."""
        return self._groups.process_group

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
            value: Any object that can be pickled; that of rank 0 counts. Tensors are not pickled, and arrive without
                their gradients.

        Returns:
            Rank 0's object. A tensor that was on a GPU is on this process's own.

        Raises:
            InvalidTypeError: The object cannot be pickled; on every rank.
            PeerFailedError: Another rank has failed.
        """
        return self.exchange.broadcast(value)

    def broadcast_local(self, value: T) -> T:
        """Give every process the object of the first rank on its node.

        Args:
            value: As for ``broadcast``; that of the node's first rank counts.

        Returns:
            The object of the node's first rank.

        Raises:
            InvalidTypeError: The object cannot be pickled; on every rank of the node.
            PeerFailedError: Another rank has failed.
        """
        return self._groups.node_exchange.broadcast(value)

    def gather(self, value: T) -> list[T] | None:
        """Bring the objects of all processes to rank 0.

        Args:
            value: As for ``broadcast``.

        Returns:
            The objects in the order of the ranks at rank 0; None elsewhere.

        Raises:
            InvalidTypeError: An object cannot be pickled; on its rank and on rank 0.
            PeerFailedError: Another rank has failed.
        """
        return self.exchange.gather(value)

    def gather_local(self, value: T) -> list[T] | None:
        """Bring the objects of the node's processes to its first rank.

        Args:
            value: As for ``broadcast``.

        Returns:
            The node's objects in the order of the ranks at its first rank; None elsewhere.

        Raises:
            InvalidTypeError: An object cannot be pickled; on its rank and on the node's first.
            PeerFailedError: Another rank has failed.
        """
        return self._groups.node_exchange.gather(value)

    def allgather(self, value: T) -> list[T]:
        """Bring the objects of all processes to all of them.

        Args:
            value: As for ``broadcast``.

        Returns:
            The objects in the order of the ranks.

        Raises:
            InvalidTypeError: An object cannot be pickled; on every rank.
            PeerFailedError: Another rank has failed.
        """
        return self.exchange.allgather(value)

    def allgather_local(self, value: T) -> list[T]:
        """Bring the objects of the node's processes to all of them.

        Args:
            value: As for ``broadcast``.

        Returns:
            The node's objects in the order of the ranks.

        Raises:
            InvalidTypeError: An object cannot be pickled; on every rank of the node.
            PeerFailedError: Another rank has failed.
        """
        return self._groups.node_exchange.allgather(value)

    def on_chief(self, function: Callable[[], T]) -> T:
        """Let the chief alone do something whose outcome all ranks need. The others wait as long as the chief lives.

        Args:
            function: What the chief calls; the others do not.

        Returns:
            What the chief's call returned, which has to be something that can be pickled.

        Raises:
            InvalidTypeError: The chief's result cannot be pickled; on every rank.
            PeerFailedError: Another rank has failed.
            BaseException: What the chief's call raised, on every rank; an error that cannot be pickled comes to the
                others with its message, as the class of trainlab's that it is or as a DistributedError.
        """
        self._require_open("on_chief")
        if self.size == 1:
            return function()
        if self.is_chief:
            return self._call_on_chief(function)
        outcome: T = self._hear_from_chief()
        return outcome

    def side_exchange(self) -> Exchange:
        """A further exchange among all ranks, for one other thread. All ranks call this in the same order.

        Returns:
            The exchange; closed with this context.
        """
        self._require_open("side_exchange")
        return self._groups.side_exchange()

    def channel(self, name: str, *, is_aborted: Callable[[], bool] | None = None) -> Channel:
        """Bytes among the ranks over the job's store, for one other thread; no call of this is a collective.

        Args:
            name: The same on every rank, and used once.
            is_aborted: Asked while a call of the channel waits; True ends it. Default None.

        Returns:
            The channel; closed with this context.

        Raises:
            InvalidValueError: The name has been used.
            InvalidStateError: The context is closed.
        """
        self._require_open("channel")
        return self._groups.new_channel(name, is_aborted)

    def phase(self, name: str, batch: int | None = None) -> None:
        """Say what this rank is doing from now on, for an error that names it.

        Args:
            name: Such as "train", "validate" or "checkpoint".
            batch: At which batch, default None.
        """
        self.watchdog.phase(name, batch)

    def guard(self) -> AbstractContextManager[None]:
        """Put round the user's work: its error is told to all ranks, and another rank's failure is told here.

        Returns:
            A context manager. An error of this rank's own comes out unchanged; one that only follows from another
            rank's failure comes out as a PeerFailedError with the first cause.
        """
        return self.watchdog.guard()

    def new_groups(self, layout: Sequence[Sequence[int]] | None) -> "ProcessGroup | None":
        """Process groups of torch among some of the ranks. All ranks call this with the same layout.

        Args:
            layout: The ranks of each group, each rank in exactly one; an empty list is one group of all; None is none.

        Returns:
            The group that this process is in, closed with this context; None if ``layout`` is None, and for a process
            without a process group.

        Raises:
            InvalidTypeError: The layout is not made of lists of integers.
            InvalidValueError: A rank is in no group or in several, or there is no such rank.
            DisagreementError: The ranks gave different layouts.
        """
        self._require_open("new_groups")
        if layout is None:
            return None
        parts = _checked_layout(layout, self.size)
        layouts = self.allgather(parts)
        if any(other != parts for other in layouts):
            raise DisagreementError(f"All ranks give one layout of groups. Received, by rank: {layouts}.")
        return self._groups.new_group(*parts) if self.process_group is not None else None

    def close(self) -> None:
        """Close what this context opened: groups, channels, connections. A second call does nothing.

        A group that was open before is left open. The chief's call waits for the others to hear of it, a second or so.
        """
        if self._closed:
            return
        self._closed = True
        if not self._owned:
            return
        if self in _current:
            _current.remove(self)
        self._groups.close(failed=self.watchdog.failure is not None)

    def __enter__(self) -> "DistributedContext":
        with ExitStack() as entered:
            entered.callback(self.close)
            entered.enter_context(self.guard())
            self._entered = entered.pop_all()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered.__exit__(error_type, error, traceback)

    def __repr__(self) -> str:
        return f"DistributedContext(rank={self.rank}, size={self.size})"

    def _connect(self, place: Place | None, limits: Limits, backend: str) -> None:
        """Share what the process has open already, or open it."""
        alone = place is not None and place.size == 1 and place.port is None
        shared = None if alone else current_context()
        if shared is None:
            self._groups = Groups(place, limits, backend)
        else:
            _check_same(place, shared)
            self._groups = shared._groups
        self._closed = False
        self._owned = shared is None
        if shared is None and self._groups.is_several:
            _current.append(self)
        found = self._groups.place
        self.rank, self.size, self.chief_ip = found.rank, found.size, found.chief_ip
        self.local_rank, self.local_size, self.cross_rank, self.cross_size = found.nodes
        self.data_rank, self.data_size = self.rank, self.size
        self.is_chief = self.rank == 0
        self.exchange: Exchange = self._groups.exchange
        self.watchdog: Watchdog = self._groups.watchdog

    def _call_on_chief(self, function: Callable[[], T]) -> T:
        channel = self._groups.chiefs_channel
        try:
            value = function()
        except BaseException as error:
            channel.broadcast(pack_error(error))
            raise
        content = pack(value)
        channel.broadcast(content)
        if not is_packed(content):
            unpack(content)
        return value

    def _hear_from_chief(self) -> Any:
        content = self._groups.chiefs_channel.broadcast()
        try:
            return unpack(content)
        except BaseException as error:
            # Only the chief tells of it: here it follows from that.
            if error.__cause__ is None:
                error.__cause__ = PeerFailedError(f"Rank 0 of {self.size} raised this in on_chief().")
            raise

    def _require_open(self, call: str) -> None:
        if self.size > 1 and (self._closed or self._groups.closed):
            raise InvalidStateError(f"The context is closed, and connects no ranks any more. Received: {call}().")


def join(
    place: Place | None,
    *,
    backend: str = "gloo",
    timeout: float | None = None,
    heartbeat_timeout: float | None = None,
) -> DistributedContext:
    """The context of a process whose place a launcher told.

    Args:
        place: Where it stands; None: what torch's open group says, or alone.
        backend: Of the group, if none is open, default "gloo".
        timeout: As DistributedContext's.
        heartbeat_timeout: As DistributedContext's.

    Returns:
        The context.

    Raises:
        DistributedError: The processes do not find each other.
    """
    context = object.__new__(DistributedContext)
    context._connect(place, Limits.of(timeout, heartbeat_timeout), backend)
    return context


def current_context() -> DistributedContext | None:
    """The context that connects this process with others.

    Returns:
        The open one, None if there is none.
    """
    if _current and _current[-1]._groups.is_stale:
        _current[-1].close()
    return _current[-1] if _current else None


def _check_same(place: Place | None, shared: DistributedContext) -> None:
    if place is not None and (place.rank, place.size) != (shared.rank, shared.size):
        raise InvalidValueError(
            f"A process has one rank. Received: rank {place.rank} of {place.size}, while a context is open as rank "
            f"{shared.rank} of {shared.size}. Close that one before."
        )


def _place_of(given: dict[str, int | None], chief_ip: str | None) -> Place:
    present = {name: number for name, number in given.items() if number is not None}
    if not present:
        return Place(0, 1, 0, 1, 0, 1)
    missing = [name for name in given if name not in present]
    if missing:
        raise InvalidValueError(
            f"The ranks and sizes are given all or none. Received: {present}, and no {', '.join(missing)}. "
            "Pass the others too, or none of them for a single process."
        )
    place = Place(**present, chief_ip=chief_ip)
    if present["cross_size"] > 1 and chief_ip is None:
        raise InvalidValueError(
            f"Several nodes find each other at the chief's address. Received: cross_size={present['cross_size']} and "
            "no chief_ip. Pass chief_ip, the address of the node of rank 0."
        )
    return replace(place, port=port_of_environment()) if place.size > 1 else place


def _checked_layout(layout: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    received = f"Received: {layout!r} for {size} ranks."
    try:
        parts = [[operator.index(rank) for rank in part] for part in layout] or [list(range(size))]
    except TypeError:
        raise InvalidTypeError(f"A layout of groups is a list of lists of ranks. {received}") from None
    if sorted(rank for part in parts for rank in part) != list(range(size)):
        raise InvalidValueError(f"Each rank, 0 to {size - 1}, is in exactly one group. {received}")
    if not all(parts):
        raise InvalidValueError(f"A group has at least one rank. {received}")
    return parts
