"""ChildProcess: real processes, which end with the one that started them."""

import gc
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.launch import called
from tests.launch.launchers import is_gone
from trainlab.errors import InvalidStateError, LaunchError, RankFailedError
from trainlab.launch.child import ChildProcess

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0

PARENT = """
import sys, threading
from pathlib import Path
from tests.launch.called import wait_for_ever
from trainlab.launch.child import ChildProcess

if __name__ == "__main__":
    child = ChildProcess(wait_for_ever, (Path(sys.argv[1]),))
    if sys.argv[2] == "thread":
        starter = threading.Thread(target=child.start)
        starter.start()
        starter.join()
    else:
        child.start()
    child.join()
"""

FORKED = """
import os, sys, threading
from pathlib import Path
from functools import partial
from tests.launch.called import leave_behind
from trainlab.launch.child import ChildProcess

if __name__ == "__main__":
    child = ChildProcess(partial(leave_behind, Path(sys.argv[1]), waits=True))
    child.start()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        threading.Event().wait()
    child.join()
"""

UNGUARDED = """
from trainlab.launch.child import ChildProcess

def work():
    return 1

child = ChildProcess(work).start()
child.join()
print("exit status", child.exitcode, bool(child.unguarded))
print(child.error)
"""


def until(happened: Any, what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, what
        threading.Event().wait(0.01)


def test_a_child_does_its_call_in_surroundings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the variables it was given, no place among ranks, no input, a group of its own, and a file for output."""
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "TRAINLAB_RUN_DIR": "/a", "KEPT": "1", "TAKEN": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    output, ended = tmp_path / "output.txt", queue.Queue[ChildProcess]()
    output.write_text("before\n")
    child = ChildProcess(
        called.surroundings, environment={"GIVEN": "2", "TAKEN": None}, output=output, when_ended=ended.put
    )
    assert child.pid is None and child.exitcode is None and not child.is_alive()
    assert child.start() is child
    seen = child.result()
    environ = seen["environ"]
    assert (environ["GIVEN"], environ["KEPT"]) == ("2", "1")
    assert not {"RANK", "WORLD_SIZE", "TRAINLAB_RUN_DIR", "TAKEN", "TRAINLAB_IMPORTING"} & set(environ)
    assert not {"TRAINLAB_PARENT_PID", "TRAINLAB_CHILD_PATH"} & set(environ)
    assert seen["pid"] == seen["group"] == child.pid != os.getpid()
    assert (seen["input"], seen["argv"], seen["path"]) == ("", sys.argv, sys.path[0])
    assert sorted(output.read_text().splitlines()) == ["before", "said", "warned"]
    assert ended.get(timeout=PATIENCE) is child and (child.exitcode, child.error) == (0, "")
    assert not child.is_alive()
    with pytest.raises(InvalidStateError, match="started before"):
        child.start()


@pytest.mark.parametrize("starter", ["main", "thread"])
def test_a_child_is_killed_with_its_parent(tmp_path: Path, starter: str) -> None:
    """kill -9 of a program leaves none of its children behind, whichever of its threads had started them."""
    (tmp_path / "parent.py").write_text(PARENT)
    mark = tmp_path / "child"
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(mark), starter], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        until(mark.exists, "the child was not started")
        pid = int(mark.read_text())
        assert not is_gone(pid)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: is_gone(pid), "the child lives on")


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_a_child_leaves_behind_is_gone_when_it_has_ended(tmp_path: Path, is_killed: bool) -> None:
    """Whoever is told of a process's end finds nothing more of it running, however it ended."""
    mark = tmp_path / "pids"
    child = ChildProcess(partial(called.leave_behind, mark, waits=is_killed)).start()
    if is_killed:
        until(mark.exists, "it was not started")
        child.kill()
    child.join(PATIENCE)
    assert child.exitcode == (-signal.SIGKILL if is_killed else 0)
    until(lambda: all(is_gone(int(pid)) for pid in mark.read_text().split()), "a process lives on")


def test_nothing_of_a_child_outlives_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 of a program ends what its children have started too, also while a fork of the program lives on."""
    (tmp_path / "parent.py").write_text(FORKED)
    mark = tmp_path / "pids"
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(mark)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    fork = int(parent.stdout.readline())
    try:
        until(mark.exists, "the child was not started")
        pids = [int(pid) for pid in mark.read_text().split()]
        parent.kill()
        parent.wait()
        until(lambda: all(map(is_gone, pids)), "a process lives on")
        assert not is_gone(fork)
    finally:
        parent.kill()
        os.kill(fork, signal.SIGKILL)
        parent.stdout.close()


def test_an_error_is_told_where_its_output_cannot_be_written() -> None:
    """On a full disk the error that a function raised is still told, and not that there is no space to print it."""
    child = ChildProcess(called.fail, output=Path("/dev/full")).start()
    with pytest.raises(RankFailedError, match="the user's mistake"):
        child.result()


def test_an_error_is_told_with_its_traceback(tmp_path: Path) -> None:
    """Whoever asks for the result of a function that failed is told where and why, as its output is."""
    child = ChildProcess(called.fail, output=tmp_path / "output.txt").start()
    with pytest.raises(
        RankFailedError, match=r"fail .*ended with status 1: KeyError: \"the user's mistake\""
    ) as caught:
        child.result()
    assert caught.value.exitcode == child.exitcode == 1
    assert 'called.py", line' in caught.value.traceback and caught.value.traceback == child.error
    assert child.error in (tmp_path / "output.txt").read_text()


def test_each_way_to_end_is_told_apart() -> None:
    """sys.exit(0) is success without a result, another status a failure with it, and a signal is named."""
    ways: dict[str, tuple[Any, ...]] = {
        "good": (called.leave, 0),
        "bad": (called.leave, 7),
        "killed": (called.kill_itself, signal.SIGKILL),
        "unreadable": (called.unreadable,),
    }
    children = {name: ChildProcess(way[0], way[1:]).start() for name, way in ways.items()}
    assert children["good"].result() is None
    with pytest.raises(RankFailedError, match="with status 7: SystemExit: 7"):
        children["bad"].result()
    with pytest.raises(RankFailedError, match=r"by SIGKILL\."):
        children["killed"].result()
    assert children["killed"].exitcode == -signal.SIGKILL
    with pytest.raises(RankFailedError, match="cannot be read: RuntimeError: not to be read"):
        children["unreadable"].result()


def test_a_result_that_cannot_be_sent_is_an_error(tmp_path: Path) -> None:
    """A function that returns a lock does not end as if it had returned nothing."""
    child = ChildProcess(called.unwritable, output=tmp_path / "output.txt").start()
    with pytest.raises(RankFailedError, match=r"cannot be sent: TypeError.*Return what can be pickled"):
        child.result()


def test_a_child_can_be_ended(tmp_path: Path) -> None:
    """terminate and kill reach the process, and do nothing any more once it has ended."""
    child = ChildProcess(called.wait_for_ever, (tmp_path / "mark",), name="waiting")
    with pytest.raises(InvalidStateError, match="waiting was not started"):
        child.join()
    child.terminate()
    child.start()
    until((tmp_path / "mark").exists, "it was not started")
    child.join(0.0)
    assert child.is_alive() and child.exitcode is None
    child.terminate()
    child.join(PATIENCE)
    assert child.exitcode == -signal.SIGTERM
    child.kill()


def test_a_script_that_starts_children_when_it_is_imported_is_told(tmp_path: Path) -> None:
    """A script without `if __name__ == "__main__":` does not start processes without end, and is told what to do."""
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "exit status 1 True" in done.stdout, done.stdout + done.stderr
    assert 'Put what starts it under `if __name__ == "__main__":`' in done.stdout


def test_what_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    """A function that no other process can find, or an output that cannot be opened, is told before anything starts."""
    lock = threading.Lock()
    with pytest.raises(LaunchError, match="cannot be sent to other processes"):
        ChildProcess(lambda: lock)
    with pytest.raises(LaunchError, match="cannot be started: .*No such file"):
        ChildProcess(called.fail, output=tmp_path / "absent" / "output.txt").start()


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    """A process that a real-time signal has killed is told as such."""
    child = ChildProcess(called.kill_itself, (signal.SIGRTMIN + 6,)).start()
    with pytest.raises(RankFailedError, match=rf"by signal {signal.SIGRTMIN + 6}\."):
        child.result()


def test_a_child_that_cannot_be_started_leaves_nothing_open(tmp_path: Path) -> None:
    """Without descriptors to start it with, a child is a LaunchError, leaves none open, and can be started later."""
    gc.collect()  # or what is left of others would be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    child = ChildProcess(called.leave, (0,), output=tmp_path / "output.txt")
    for spare in range(6):
        unused = os.open("/dev/null", os.O_RDONLY)
        os.close(unused)
        resource.setrlimit(resource.RLIMIT_NOFILE, (unused + spare, hard))
        try:
            with pytest.raises(LaunchError, match="cannot be started: .*Too many open files"):
                child.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) <= before
    assert child.start().result() is None
