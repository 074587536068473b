"""The server of a job's store: a thread of the chief's process that keeps keys and values for all ranks."""

import asyncio
import hmac
import logging
import socket
import struct
import threading
from collections import defaultdict

__all__ = ["StoreServer", "pack", "unpack"]

_logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("!I")
_STRANGERS_LIMIT = 256  # bytes of a first message: whoever does not know the token yet cannot make us hold more
_LIMIT = 1 << 30


def pack(fields: list[bytes]) -> bytes:
    """A message: the length of all of it, then each field with its length.

    Args:
        fields: What it says.

    Returns:
        The bytes that go over the wire.
    """
    body = b"".join(_LENGTH.pack(len(field)) + field for field in fields)
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> list[bytes]:
    """The fields of a message.

    Args:
        body: The message without its first length.

    Returns:
        The fields.

    Raises:
        ValueError: The lengths do not fit.
    """
    fields, position = [], 0
    while position < len(body):
        start = position + _LENGTH.size
        if start > len(body):
            raise ValueError("A message ends within a length.")
        position = start + _LENGTH.unpack_from(body, start - _LENGTH.size)[0]
        if position > len(body):
            raise ValueError("A message ends within a field.")
        fields.append(body[start:position])
    return fields


class StoreServer:
    """Keeps keys and values, and answers every client's requests in their order.

    It is no ``torch.distributed.TCPStore``, whose calls cannot be given up while the server is frozen (a ``wait`` with
    a time limit neither), and which prints its C++ stack on standard error of every rank once the server is gone.

    Args:
        address: Where to listen, such as "127.0.0.1"; "" for every interface.
        token: What a client has to say first.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, address: str, token: bytes) -> None:
        self._listener = _listen(address)
        self.port = int(self._listener.getsockname()[1])
        self._token = token
        self._values: dict[bytes, bytes] = {}
        self._taken: dict[bytes, int] = defaultdict(int)
        self._arrivals: dict[bytes, asyncio.Event] = {}
        self._clients: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="trainlab-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close every connection and end the thread. A second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener)
        await self._closing.wait()
        server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._clients.add(task)
        try:
            await self._converse(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is gone: its rank's watchdog or its peers judge why
        except asyncio.CancelledError:
            pass  # the server closes
        except ValueError as error:
            _logger.warning("The job's store got a message that it cannot read, and closed the connection: %s", error)
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = await _receive(reader, _STRANGERS_LIMIT)
        if len(greeting) != 1 or not hmac.compare_digest(greeting[0], self._token):
            raise ValueError("it did not begin with the job's token")
        writer.write(pack([b"welcome"]))
        while True:
            request, *fields = await _receive(reader, _LIMIT) or [b""]
            writer.write(pack(await self._answer(request, fields)))

    async def _answer(self, request: bytes, fields: list[bytes]) -> list[bytes]:
        match request, fields:
            case b"set", [key, value]:
                self._put(key, value)
                return []
            case b"get", [key]:
                return [self._values[key]] if key in self._values else []
            case b"compare_set", [key, value]:
                if key not in self._values:
                    self._put(key, value)
                return [self._values[key]]
            case b"append", [key, value]:
                self._put(key, self._values.get(key, b"") + value)
                return []
            case b"delete", [key]:
                return [b"deleted"] if self._values.pop(key, None) is not None else []
            case b"list", prefixes:
                chosen = tuple(prefixes)
                return [part for item in self._values.items() if item[0].startswith(chosen) for part in item]
            case b"take", [key, readers]:
                return [await self._take(key, int(readers))]
        raise ValueError(f"there is no request {request!r} with {len(fields)} fields")

    def _put(self, key: bytes, value: bytes) -> None:
        self._values[key] = value
        arrival = self._arrivals.pop(key, None)
        if arrival is not None:
            arrival.set()

    async def _take(self, key: bytes, readers: int) -> bytes:
        while key not in self._values:
            await self._arrivals.setdefault(key, asyncio.Event()).wait()
        value = self._values[key]
        self._taken[key] += 1
        if self._taken[key] >= readers:
            del self._values[key], self._taken[key]
        return value


async def _receive(reader: asyncio.StreamReader, limit: int) -> list[bytes]:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise ValueError(f"a message of {length} bytes")
    return unpack(await reader.readexactly(length))


def _listen(address: str) -> socket.socket:
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, 0), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
