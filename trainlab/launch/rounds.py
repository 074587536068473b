"""Rounds: how the nodes of a launch find each other, again after each loss of a rank or a node."""

import base64
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]  # torch says it is public
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from trainlab.errors import LaunchError
from trainlab.launch.platform import Platform

__all__ = ["Rounds"]

_THIS_HOST = "127.0.0.1"
_PORT = 29400
_LAST_CALL = timedelta(seconds=10)  # that a range of nodes waits for further ones, once there are enough
_KEEP_ALIVE = 2  # seconds; a node that is silent for three of them is lost
_LAST_WORDS = 30.0


class Rounds(RendezvousHandler):
    """torch's rendezvous, with a store of its own in each round and a number for it.

    The store that torch's own handler shares with the ranks is kept for all rounds: keys of an earlier one mislead the
    ranks of the next.

    Args:
        platform: the number of nodes, and where they find each other.
        run_id: the launch's name; what the hosting node says holds.
        first: the number of the first round; what the hosting node says holds.
        on_round: told the launch's name and the number of each round before its ranks are started.

    Attributes:
        run_id: the launch's name, the same on all nodes.

    Raises:
        LaunchError: the node that hosts the rendezvous cannot be reached, or this one cannot host it.
    """

    def __init__(self, platform: Platform, run_id: str, first: int, on_round: Callable[[str, int], None]) -> None:
        least, most = platform.node_range
        self._on_round = on_round
        self._several = most > 1
        limit = timedelta(seconds=platform.timeout or 600.0)
        self._limit, self._least = limit.total_seconds(), least
        self._address = platform.master_addr or _THIS_HOST
        self._port = platform.master_port or (_PORT if self._several else 0)
        self._store, self.hosts = self._open(platform, limit)
        self._port = self._store.port
        shared = PrefixStore("trainlab", self._store)
        self.run_id = str(shared.compare_set("run_id", "", run_id).decode()) if self._several else run_id
        self._shared: Store = PrefixStore(self.run_id, shared)
        self._shared.compare_set("rounds", "", str(first))
        self._round: Store | None = None
        self._server: TCPStore | None = None
        self._rank = 0
        self._handler = DynamicRendezvousHandler.from_backend(
            self.run_id,
            self._store,
            C10dRendezvousBackend(self._store, self.run_id),
            least,
            most,
            # torch numbers the nodes in the order of these; where they are met at is agreed on below.
            local_addr=self._own_address() if platform.node_rank is None else f"{platform.node_rank:08d}",
            timeout=RendezvousTimeout(join=limit, last_call=_LAST_CALL),
            keep_alive_interval=_KEEP_ALIVE,
        )

    def _open(self, platform: Platform, limit: timedelta) -> tuple[TCPStore, bool]:
        """The store of the whole launch, and whether this node hosts it."""
        received = f"Received: master_addr={self._address!r}, master_port={self._port}"
        try:
            is_here = _is_here(self._address)
        except OSError as error:
            raise LaunchError(
                f"The first node's address is not known here: {error}. {received}. "
                "Pass a name that resolves on each node, or an IP address."
            ) from error
        may_host = platform.node_rank == 0 or (platform.node_rank is None and is_here)
        if may_host:
            try:
                return TCPStore(self._address, self._port, is_master=True, wait_for_workers=False, timeout=limit), True
            except (DistStoreError, RuntimeError) as error:
                # Another process of this host has it: a second "node" on one machine.
                if platform.node_rank == 0 or not self._several:
                    raise LaunchError(
                        f"This node cannot host the rendezvous: {_first_line(error)}. {received}. Choose another "
                        "master_port."
                    ) from error
        try:
            return TCPStore(self._address, self._port, is_master=False, wait_for_workers=False, timeout=limit), False
        except (DistStoreError, RuntimeError) as error:
            raise LaunchError(
                f"The first node was not reached within {limit.total_seconds():g} s: {_first_line(error)}. "
                f"{received}. Start the launch there too (node_rank=0), and see that this node reaches that port."
            ) from error

    def _own_address(self) -> str:
        """The address of this node as the others reach it."""
        if not self._several:
            return _THIS_HOST
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((self._address, self._port))  # sends nothing, but finds the way
            return str(probe.getsockname()[0])
        return socket.getfqdn()

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes, and agree on a new store for the ranks.

        Returns:
            The store of the agents, this node's number, the number of nodes, and the address of the ranks' store.

        Raises:
            LaunchError: the other nodes did not come, gave up, or the hosting one is lost.
        """
        self._server = None  # that of the round before, whose ranks have ended
        try:
            met = self._handler.next_rendezvous()
        except RendezvousTimeoutError as error:
            raise LaunchError(
                f"The other nodes did not come within {self._limit:g} s. Received: fewer than {self._least} at "
                f"{self._address}:{self._port}. Make the same call on each node, or raise timeout."
            ) from error
        except RendezvousClosedError as error:
            raise LaunchError(f"Another node has given up: {self._said()}") from error
        except RendezvousConnectionError as error:
            raise self.host_lost() from error
        self._round, self._rank = met.store, met.rank
        if met.rank == 0:
            address = self._own_address()
            self._server = TCPStore(address, 0, is_master=True, wait_for_workers=False)
            number = self._shared.add("rounds", 1) - 1
            # torch tells its own store in the first round alone: a node that comes later would wait for it for ever.
            met.store.set(RendezvousStoreInfo.MASTER_ADDR_KEY, address)
            met.store.set(RendezvousStoreInfo.MASTER_PORT_KEY, str(self._server.port))
            met.store.set("trainlab/round", json.dumps([address, self._server.port, number]))
        address, port, number = json.loads(met.store.get("trainlab/round"))
        self._on_round(self.run_id, number)
        return RendezvousInfo(met.store, met.rank, met.world_size, RendezvousStoreInfo(address, port))

    def exchange(self, nodes: int, mine: dict[int, bytes]) -> dict[int, bytes]:
        """What the ranks of all nodes returned.

        Args:
            nodes: of this round.
            mine: by rank, of this node.

        Returns:
            By rank, of all nodes.

        Raises:
            LaunchError: another node was lost meanwhile.
        """
        if nodes == 1 or self._round is None:
            return mine
        found: dict[int, bytes] = {}
        try:
            self._round.set(f"ranks/{self._rank}", json.dumps(sorted(mine)))
            for rank, content in mine.items():
                self._round.set(f"result/{rank}", base64.b64encode(content).decode())
            for node in range(nodes):
                for rank in json.loads(self._round.get(f"ranks/{node}")):
                    found[rank] = base64.b64decode(self._round.get(f"result/{rank}"))
            self._round.add("read", 1)
            if self.hosts:
                self._await_readers(nodes)
        except (DistStoreError, RuntimeError) as error:
            raise LaunchError(f"A node was lost before it had the results: {_first_line(error)}") from error
        return found

    def _await_readers(self, nodes: int) -> None:
        """The store ends with this process: wait until all have read."""
        assert self._round is not None  # the caller's condition; kept for the type checker
        end = time.monotonic() + _LAST_WORDS
        while self._round.add("read", 0) < nodes and time.monotonic() < end:
            time.sleep(0.05)

    def give_up(self, why: str) -> None:
        """Tell the other nodes that this launch is over.

        Args:
            why: the reason.
        """
        if self._several:
            with suppress(DistStoreError, RuntimeError):
                self._shared.set("why", why)

    def _said(self) -> str:
        with suppress(DistStoreError, RuntimeError):
            if self._shared.check(["why"]):
                return str(self._shared.get("why").decode())
        return "it did not say why."

    def host_lost(self) -> LaunchError:
        """The error for a launch whose first node is gone.

        Returns:
            The error, to be raised.
        """
        return LaunchError(
            "The node that hosts the rendezvous is lost, or the launch has ended there. Received: no answer from "
            f"{self._address}:{self._port}. If it was lost, start the launch again with run_id={self.run_id!r}, on it "
            "or with another master_addr: training goes on from the newest checkpoint."
        )

    def close(self) -> None:
        """Leave, and let go of all ports. Nothing is raised: the launch is over."""
        with suppress(Exception):
            self._handler.shutdown()
        self._server = self._round = None
        del self._store

    def get_backend(self) -> str:
        """Return the name of torch's backend."""
        return str(self._handler.get_backend())

    @property
    def use_agent_store(self) -> bool:
        """Whether the ranks meet at a store of the agent's: yes."""
        return True

    def is_closed(self) -> bool:
        """Return whether a node has ended the launch."""
        return bool(self._handler.is_closed())

    def set_closed(self) -> None:
        """End the launch for all nodes."""
        self._handler.set_closed()

    def num_nodes_waiting(self) -> int:
        """Return how many nodes want to join.

        Raises:
            LaunchError: the hosting node is lost.
        """
        try:
            return self._handler.num_nodes_waiting() if self._several else 0
        except RendezvousConnectionError as error:
            raise self.host_lost() from error

    def get_run_id(self) -> str:
        """Return the launch's name."""
        return self.run_id

    def shutdown(self) -> bool:
        """Leave the launch."""
        return bool(self._handler.shutdown())


def _is_here(address: str) -> bool:
    """Tell whether an address is one of this host's."""
    for family, kind, protocol, _, place in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
            return True
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
