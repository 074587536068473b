"""The process groups of one job: opened by the place that a launcher gave, and closed by who opened them."""

import atexit
import ctypes
import itertools
import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import rendezvous as meet

from trainlab.distributed.channel import Channel
from trainlab.distributed.exchange import Exchange
from trainlab.distributed.places import THIS_HOST, Place, port_of_environment
from trainlab.distributed.store import JobStore
from trainlab.distributed.watchdog import Watchdog
from trainlab.errors import DisagreementError, DistributedError, InvalidTypeError, InvalidValueError
from trainlab.runs.processes import host_id

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

__all__ = ["Groups", "Limits", "is_group_open"]

_logger = logging.getLogger("trainlab.distributed")

# How long a process that has failed waits for its groups to close: longer than the grace that its peers have.
_CLOSING = 10.0
_CHIEFS = "trainlab/chief"

# A store is kept as long as the process, so that a second group of the same job cannot meet the first one's server
# while that goes away. Each opening has its own names in it.
_rendezvous: dict[tuple[object, ...], "Store"] = {}
_openings, _jobs = itertools.count(), itertools.count()


def is_group_open() -> bool:
    """Tell whether torch's default group is open, whoever opened it."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@dataclass(frozen=True)
class Limits:
    """How long ranks wait for each other, in seconds.

    Args:
        timeout: For an exchange or a collective.
        heartbeat_timeout: For a sign of life.
    """

    timeout: float
    heartbeat_timeout: float

    @classmethod
    def of(cls, timeout: float | None, heartbeat_timeout: float | None) -> "Limits":
        """The limits given, those of the environment, or the usual ones.

        Args:
            timeout: Default None: TRAINLAB_TIMEOUT, or 600.
            heartbeat_timeout: Default None: TRAINLAB_HEARTBEAT_TIMEOUT, or 60.

        Returns:
            The limits.

        Raises:
            InvalidTypeError: A limit is no number.
            InvalidValueError: A limit is not above 0, or no number in the environment.
        """
        return cls(
            _seconds("timeout", timeout, "TRAINLAB_TIMEOUT", 600.0),
            _seconds("heartbeat_timeout", heartbeat_timeout, "TRAINLAB_HEARTBEAT_TIMEOUT", 60.0),
        )


class Groups:
    """What connects this process with the others of its job.

    Args:
        place: Who this process is; numbers of nodes that it does not tell are found out. None: the open group says.
        limits: How long ranks wait for each other; default None: the usual ones.
        backend: Of a default group that has to be opened, default "gloo".

    Attributes:
        place: Who this process is, with the numbers of the nodes.
        process_group: torch's default group; None for a process alone.
        exchange: Among all ranks.
        node_exchange: Among the ranks of this node.
        watchdog: Of this rank; one that does nothing for a process alone.
        store: The job's keys and values; None for a process alone.

    Raises:
        InvalidValueError: The open group has other numbers than the place.
        DistributedError: The ranks do not find each other.
        DisagreementError: The ranks were told different things about their nodes.
    """

    def __init__(self, place: Place | None, limits: Limits | None = None, backend: str = "gloo") -> None:
        self.limits = Limits.of(None, None) if limits is None else limits
        self.store: JobStore | None = None
        self.watchdog: Watchdog = Watchdog()
        self.process_group: ProcessGroup | None = None
        self.closed = False
        self._opened: list[ProcessGroup] = []
        self._exchanges: list[Exchange] = []
        self._default: ProcessGroup | None = None
        self._channels: dict[str, Channel] = {}
        try:
            self._open(place, backend)
        except BaseException:
            self.close(failed=True)
            raise

    @property
    def is_several(self) -> bool:
        """Tell whether there is a process group, be it of one rank."""
        return self.process_group is not None

    @property
    def is_stale(self) -> bool:
        """Tell whether the script has closed the default group meanwhile, and with it all others."""
        return self.is_several and self.process_group is not torch.distributed.group.WORLD

    def _open(self, place: Place | None, backend: str) -> None:
        if is_group_open() and (place is None or place.size > 1 or torch.distributed.get_world_size() == 1):
            self.process_group = torch.distributed.group.WORLD
            place = _agreed_with_group(place)
        elif place is not None and (place.size > 1 or place.port is not None):
            self._open_default(place, backend)
        if place is None or place.size == 1:
            self.place = Place(0, 1, 0, 1, 0, 1, chief_ip=None if place is None else place.chief_ip)
            self.exchange = self.node_exchange = self._exchange(0, 1, None)
            self._close_at_exit()
            return
        self.exchange = self._over(list(range(place.size)))
        self.place, nodes = self._find_nodes(place)
        self._watch()
        self._close_at_exit()
        self.new_channel(_CHIEFS)
        self.node_exchange = self.exchange if len(nodes) == 1 else self._over(*nodes)

    def side_exchange(self) -> Exchange:
        """A further exchange among all ranks, for one other thread. All ranks call this in the same order.

        Returns:
            The exchange; closed with all the others.
        """
        if self.place.size == 1:
            return self._exchange(0, 1, None)
        return self._over(list(range(self.place.size)))

    @property
    def chiefs_channel(self) -> Channel:
        """The channel over which the chief tells the outcome of what it alone does."""
        return self._channels[_CHIEFS]

    def new_channel(self, name: str, is_aborted: Callable[[], bool] | None = None) -> Channel:
        """A channel among all ranks.

        Args:
            name: The same on every rank.
            is_aborted: Ends a call that waits, default None.

        Returns:
            The channel; closed with all the others.

        Raises:
            InvalidValueError: The name has been used.
        """
        if name in self._channels:
            raise InvalidValueError(f"Each channel has a name of its own. Received: {name!r} for the second time.")
        place = self.place
        channel = Channel(name, self.store, self.watchdog, place.rank, place.size, is_aborted=is_aborted)
        self._channels[name] = channel
        return channel

    def new_group(self, *parts: Sequence[int]) -> "ProcessGroup":
        """Groups of the default group's backend, one for each part. All ranks call this in the same order.

        Args:
            parts: The ranks of each; this process is in exactly one.

        Returns:
            The group of this process.
        """
        return self._make(parts, None)

    def close(self, failed: bool) -> None:
        """Close what was opened here. A second call does nothing.

        Args:
            failed: Something went wrong here or elsewhere: wait for no one.
        """
        if self.closed:
            return
        self.closed = True
        for exchange in self._exchanges:
            exchange.close()
        for channel in self._channels.values():
            channel.close()
        self.watchdog.close()
        if self.store is not None:
            self.store.close()
        groups, self._opened, self.process_group = self._opened, [], None
        if failed:
            _destroy_without_waiting(groups, self._default)
        else:
            _destroy(groups, self._default)
        self._default = None
        atexit.unregister(self._at_exit)

    def _open_default(self, place: Place, backend: str) -> None:
        address, port = place.chief_ip or THIS_HOST, place.port or port_of_environment()
        limit = timedelta(seconds=self.limits.timeout)
        try:
            store = _meet(place, address, port, limit)
            torch.distributed.init_process_group(
                backend,
                store=PrefixStore(f"trainlab/{next(_openings)}", store),
                rank=place.rank,
                world_size=place.size,
                timeout=limit,
            )
        except (RuntimeError, ValueError) as error:
            raise DistributedError(
                f"Rank {place.rank} of {place.size} did not find the others at {address}:{port} within "
                f"{self.limits.timeout:g} s: {error}. All ranks must be started with the same MASTER_ADDR and "
                "MASTER_PORT, and must reach each other (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network)."
            ) from error
        self.process_group = self._default = torch.distributed.group.WORLD

    def _find_nodes(self, place: Place) -> tuple[Place, list[list[int]]]:
        """Who is on which node: as told, or by host where nobody told all of them."""
        host = host_id() or socket.gethostname()
        told = self.exchange.allgather((place.cross_rank if place.knows_nodes else None, place.cross_size, host))
        by_host = any(number is None for number, _, _ in told)
        keys = [host if by_host else number for number, _, host in told]
        names = list(dict.fromkeys(keys)) if by_host else sorted(set(keys), key=lambda number: int(str(number)))
        nodes = [[rank for rank, key in enumerate(keys) if key == name] for name in names]
        if by_host:
            cross_rank = names.index(keys[place.rank])
            place = replace(
                place,
                local_rank=nodes[cross_rank].index(place.rank),
                local_size=len(nodes[cross_rank]),
                cross_rank=cross_rank,
                cross_size=len(nodes),
            )
        elif {size for _, size, _ in told} != {len(nodes)}:
            raise DisagreementError(
                f"The ranks were told different numbers of nodes. Received: {[(n, size) for n, size, _ in told]} as "
                "(cross_rank, cross_size) by rank. Start all of them with one launcher."
            )
        return replace(place, chief_ip=place.chief_ip or self._chief_address(len(nodes))), nodes

    def _chief_address(self, nodes: int) -> str:
        own = os.environ.get("MASTER_ADDR") or (THIS_HOST if nodes == 1 else socket.getfqdn())
        return self.exchange.broadcast(own)

    def _watch(self) -> None:
        rank, size = self.place.rank, self.place.size
        # Whoever opened the group, its own store is there.
        shared = _get_default_store()
        rendezvous = PrefixStore(f"trainlab/job/{self.exchange.broadcast(next(_jobs))}", shared)
        host = THIS_HOST if self.place.cross_size == 1 else self.place.chief_ip or THIS_HOST
        self.store = JobStore(rank, host, rendezvous)
        self.watchdog = Watchdog(self.store, rank, size, heartbeat_timeout=self.limits.heartbeat_timeout)
        for exchange in self._exchanges:
            exchange.watchdog = self.watchdog

    def _close_at_exit(self) -> None:
        """Also at the end of an interpreter whose program does not close it, and of a child of multiprocessing."""
        if not self.is_several:
            return
        self._pid = os.getpid()
        # After the watchdog's own registration, so that this one comes first.
        atexit.register(self._at_exit)
        Finalize(None, self._at_exit, exitpriority=1)

    def _at_exit(self) -> None:
        if self.closed or os.getpid() != self._pid:
            return
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)
        failed = error is not None and not (isinstance(error, SystemExit) and error.code in {None, 0})
        if error is not None and failed:
            self.watchdog.report(error)
        self.close(failed=failed or self.watchdog.failure is not None)

    def _over(self, *parts: list[int]) -> Exchange:
        group = self._make(parts, "gloo")
        return self._exchange(torch.distributed.get_rank(group), torch.distributed.get_world_size(group), group)

    def _make(self, parts: Sequence[Sequence[int]], backend: str | None) -> "ProcessGroup":
        limit = timedelta(seconds=self.limits.timeout)
        rank = torch.distributed.get_rank()
        own: ProcessGroup | None = None
        for part in parts:
            group = torch.distributed.new_group(list(part), timeout=limit, backend=backend)
            if rank in part:
                own = group
                self._opened.append(group)
        if own is None:
            raise InvalidValueError(f"Each rank is in one of the groups. Received: {parts}, without rank {rank}.")
        return own

    def _exchange(self, rank: int, size: int, group: "ProcessGroup | None") -> Exchange:
        self._exchanges.append(Exchange(rank, size, group, self.watchdog))
        return self._exchanges[-1]


def _meet(place: Place, address: str, port: int, limit: timedelta) -> "Store":
    """The store through which the ranks find each other, at rank 0 or at torchrun's agent."""
    key = (address, port, place.rank, place.size)
    if key not in _rendezvous:
        host = f"[{address}]" if ":" in address else address
        url = f"tcp://{host}:{port}"
        met = next(iter(meet(url, place.rank, place.size, timeout=limit)))
        _rendezvous[key] = met[0]
    _rendezvous[key].set_timeout(limit)
    return _rendezvous[key]


def _agreed_with_group(place: Place | None) -> Place:
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if place is None:
        return Place(rank, size, chief_ip=os.environ.get("MASTER_ADDR"))
    if (place.rank, place.size) != (rank, size):
        raise InvalidValueError(
            f"A process has one rank. Received: rank {place.rank} of {place.size}, while torch.distributed is open as "
            f"rank {rank} of {size}. Use that one, or call torch.distributed.destroy_process_group() before."
        )
    return place


def _destroy(groups: "list[ProcessGroup]", default: "ProcessGroup | None") -> None:
    if default is not None and default is torch.distributed.group.WORLD:
        torch.distributed.destroy_process_group()
        return
    for group in reversed(groups):
        with suppress(ValueError, AssertionError):  # the user has closed that one, or all
            torch.distributed.destroy_process_group(group)


def _destroy_without_waiting(groups: "list[ProcessGroup]", default: "ProcessGroup | None") -> None:
    """Close the groups while exchanges may be under way that other ranks never join."""
    held = groups if default is None else [*groups, default]
    for group in held:
        # When its last reference goes, now or when the interpreter ends, a group waits for its exchanges: it stays.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    done = threading.Event()

    def destroy() -> None:
        try:
            _destroy(groups, default)
        finally:
            done.set()

    try:
        threading.Thread(target=destroy, name="trainlab-close", daemon=True).start()
    except RuntimeError:  # the interpreter is ending and starts no more threads
        destroy()
    if not done.wait(_CLOSING):
        _logger.warning("The process groups could not be closed within %g s after a failure.", _CLOSING)


def _seconds(name: str, given: float | None, variable: str, default: float) -> float:
    value: Any = given
    if given is None:
        name, value = variable, os.environ.get(variable) or default
        with suppress(ValueError):
            value = float(value)
    elif isinstance(given, bool) or not isinstance(given, (int, float)):
        raise InvalidTypeError(f"{name} is a number of seconds. Received: {given!r} ({type(given).__name__}).")
    if isinstance(value, str) or not 0 < value < math.inf:
        raise InvalidValueError(f"{name} is a number of seconds above 0. Received: {value!r}.")
    return float(value)
