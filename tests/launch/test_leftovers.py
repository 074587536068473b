"""Nothing is left behind: no processes, ports, shared memory or files."""

import fcntl
import gc
import operator
import os
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch import programs
from tests.launch.launchers import Launcher, left_of_nobody, shared_memory, until
from trainlab.errors import RankFailedError
from trainlab.launch import Platform, launch
from trainlab.launch.agent import _scratch

PAIR: dict[str, Any] = {"device": "cpu", "processes": 2}


class State:
    """What there is of a process's, at one time."""

    def __init__(self) -> None:
        own = psutil.Process()
        self.children = set(own.children(recursive=True))
        self.ports = {c.laddr for c in own.net_connections() if c.status == psutil.CONN_LISTEN}
        self.threads = set(threading.enumerate())
        self.files, self.shared = set(os.listdir(tempfile.gettempdir())), shared_memory()
        self.descriptors = own.num_fds()
        self.environment = dict(os.environ)


@pytest.mark.parametrize(
    "kind", ["well", pytest.param("error", marks=pytest.mark.slow), pytest.param("kill", marks=pytest.mark.slow)]
)
def test_a_launch_leaves_its_caller_as_it_was(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a launch that ended well, or did not, the caller has no more children, ports, threads or files than before.

    Descriptors may be a few more: of what torch opens once.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = State()
    if kind == "well":
        launch(programs.total, 1.0, platform=Platform(**PAIR))
    else:
        with pytest.raises(RankFailedError):
            launch(programs.fail, 1, kind, platform=Platform(**PAIR, max_restarts=1))
    until(lambda: not State().ports - before.ports, lambda: f"ports are left: {State().ports - before.ports}")
    after = State()
    # What earlier tests have left may end meanwhile.
    for what in ("children", "threads", "files"):
        assert not getattr(after, what) - getattr(before, what), what
    assert not left_of_nobody(after.shared - before.shared)
    assert after.environment == before.environment
    assert after.descriptors <= before.descriptors + 8


def counted() -> tuple[int, int]:
    """How many files and threads this process has."""
    return psutil.Process().num_fds(), psutil.Process().num_threads()


@pytest.mark.slow
def test_many_launches_gather_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second launch on, none leaves so much as an open file behind."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        launch(programs.given, platform=Platform(**PAIR))
    gc.collect()
    before = counted()
    for _ in range(2):
        launch(programs.given, platform=Platform(**PAIR))
    gc.collect()
    # The system may count a thread for an instant after its end, then and now.
    until(lambda: all(map(operator.le, counted(), before)), lambda: f"from {before} to {counted()}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "statuses"),
    [
        (signal.SIGINT, {130, -signal.SIGINT}),
        (signal.SIGTERM, {143}),
        (signal.SIGKILL, {-signal.SIGKILL}),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGKILL"],
)
def test_an_interrupted_launch_leaves_no_processes(number: signal.Signals, statuses: set[int], tmp_path: Path) -> None:
    """Ranks and the workers of their loaders are gone with their launch, however it is ended, and their memory too."""
    plan = {0: ("wait", 0, "train:2")}
    options = {"workers": 2}
    with Launcher.of_call(tmp_path, {**PAIR, "grace": 20.0}, "train", str(tmp_path), plan, options) as launcher:
        launcher.wait_for_marks("waits-0", 2)
        assert len(launcher.children()) >= 6
        launcher.send(number, group=number == signal.SIGINT)
        assert launcher.wait() in statuses, launcher.said()
        left = launcher.left()
        assert left["shared memory"] == []
        if number != signal.SIGKILL:
            assert left["temporary files"] == []


def test_launches_that_begin_at_once_leave_each_others_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that begins while others clean up after killed ones keeps the folder that it has just made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def begin(_: int) -> bool:
        with _scratch() as folder:
            return (folder / "logs").is_dir()

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(begin, range(1000)))
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_launcher_that_cannot_be_seen_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher in another container with the same temporary folder is not taken for dead; a dead one's is removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive, dead = tmp_path / "trainlab-launch-1", tmp_path / "trainlab-launch-2"
    for folder in (alive, dead):
        folder.mkdir()
        (folder / "lock").write_bytes(b"")
    with (alive / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert launch(programs.total, 1.0, platform=Platform(**PAIR)) == [3.0, 3.0]
        assert alive.exists() and not dead.exists()
