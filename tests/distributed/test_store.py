"""The store of a job: what it keeps, and how it ends whatever happens to the process that serves it."""

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from tests.distributed.ranks import Ranks, stand_still, start_ranks
from trainlab.distributed.store import JobStore, StoreLostError
from trainlab.distributed.store_server import pack, unpack
from trainlab.errors import DistributedError


@pytest.fixture
def store() -> Iterator[JobStore]:
    store = JobStore(0, "127.0.0.1", dist.HashStore())
    yield store
    store.close()


def serve(port: int) -> None:
    """A process that serves a store, tells where through torch's, and does nothing more."""
    place = dist.TCPStore("127.0.0.1", port, is_master=False)
    JobStore(0, "127.0.0.1", place)
    print("serving")
    select.select([], [], [])


@pytest.fixture
def far_store() -> Iterator[tuple[JobStore, Ranks]]:
    """A store of this process whose server is in another one."""
    place = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with start_ranks(serve, 1, place.port) as ranks:
        store = JobStore(1, "127.0.0.1", place)
        yield store, ranks
        store.close()


def test_values_are_kept_replaced_and_removed(store: JobStore) -> None:
    """What one rank stores another reads, any bytes of any length, and a missing key is no wait."""
    other = store.client()
    long = os.urandom(3_000_000)
    store.set("long", long)
    store.set("empty", b"")
    assert (other.get("long"), other.get("empty"), other.get("none")) == (long, b"", None)
    other.set("long", b"short")
    assert store.get("long") == b"short"
    assert (store.delete("long"), store.delete("long"), store.get("long")) == (True, False, None)
    other.close()


def test_the_first_wins(store: JobStore) -> None:
    """Of two ranks that set one key, both get what the first one set."""
    other = store.client()
    assert store.compare_set("failure", b"mine") == b"mine"
    assert other.compare_set("failure", b"its") == b"mine"
    other.close()


def test_appends_and_lists(store: JobStore) -> None:
    """Ranks add to one value without losing each other's, and read many values in one request."""
    store.append("state/left", b"0 ")
    store.append("state/left", b"2 ")
    store.set("beat/1", b"x")
    assert store.entries("state/", "beat/") == {"state/left": b"0 2 ", "beat/1": b"x"}
    assert store.entries("none/") == {}


def test_a_value_is_waited_for_and_goes_with_its_last_reader(store: JobStore) -> None:
    """Readers that come before the value get it, and after the last of them the server does not hold it any more."""
    got: list[bytes] = []
    clients = [store.client() for _ in range(2)]
    readers = [threading.Thread(target=lambda client=client: got.append(client.take("key", 2))) for client in clients]
    readers[0].start()
    store.set("key", b"value")
    readers[0].join()
    assert store.get("key") == b"value"
    readers[1].start()
    readers[1].join()
    assert (got, store.get("key")) == ([b"value"] * 2, None)
    for client in clients:
        client.close()


def test_a_wait_can_be_given_up(store: JobStore) -> None:
    """What the caller's own look raises ends an endless wait, and the connection is not used in a wrong state again."""

    class NotAnyMore(Exception):
        pass

    def look() -> None:
        raise NotAnyMore

    client = store.client(look)
    with pytest.raises(NotAnyMore):
        client.take("never")
    with pytest.raises(StoreLostError, match="closed"):
        client.get("anything")
    assert store.get("anything") is None


def test_a_frozen_server_ends_a_request_in_time(far_store: tuple[JobStore, Ranks]) -> None:
    """A chief that is stopped leaves no rank waiting: the request and a new connection end with an error."""
    store, ranks = far_store
    hasty = store.client()
    hasty.set("key", b"value")
    ranks[0].send_signal(signal.SIGSTOP)
    stand_still(ranks[0].pid)
    hasty._timeout = 1.0  # not before: a server that is slow is not frozen
    with pytest.raises(StoreLostError, match="no answer for 1 s") as caught:
        hasty.get("key")
    assert caught.value.silent
    with pytest.raises(StoreLostError, match="no answer for 2 s"):
        store.client(timeout=2.0)


def test_a_killed_server_ends_an_endless_wait(far_store: tuple[JobStore, Ranks]) -> None:
    """A chief that is killed ends even the waits that have no time limit, and cannot be reached again."""
    store, ranks = far_store
    waiting = threading.Event()
    client = store.client(waiting.set)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            client.take("never")
        except StoreLostError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    ranks[0].kill()
    thread.join()
    assert not errors[0].silent  # type: ignore[attr-defined]
    ranks[0].wait()  # its connections are closed one after the other, and that at which it listens may be the last
    with pytest.raises(StoreLostError, match="is not reached"):
        store.client()


def test_closing_leaves_nothing(store: JobStore) -> None:
    """After close() there is no thread, no socket and no server, though clients were still connected."""
    before = set(threading.enumerate()) - {store._server._thread if store._server else None}
    client = store.client()
    port = store._place[1]
    store.close()
    store.close()
    client.close()
    assert not set(threading.enumerate()) - before
    ends = [end for link in psutil.Process().net_connections("tcp") for end in (link.laddr, link.raddr) if end]
    # What the kernel still keeps of a closed connection (TIME_WAIT) is no process's.
    assert port not in [end.port for end in ends]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("content", [b"", b"GET / HTTP/1.1\r\n\r\n", pack([b"wrong token"]), b"\xff" * 100])
def test_strangers_are_turned_away(store: JobStore, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever does not know the job's token gets no answer, and the ranks notice nothing."""
    with socket.create_connection(("127.0.0.1", store._place[1])) as stranger:
        stranger.sendall(content)
        stranger.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    store.set("key", b"value")
    assert store.get("key") == b"value"


def test_a_chief_that_tells_nothing_is_named() -> None:
    """A rank whose chief never opened its store ends with an error that says so."""
    place = dist.HashStore()
    place.set_timeout(timedelta(milliseconds=50))
    with pytest.raises(DistributedError, match="Rank 0 did not tell where the store of the job is"):
        JobStore(1, "127.0.0.1", place)


@given(st.lists(st.binary(max_size=50)))
def test_messages_come_as_they_went(fields: list[bytes]) -> None:
    """Any list of fields survives the wire, empty ones too."""
    assert unpack(pack(fields)[4:]) == fields


@given(st.binary(max_size=60))
def test_a_damaged_message_is_refused(content: bytes) -> None:
    """Any bytes are either a message or a ValueError, never another error or a wait."""
    with contextlib.suppress(ValueError):
        assert pack(unpack(content))[4:] == content
