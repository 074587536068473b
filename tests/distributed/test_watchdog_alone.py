"""The parts of the watchdog that one process can show: its calls alone, the errors it knows, and who is gone."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch.distributed as dist

from trainlab.distributed.failure import Failure, is_consequence, is_timeout
from trainlab.distributed.store import StoreLostError
from trainlab.distributed.watchdog import Watchdog
from trainlab.errors import DistributedError, InvalidValueError, PeerFailedError
from trainlab.runs.processes import Process, this_process

GLOO = "[/x/gloo/gloo/transport/tcp/"


def test_one_process_needs_no_watchdog() -> None:
    """In one process every call works and does nothing: no thread, and errors come out as they are."""
    threads = set(threading.enumerate())
    watchdog = Watchdog()
    watchdog.phase("train", 3)
    error = ValueError("boom")
    with watchdog.doing("allgather", "my.py:12"), pytest.raises(ValueError, match="boom"), watchdog.guard():
        raise error
    watchdog.report(error)
    watchdog.expect_exit()
    assert watchdog.explain(error) is error
    assert (watchdog.failure, watchdog.left_ranks) == (None, frozenset())
    watchdog.left()
    watchdog.close()
    watchdog.close()
    assert not set(threading.enumerate()) - threads


@pytest.mark.parametrize("options", [{"heartbeat_timeout": 0}, {"grace": -1.0}, {"grace": float("nan")}, {"size": 2}])
def test_useless_limits_are_refused(options: dict[str, float]) -> None:
    """A time that is not above 0, and several ranks without a store, are errors that name them."""
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        Watchdog(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "late"),
    [
        (RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:1"), False),
        (RuntimeError(f"{GLOO}pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer."), False),
        (RuntimeError(f"{GLOO}pair.cc:146] writev [127.0.0.1]:1: Broken pipe"), False),
        (RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete"), True),
        (RuntimeError("[Rank 0]: Rank 1 failed to pass monitoredBarrier in 1000 ms"), True),
        (dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), False),
        (dist.DistStoreError("wait timeout after 100ms, keys: /a"), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), False),
        (StoreLostError("gone"), False),
        (StoreLostError("no answer", silent=True), True),
        (PeerFailedError("gone"), True),
    ],
)
def test_errors_of_connections_are_consequences(error: BaseException, late: bool) -> None:
    """What gloo, NCCL and the stores raise when a peer is gone or silent is never reported as a first cause."""
    assert is_consequence(error)
    assert is_timeout(error) == late
    try:
        raise ValueError("said by the user's own handler") from error
    except ValueError as wrapped:
        assert is_consequence(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("boom"),
        RuntimeError("CUDA out of memory"),
        RuntimeError("the feature store timed out"),
        ConnectionResetError("Connection reset by peer"),
        TimeoutError("timed out"),
        dist.DistBackendError("NCCL error: Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 0"),
        RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 8 vs 4."),
        DistributedError("something else"),
    ],
)
def test_errors_of_ones_own_are_causes(error: BaseException) -> None:
    """The user's errors, their connections to other services too, and a rank's own misuse are reported as causes."""
    assert not is_consequence(error)


def test_a_failure_travels_whole() -> None:
    """Rank, kind, phase, batch, message and traceback arrive at the other ranks as they were."""
    failure = Failure.of(ValueError("für \n two lines"), 3, "train", None)
    assert Failure.from_json(failure.to_json()) == failure
    assert failure.headline(4) == "Rank 3 of 4 failed in train: ValueError: für \n two lines"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_zombie_is_gone() -> None:
    """A process that was killed is gone though its parent never waited for it, and a running or stopped one is not."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with open(f"/proc/{child.pid}/stat", encoding="ascii") as file:
            started = int(file.read().rpartition(")")[2].split()[19])
        process = Process(this_process().host, child.pid, started)
        assert not process.is_gone()
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert not process.is_gone()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.is_gone()
    finally:
        child.kill()
        child.communicate()
    assert process.is_gone()


def test_a_used_process_id_is_not_taken_for_the_process() -> None:
    """Another process with the id of one that is gone does not hide that, and one elsewhere is never called gone."""
    own = this_process()
    assert not own.is_gone()
    assert Process(own.host, own.pid, own.started + 1).is_gone() == bool(own.host)
    assert not Process("another host", 1, 1).is_gone()
