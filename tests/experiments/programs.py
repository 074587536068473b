"""Scripts with experiments that tests run as a person would, each in a process with all that it starts in sight."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.launch.launchers import processes_with, until

ROOT = Path(__file__).parents[2]
_SIGN = "EXPERIMENT_OF_A_TEST"
# The first of a session makes a terminal its own.
_TAKE_TERMINAL = """
if __name__ == "__main__":
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
"""


class Program:
    """A script that runs in a session of its own.

    Attributes:
        pid: of its process.
        folder: where it runs.
    """

    def __init__(self, folder: Path, script: str, *arguments: str, terminal: int | None = None, **env: str) -> None:
        self.folder, self._sign = folder, uuid.uuid4().hex
        path = folder / "program.py"
        path.write_text(script if terminal is None else f"{_TAKE_TERMINAL}{script}")
        self._said = folder / f"said-{self._sign[:6]}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, str(path), *arguments],
                cwd=folder,
                env={**clean, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", _SIGN: self._sign, **env},
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=said if terminal is None else terminal,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self) -> int:
        """Wait for its end, and give its exit status."""
        until(lambda: self._process.poll() is not None, lambda: f"it did not end:\n{self.said()}")
        return self._process.returncode

    def said(self) -> str:
        """What it has printed by now."""
        return self._said.read_text(errors="replace")

    def wait_for(self, name: str) -> str:
        """Wait until it, or a child, has left a file in its folder, and give what is in it."""
        path = self.folder / name

        def there() -> bool:
            if not path.exists() and self._process.poll() is not None:
                raise AssertionError(f"it ended with {self._process.returncode} and left no {name}:\n{self.said()}")
            return path.exists()

        until(there, lambda: f"no {name}:\n{self.said()}")
        return path.read_text()

    def send(self, number: int) -> None:
        """Send it, and it alone, a signal."""
        os.kill(self.pid, number)

    def living(self) -> list[psutil.Process]:
        """Its process and those that it has started, as far as they live."""
        return processes_with(_SIGN, self._sign)

    def left(self) -> list[psutil.Process]:
        """The processes that it has left behind, after those that are killed with it had the time to end."""
        with suppress(AssertionError):
            until(lambda: not self.living(), lambda: "", 60.0)
        return self.living()

    def close(self) -> None:
        """End all of it."""
        if self._process.poll() is None:
            self.send(signal.SIGKILL)
        for process in self.living():
            with suppress(psutil.Error):
                process.kill()
        self._process.wait()


@contextmanager
def program(folder: Path, script: str, *arguments: str, terminal: int | None = None, **env: str) -> Iterator[Program]:
    """Run a script for the time of a block.

    Args:
        folder: where it runs.
        script: its text.
        arguments: of its command line.
        terminal: the descriptor of what it has for its terminal; None for none.
        env: further variables.
    """
    started = Program(folder, script, *arguments, terminal=terminal, **env)
    try:
        yield started
    finally:
        started.close()


def run_of(folder: Path, name: str = "train") -> Path:
    """The folder of the one run that a program has made."""
    (found,) = [path for path in (folder / "runs" / name).iterdir() if (path / "run.json").exists()]
    return found


def record_of(folder: Path, name: str = "train") -> dict[str, Any]:
    """The record of that run."""
    record: dict[str, Any] = json.loads((run_of(folder, name) / "run.json").read_text())
    return record
