"""Where a job stands: asked of SLURM, or of the process that stands for it."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Protocol

from trainlab.errors import LaunchError

__all__ = ["ENDED", "EndedSource", "LocalProcess", "NoAnswerError", "SlurmQueue", "Source", "jobs_of"]

# Source: "JOB STATE CODES" of squeue's manual. A job that is requeued is in none of these.
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
        "UNKNOWN",
    }
)
_SECONDS = 30


class NoAnswerError(LaunchError):
    """SLURM does not answer now, and may do so later."""


class Source(Protocol):
    """Who knows the state of a job."""

    @property
    def reason(self) -> str:
        """Why it waits, as last heard; "" if it does not, or nobody knows."""

    def state(self) -> str | None:
        """Ask for it.

        Returns:
            SLURM's word; None where the job is not known any more.

        Raises:
            NoAnswerError: there is no answer now.
            LaunchError: there cannot be any.
        """

    def cancel(self) -> None:
        """End the job.

        Raises:
            LaunchError: that is refused.
        """


class SlurmQueue:
    """A job of SLURM.

    Args:
        job_id: its number; "12_3" for one of an array.
    """

    # One question for all jobs of an array, and at most one a second.
    _lock = threading.Lock()
    _told: ClassVar[dict[str, tuple[float, dict[str, tuple[str, str]]]]] = {}

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._main = job_id.partition("_")[0]

    def state(self) -> str | None:
        """Ask squeue, and where it has forgotten the job, sacct.

        Returns:
            SLURM's word; None where nobody knows the job any more.

        Raises:
            NoAnswerError: SLURM does not answer now.
            LaunchError: there is no SLURM.
        """
        with self._lock:
            at, told = self._told.get(self._main, (0.0, {}))
            if time.monotonic() - at >= 1:
                told = self._ask()
                self._told[self._main] = time.monotonic(), told
        return told[self._job_id][0] if self._job_id in told else self._accounted()

    @property
    def reason(self) -> str:
        """Why it waits, as squeue last said."""
        state, reason = self._told.get(self._main, (0.0, {}))[1].get(self._job_id, ("", ""))
        return reason if state == "PENDING" and reason != "None" else ""

    def cancel(self) -> None:
        """Cancel it, whatever state it is in.

        Raises:
            LaunchError: SLURM refuses.
        """
        done = _run("scancel", self._job_id)
        if done.returncode and self.state() not in {None, *ENDED}:
            raise LaunchError(f"SLURM does not cancel job {self._job_id}: {done.stderr.strip()}")
        self._told.pop(self._main, None)

    def _ask(self) -> dict[str, tuple[str, str]]:
        done = _run("squeue", "--noheader", "--array", "--states=all", f"--jobs={self._main}", "--format=%i|%T|%r")
        if done.returncode and "Invalid job id" not in done.stderr:
            raise NoAnswerError(f"SLURM does not say how job {self._job_id} is: {done.stderr.strip()}")
        rows = ([word.strip() for word in line.split("|", 2)] for line in done.stdout.splitlines())
        return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}

    def _accounted(self) -> str | None:
        if shutil.which("sacct") is None:
            return None
        done = _run("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={self._job_id}", "--format=State")
        words = done.stdout.split()  # such as "CANCELLED by 1000"
        return words[0] if done.returncode == 0 and words else None


def jobs_of(scripts: Collection[str]) -> list[str]:
    """Find the jobs of this user that have not ended, by their batch scripts.

    Args:
        scripts: the names of the scripts' files.

    Returns:
        The jobs' numbers; "12_3" for one of an array.

    Raises:
        NoAnswerError: SLURM does not answer now.
        LaunchError: there is no SLURM.
    """
    done = _run("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%o")
    if done.returncode:
        raise NoAnswerError(f"SLURM does not say which jobs there are: {done.stderr.strip()}")
    rows = (line.strip().partition("|") for line in done.stdout.splitlines())
    return [job_id for job_id, _, command in rows if Path(command).name in scripts]


class LocalProcess:
    """A job of submitit's local executor: a process of this machine.

    Args:
        pid: its process id.
        host: the machine's name.
        folder: what its command line ends with.
        process: it, where it is a child of this one.
    """

    reason = ""

    def __init__(self, pid: int, host: str, folder: Path, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self._pid, self._host, self._folder, self._process = pid, host, folder, process

    def state(self) -> str | None:
        """Look for the process.

        Returns:
            "RUNNING", or None if it has ended.

        Raises:
            LaunchError: it is one of another machine.
        """
        if self._host != socket.gethostname():
            raise LaunchError(
                f"The job runs on another machine. Received: {self._host}, seen from {socket.gethostname()}."
            )
        if self._process is not None:
            return "RUNNING" if self._process.poll() is None else None
        return "RUNNING" if self._is_there() else None

    def cancel(self) -> None:
        """Interrupt it; its ranks have a second, then submitit kills them."""
        if self.state() is not None:
            os.kill(self._pid, signal.SIGINT)

    def _is_there(self) -> bool:
        """Process ids are used again, but not with this folder as the last argument."""
        try:
            command = Path(f"/proc/{self._pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            if Path("/proc/self").exists():
                return False
            command = _run("ps", "-o", "command=", "-p", str(self._pid)).stdout
        return str(self._folder) in command  # one that has ended has no command line


class EndedSource:
    """A job that ran where it was submitted, before there was a handle of it."""

    reason = ""

    def state(self) -> str | None:
        """Nobody needs to be asked.

        Returns:
            None.
        """
        return None

    def cancel(self) -> None:
        """It has ended."""


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError as error:
        raise LaunchError(
            f"There is no SLURM here. Received: no {command[0]} on the PATH. Ask for the job on a node of the cluster."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"SLURM does not answer. Received: nothing from {command[0]} in {_SECONDS} s.") from error
