"""Start the ranks of a test: real processes that find each other by their environment, as torchrun's do.

``run_ranks`` calls a module-level function in each of them and returns what each returned; ``start_ranks`` leaves them
to the test, which may stop, kill and wait for them. A function runs in a process forked from one that has loaded torch
before, so that it starts in no time; a command is a new interpreter, for what is said about an interpreter's end.
"""

import ctypes
import faulthandler
import importlib
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0
PRELOADED = ["torch", "numpy", "pytest", "torch.distributed", "tests.distributed.warm"]
PRELOADED += ["sklearn.datasets", "sklearn.model_selection"]  # of the examples

_PR_SET_PDEATHSIG = 1
# Below what systems give to connections and to those who ask for any port, who could take it before it is used. Not of
# the generator that tests seed: two of them at once would ask for the same ones.
_FIRST_PORT, _PORTS = random.SystemRandom().randrange(10_000), itertools.count()


class Rank:
    """One process.

    Attributes:
        rank: its rank.
        pid: its process id.
    """

    def __init__(
        self, rank: int, process: "subprocess.Popen[bytes] | multiprocessing.process.BaseProcess", folder: Path
    ) -> None:
        if process.pid is None:
            raise AssertionError(f"rank {rank} was not started")
        self.rank, self.pid = rank, process.pid
        self._process, self._folder = process, folder

    @property
    def returncode(self) -> int | None:
        """Its exit status, -n after signal n, None while it runs."""
        process = self._process
        return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self.returncode

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for its end and give its exit status."""
        _until(lambda: self.returncode is not None, timeout, lambda: f"rank {self.rank} did not end:\n{self.output()}")
        return self.returncode or 0

    def wait_for(self, text: str, timeout: float = DEADLINE) -> None:
        """Wait until it has printed a text."""
        _until(lambda: text in self.output(), timeout, lambda: f"no {text!r} of rank {self.rank}:\n{self.output()}")

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def output(self) -> str:
        """What it has printed by now, standard output and standard error together."""
        return (self._folder / f"output-{self.rank}").read_text(encoding="utf-8", errors="replace")

    def returned(self) -> bool:
        """Whether its function returned, rather than raised, be it a SystemExit."""
        return (self._folder / f"result-{self.rank}").exists()

    def result(self) -> Any:
        """What its function returned, once it has ended well."""
        return pickle.loads((self._folder / f"result-{self.rank}").read_bytes())


class Ranks(list[Rank]):
    """The processes of one job, by rank; at the end of its ``with`` block all of them are gone."""

    def __init__(self, folder: "tempfile.TemporaryDirectory[str]") -> None:
        super().__init__()
        self._folder = folder

    def wait(self, timeout: float = DEADLINE) -> list[int]:
        """Wait for the end of all of them and give the exit statuses."""
        end = time.monotonic() + timeout
        return [rank.wait(max(end - time.monotonic(), 0.0)) for rank in self]

    def outputs(self) -> str:
        """What all of them printed, for an error message."""
        return "\n".join(f"--- rank {rank.rank}: exit status {rank.returncode}\n{rank.output()}" for rank in self)

    def dump(self) -> None:
        """Let those that still run print where they are, and end."""
        for rank in self:
            rank.send_signal(signal.SIGCONT)
            rank.send_signal(signal.SIGABRT)
        for rank in self:
            _until(lambda rank=rank: rank.returncode is not None, 60.0, None)  # type: ignore[misc]

    def close(self) -> None:
        """End those that still run and remove their files."""
        for rank in self:
            rank.kill()
        for rank in self:
            rank.wait()
        self._folder.cleanup()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run_ranks(
    function: Callable[..., Any],
    size: int,
    *args: Any,
    env: Mapping[str, str] | Callable[[int], Mapping[str, str]] | None = None,
    nodes: int = 1,
    timeout: float = DEADLINE,
) -> list[Any]:
    """Call a module-level function in each of several processes.

    Args:
        function: what each rank calls, of a module that can be imported.
        size: how many ranks.
        args: what it is called with; can be pickled.
        env: further variables of the environment, for all or by rank.
        nodes: how many nodes the ranks are told to be on; divides `size`.
        timeout: seconds until all are ended; each prints then where it was.

    Returns:
        What each returned, by rank.

    Raises:
        AssertionError: one failed, or the time was up; with what all of them printed.
    """
    with start_ranks(function, size, *args, env=env, nodes=nodes) as ranks:
        end = time.monotonic() + timeout
        while any(rank.returncode is None for rank in ranks):
            failed = any(rank.returncode for rank in ranks)
            late = time.monotonic() > end
            if late or (failed and not _until(lambda: all(r.returncode is not None for r in ranks), 60.0, None)):
                ranks.dump()
                break
            _pause()
        if any(rank.returncode for rank in ranks):
            raise AssertionError(f"the ranks did not end well:\n{ranks.outputs()}")
        return [rank.result() for rank in ranks]


def start_ranks(
    function: Callable[..., Any] | Sequence[str],
    size: int,
    *args: Any,
    env: Mapping[str, str] | Callable[[int], Mapping[str, str]] | None = None,
    nodes: int = 1,
) -> Ranks:
    """Start the ranks of a job and leave them to the test, which closes them by a ``with`` block.

    Args:
        function: a module-level function, or the command line of a new interpreter without the interpreter
            (``["script.py", "--flag"]``, ``["-c", "..."]``).
        size: how many ranks.
        args: what the function is called with; can be pickled.
        env: further variables of the environment, for all or by rank.
        nodes: how many nodes the ranks are told to be on; divides `size`.

    Returns:
        The ranks, a list that is closed at the end of its ``with`` block.
    """
    folder = tempfile.TemporaryDirectory(prefix="ranks-")
    ranks = Ranks(folder)
    port = free_port()
    try:
        for rank in range(size):
            own = env(rank) if callable(env) else env or {}
            variables = {**os.environ, **environment(rank, size, nodes=nodes, port=port), **own}
            start = _start_function if callable(function) else _start_command
            ranks.append(Rank(rank, start(function, args, variables, Path(folder.name), rank), Path(folder.name)))
    except BaseException:
        ranks.close()
        raise
    return ranks


def environment(rank: int, size: int, *, nodes: int = 1, port: int) -> dict[str, str]:
    """The variables by which torchrun tells a process who it is."""
    local = size // nodes
    numbers = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank % local,
        "LOCAL_WORLD_SIZE": local,
        "GROUP_RANK": rank // local,
        "GROUP_WORLD_SIZE": nodes,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def stand_still(pid: int) -> None:
    """Wait until a signal has stopped every thread of a process."""
    states = [b""]
    while states != [b"T"] * len(states):
        _pause()
        stats = [path.read_bytes() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        states = [stat.rpartition(b")")[2].split()[0] for stat in stats]


def free_port() -> int:
    """A port that no one listens on, another one each time."""
    while True:
        port = 10_000 + (_FIRST_PORT + next(_PORTS)) % 10_000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _start_function(
    function: Any, args: tuple[Any, ...], variables: dict[str, str], folder: Path, rank: int
) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    _ensure_server()
    (folder / f"output-{rank}").touch()
    name = (function.__module__, function.__qualname__)
    process = context.Process(target=_run, args=(name, pickle.dumps(args), variables, folder, rank))
    process.start()
    return process


def _ensure_server() -> None:
    """Have the process from which ranks are forked; it looks for modules where a new interpreter does."""
    forkserver.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _start_command(
    command: Any, args: tuple[Any, ...], variables: dict[str, str], folder: Path, rank: int
) -> "subprocess.Popen[bytes]":
    if args:
        raise AssertionError(f"a command takes no arguments of a function: {args}")
    with open(folder / f"output-{rank}", "wb") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _run(name: tuple[str, str], args: bytes, variables: dict[str, str], folder: Path, rank: int) -> None:
    """What each process does that calls a function."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(folder / f"output-{rank}", os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    faulthandler.enable(file=sys.stderr)
    os.environ.clear()
    os.environ.update(variables)
    warnings.simplefilter("error")
    multiprocessing.set_start_method(None, force=True)  # its own processes start as those of any program do
    import torch

    torch.set_num_threads(1)
    function: Any = importlib.import_module(name[0])
    for part in name[1].split("."):
        function = getattr(function, part)
    content = pickle.dumps(function(*pickle.loads(args)))
    (folder / f"result-{rank}").write_bytes(content)


def _until(happened: Callable[[], bool], timeout: float, what: Callable[[], str] | None) -> bool:
    end = time.monotonic() + timeout
    while not happened():
        if time.monotonic() > end:
            if what is None:
                return False
            raise AssertionError(f"{what()}\n(after {timeout:.0f} s)")
        _pause()
    return True


def _pause() -> None:
    threading.Event().wait(0.01)
