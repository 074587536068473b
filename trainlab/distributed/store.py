"""JobStore: keys and values that the ranks of one job share, without a collective."""

import ipaddress
import json
import secrets
import select
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainlab.distributed.store_server import StoreServer, pack, unpack
from trainlab.errors import DistributedError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

__all__ = ["JobStore", "StoreLostError"]

_LENGTH = struct.Struct("!I")
_STEP = 0.05  # seconds between two looks at whether to go on waiting
_ADDRESS_KEY = "trainlab/store"


class StoreLostError(DistributedError):
    """The store of the job does not answer: the chief's process is gone or frozen, or it has closed the store.

    Args:
        message: What happened.
        silent: The connection is whole and no answer came, default False.
    """

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class JobStore:
    """Keys and values of one job, kept by a thread of the chief's process; no request waits without an end.

    One object serves one thread; ``client()`` gives another thread one of its own.

    Args:
        rank: Of this process; 0, the chief, starts the server.
        host: The address at which the others reach the chief.
        rendezvous: Any store of torch that the ranks share already, under a prefix that no other JobStore of theirs has
            used (``torch.distributed.PrefixStore``): through it the chief tells the others where its server is. Not
            used any more after that.
        timeout: Seconds after which a request that got no answer raises StoreLostError, default 60.

    Raises:
        DistributedError: The chief told no address within the time limit of ``rendezvous``.
        StoreLostError: The server is not reached.
    """

    def __init__(self, rank: int, host: str, rendezvous: "Store", *, timeout: float = 60.0) -> None:
        self._server: StoreServer | None = None
        self._timeout = timeout
        self._while_waiting: Callable[[], None] | None = None
        self._socket: socket.socket | None = None
        if rank == 0:
            self._serve(host, rendezvous)
        else:
            self._place, self._token = _look_up(rendezvous)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def client(self, while_waiting: Callable[[], None] | None = None, *, timeout: float | None = None) -> "JobStore":
        """A further connection, for another thread.

        Args:
            while_waiting: Called about 20 times a second while an answer is awaited, in the thread that waits. What
                it raises comes out of the request, and the connection is closed then. Default None.
            timeout: As the class's; default None, the same as this one's.

        Returns:
            A store that is closed by itself, and which ends when the chief closes its own.

        Raises:
            StoreLostError: The server is not reached.
        """
        other = object.__new__(JobStore)
        other._server, other._socket = None, None
        other._place, other._token = self._place, self._token
        other._timeout = self._timeout if timeout is None else timeout
        other._while_waiting = while_waiting
        other._connect()
        return other

    def set(self, key: str, value: bytes) -> None:
        """Store a value.

        Args:
            key: Its name; a value that it has already is replaced.
            value: Any bytes.

        Raises:
            StoreLostError: The store does not answer.
        """
        self._ask(b"set", key.encode(), value)

    def get(self, key: str) -> bytes | None:
        """Read a value, without waiting for it to be there.

        Args:
            key: Its name.

        Returns:
            The value; None where there is none.

        Raises:
            StoreLostError: The store does not answer.
        """
        found = self._ask(b"get", key.encode())
        return found[0] if found else None

    def compare_set(self, key: str, value: bytes) -> bytes:
        """Store a value unless there is one: the first wins.

        Args:
            key: Its name.
            value: Any bytes.

        Returns:
            The value that the key has now.

        Raises:
            StoreLostError: The store does not answer.
        """
        return self._ask(b"compare_set", key.encode(), value)[0]

    def append(self, key: str, value: bytes) -> None:
        """Put bytes behind a value, in one step; a value that is not there is empty.

        Args:
            key: Its name.
            value: What comes behind.

        Raises:
            StoreLostError: The store does not answer.
        """
        self._ask(b"append", key.encode(), value)

    def delete(self, key: str) -> bool:
        """Remove a value.

        Args:
            key: Its name.

        Returns:
            Whether there was one.

        Raises:
            StoreLostError: The store does not answer.
        """
        return bool(self._ask(b"delete", key.encode()))

    def entries(self, *prefixes: str) -> dict[str, bytes]:
        """Read all values whose names begin in given ways.

        Args:
            prefixes: The beginnings.

        Returns:
            The values by name.

        Raises:
            StoreLostError: The store does not answer.
        """
        found = self._ask(b"list", *(prefix.encode() for prefix in prefixes))
        return {key.decode(): value for key, value in zip(found[::2], found[1::2], strict=True)}

    def take(self, key: str, readers: int = 1) -> bytes:
        """Wait for a value, however long it takes; the last of its readers removes it.

        Args:
            key: Its name.
            readers: How many take it, default 1.

        Returns:
            The value.

        Raises:
            StoreLostError: The connection is closed, or the chief's process is gone.
        """
        return self._ask(b"take", key.encode(), str(readers).encode(), endless=True)[0]

    def close(self) -> None:
        """Close the connection, and on the chief's own store the server. A second call does nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._server is not None:
            self._server.close()

    def _serve(self, host: str, rendezvous: "Store") -> None:
        self._token = secrets.token_hex(16)
        # Names of services and addresses behind a translation are not ours to listen at: then every interface.
        self._server = StoreServer(_loopback(host), self._token.encode())
        self._place = (_loopback(host) or "localhost", self._server.port)
        address = {"host": _loopback(host) or host, "port": self._server.port, "token": self._token}
        try:
            rendezvous.set(_ADDRESS_KEY, json.dumps(address))
        except RuntimeError as error:
            self._server.close()
            raise DistributedError(f"The store of the group does not take the address of the job's: {error}") from error

    def _connect(self) -> None:
        host, port = self._place
        try:
            self._socket = socket.create_connection(self._place, timeout=self._timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
        except OSError as error:
            raise StoreLostError(
                f"The store of the job, which rank 0 serves at {host}:{port}, is not reached: {error}. "
                "All ranks must be able to connect to any port of rank 0's host."
            ) from error
        self._ask(self._token.encode())

    def _ask(self, *fields: bytes, endless: bool = False) -> list[bytes]:
        if self._socket is None:
            raise StoreLostError("The connection to the store of the job is closed.")
        # Counted in looks, not by the clock: a process that stood still itself has not waited meanwhile.
        patience = float("inf") if endless else self._timeout / _STEP
        try:
            self._send(self._socket, pack(list(fields)), patience)
            (length,) = _LENGTH.unpack(self._receive(self._socket, _LENGTH.size, patience))
            return unpack(self._receive(self._socket, length, patience))
        except OSError as error:
            self.close()
            raise StoreLostError(f"The connection to the store of the job, at rank 0, is broken: {error}.") from error
        except BaseException:
            # The rest of an answer that is not awaited any more would be taken for the next request's.
            self.close()
            raise

    def _send(self, connection: socket.socket, content: bytes, patience: float) -> None:
        rest = memoryview(content)
        while rest:
            self._await(connection, patience, writing=True)
            rest = rest[connection.send(rest) :]

    def _receive(self, connection: socket.socket, count: int, patience: float) -> bytes:
        content = bytearray()
        while len(content) < count:
            self._await(connection, patience, writing=False)
            part = connection.recv(count - len(content))
            if not part:
                raise ConnectionResetError("closed by the other side")
            content += part
        return bytes(content)

    def _await(self, connection: socket.socket, patience: float, writing: bool) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLOUT if writing else select.POLLIN)
        looks = 0
        while not poll.poll(_STEP * 1000):
            if self._while_waiting is not None:
                self._while_waiting()
            looks += 1
            if looks > patience:
                message = f"The store of the job, at rank 0, gave no answer for {self._timeout:g} s."
                raise StoreLostError(message, silent=True)


def _look_up(rendezvous: "Store") -> tuple[tuple[str, int], str]:
    try:
        address = json.loads(rendezvous.get(_ADDRESS_KEY))
    except RuntimeError as error:
        raise DistributedError(f"Rank 0 did not tell where the store of the job is: {error}") from error
    return (address["host"], address["port"]), address["token"]


def _loopback(host: str) -> str:
    """The address itself if only this machine can reach it, else ""."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return host if ipaddress.ip_address(host).is_loopback else ""
    except ValueError:
        return ""
