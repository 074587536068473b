"""Processes that launch: started, signalled and waited for by the tests, with all that they leave behind."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DEADLINE = 150.0
_SIGN = "LAUNCHED_BY_A_TEST"

# What a started interpreter does: it launches a function of tests.launch.programs, and leaves the results in a file.
CALL = """
import logging, pickle, sys
from pathlib import Path
from tests.launch import programs
from trainlab.launch import Platform, launch
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    print("all is imported", flush=True)
    options, name, args, results = pickle.loads(Path(sys.argv[1]).read_bytes())
    found = launch(getattr(programs, name), *args, platform=Platform(**options))
    Path(results).write_bytes(pickle.dumps(found))
"""


class Launcher:
    """A process that launches, in a process group of its own, with a temporary folder of its own.

    Args:
        command: of the interpreter, without it.
        folder: where it runs, writes what it says, and has its temporary files.
        env: further variables.
        stdin: what it reads.
    """

    def __init__(self, command: list[str], folder: Path, *, stdin: str | None = None, **env: str) -> None:
        self.folder, self.sign = folder, uuid.uuid4().hex
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._said = folder / f"said-{self.sign[:6]}"
        self.shared_before = shared_memory()
        without = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env={
                    **without,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": str(self.temporary),
                    "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),  # which torch keeps for ever
                    _SIGN: self.sign,
                    **env,
                },
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if stdin is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(stdin.encode())
            self._process.stdin.close()
        self.pid = self._process.pid
        self.results = folder / f"results-{self.sign[:6]}"

    @classmethod
    def of_call(cls, folder: Path, platform: dict[str, Any], name: str, *args: Any, **env: str) -> "Launcher":
        """One that launches a function of ``tests.launch.programs``."""
        folder.mkdir(parents=True, exist_ok=True)
        call = folder / f"call-{uuid.uuid4().hex[:6]}"
        script = folder / "script.py"
        script.write_text(CALL)
        results = folder / f"{call.name}.results"
        call.write_bytes(pickle.dumps((platform, name, args, results)))
        launcher = cls([str(script), str(call)], folder, **env)
        launcher.results = results
        return launcher

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *error: object) -> None:
        for process in (
            [*self.children(), psutil.Process(self.pid)] if self._process.poll() is None else self.children()
        ):
            process.kill()
        self._process.wait()

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for its end and give its exit status."""
        until(lambda: self._process.poll() is not None, lambda: f"it did not end:\n{self.said()}", timeout)
        return self._process.returncode

    def said(self) -> str:
        """What it has printed by now."""
        return self._said.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until it has printed something."""
        until(lambda: self._ended_without(text) or text in self.said(), lambda: f"no {text!r}:\n{self.said()}")

    def wait_for_marks(self, name: str, count: int, folder: Path | None = None) -> list[int]:
        """Wait until ranks have left marks (``programs.mark``), and give their process ids by rank."""
        place = folder or self.folder
        marks = [place / f"{name}-{rank}" for rank in range(count)]
        until(
            lambda: self._ended_without("") or all(mark.exists() for mark in marks), lambda: f"no marks:\n{self.said()}"
        )
        return [int(mark.read_text()) for mark in marks]

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to it, or to its process group, as a terminal does."""
        (os.killpg if group else os.kill)(self.pid, number)

    def children(self) -> list[psutil.Process]:
        """All processes that come from it, also those whose parent has ended."""
        return [process for process in processes_with(_SIGN, self.sign) if process.pid != self.pid]

    def result(self) -> Any:
        """What ``launch`` returned, once it has ended well."""
        assert self.wait() == 0, self.said()
        return pickle.loads(self.results.read_bytes())

    def left(self) -> dict[str, Any]:
        """What it has left behind, each of which ought to be empty."""
        until(lambda: not self.children(), lambda: f"processes are left: {self.children()}\n{self.said()}")
        return {
            "temporary files": sorted(str(path) for path in self.temporary.rglob("*")),
            "shared memory": sorted(left_of_nobody(shared_memory() - self.shared_before)),
        }

    def _ended_without(self, text: str) -> bool:
        if self._process.poll() is not None and text not in self.said():
            raise AssertionError(f"it ended with {self._process.returncode}:\n{self.said()}")
        return self._process.poll() is not None and not text


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """The living processes with a variable in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:
            continue
    return found


def shared_memory() -> set[str]:
    """The names in /dev/shm."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def left_of_nobody(names: set[str]) -> set[str]:
    """Those of the names in /dev/shm that are still there, and that no other program uses."""
    used = ""
    for maps in Path("/proc").glob("[0-9]*/maps") if names else ():
        if maps.parent.name != str(os.getpid()):
            with suppress(OSError):  # its process has ended
                used += maps.read_text(errors="replace")
    return {name for name in names & shared_memory() if f"/dev/shm/{name}\n" not in used}


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for is a zombie where no init does."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def until(happened: Callable[[], bool], what: Callable[[], str], timeout: float = DEADLINE) -> None:
    """Wait for something that is bound to happen."""
    end = time.monotonic() + timeout
    while not happened():
        if time.monotonic() > end:
            raise AssertionError(f"{what()}\n(after {timeout:.0f} s)")
        threading.Event().wait(0.02)


def record_of(run_dir: Path) -> list[tuple[int, str]]:
    """The attempt and the status of each start that a run's record tells of."""
    record = json.loads((run_dir / "run.json").read_text())
    return [(start["attempt"], start["status"]) for start in record["starts"]]


@contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    """Have a signal handled in some way for the time of a block."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
