"""Pool: runs of an experiment in processes of their own, so many at once."""

import math
import os
import queue
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError, LaunchError
from trainlab.launch.child import ChildProcess
from trainlab.sweeps.gpus import Gpus, gpus_for
from trainlab.sweeps.worker import run_job

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trainlab.experiments.definition import Experiment

__all__ = ["OUTPUT", "Finished", "Job", "Pool", "Running", "refuse_unguarded"]

# In a run's folder: what its process has written to its standard output and errors, over all starts.
OUTPUT = "output.txt"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A run that is to be made.

    Args:
        key: what it is told apart by.
        experiment: what runs.
        params: its parameters by name, or its model.
        run_dir: the run's folder, absolute; made if need be. A run that is there is gone on with.
        environment: further variables of its process; None takes one away. Default none.
        label: what it is called. Default the key.
    """

    key: str
    experiment: "Experiment"
    params: "Mapping[str, Any] | BaseModel"
    run_dir: Path
    environment: Mapping[str, str | None] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class Running:
    """A job in its process.

    Args:
        job: it.
        child: the process.
        gpus: those that it sees; () where they are left alone.
        started: when, as ``time.monotonic`` tells it.
    """

    job: Job
    child: ChildProcess
    gpus: tuple[str, ...]
    started: float


@dataclass(frozen=True)
class Finished:
    """A job whose process has ended.

    Args:
        job: it.
        exitcode: the exit status, -n for signal n.
        error: the traceback of what ended it; "" for none.
        seconds: how long its process took.
        is_stopped: whether it was asked to end, or killed, by ``stop``.
        unguarded: what is to be said of a script that runs something on import, where that has ended it; else "".
    """

    job: Job
    exitcode: int
    error: str
    seconds: float
    is_stopped: bool
    unguarded: str = ""


class Pool:
    """Processes that make runs, a fresh one for each; they end with this process, however it ends.

    Used by one thread, best the main one. At the end of its ``with`` block what still runs is killed.

    Args:
        max_num_processes: how many run at once. Default 1. They share the CPUs, unless OMP_NUM_THREADS is set.
        gpus_per_process: how many GPUs each sees; 0: none. Default None: they are left alone.
        gpus: what hands them out. Default: this machine's.

    Raises:
        InvalidTypeError: a number is no int.
        InvalidValueError: a number cannot be used, or there are fewer GPUs.
    """

    def __init__(
        self, max_num_processes: int = 1, gpus_per_process: int | None = None, *, gpus: Gpus | None = None
    ) -> None:
        if isinstance(max_num_processes, bool) or not isinstance(max_num_processes, int):
            raise InvalidTypeError(f"max_num_processes is an int. Received: {max_num_processes!r}.")
        if max_num_processes < 1:
            raise InvalidValueError(f"max_num_processes is at least 1. Received: {max_num_processes}.")
        self._most = max_num_processes
        self._gpus = gpus if gpus is not None else gpus_for(max_num_processes, gpus_per_process)
        self._running: dict[str, Running] = {}
        # Signal handlers may interrupt a put to this kind of queue.
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._kill_at: float | None = None

    @property
    def running(self) -> tuple[Running, ...]:
        """What runs, or has ended and was not handed out by ``wait`` yet; the oldest first."""
        return tuple(self._running.values())

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._kill_at is not None

    @property
    def has_room(self) -> bool:
        """Whether a job can be submitted; never after ``stop``."""
        return self._kill_at is None and len(self._running) < self._most

    def submit(self, job: Job) -> Running | None:
        """Start a job's process.

        Args:
            job: it.

        Returns:
            The job in its process; None if the pool is stopped, which a signal's handler may do at any instant.

        Raises:
            InvalidStateError: there is no room, or the job runs already.
            LaunchError: the process cannot be started.
            RunFolderError: the run's folder cannot be made.
        """
        if len(self._running) >= self._most or job.key in self._running:
            why = "it runs already" if job.key in self._running else "the pool is full: ask has_room first"
            raise InvalidStateError(f"The job cannot be submitted. Received: {job.label or job.key}, and {why}.")
        _make(job.run_dir)
        gpus = () if self._gpus is None else self._gpus.take()
        try:
            child = ChildProcess(
                run_job,
                (job.experiment, job.params, job.run_dir),
                environment={**self._variables(gpus), **job.environment},
                output=job.run_dir / OUTPUT,
                when_ended=lambda _: self._ended.put(job.key),
                name=job.label or job.key,
            )
            if self.is_stopped:
                self._give_back(gpus)
                return None
            running = Running(job, child, gpus, time.monotonic())
            child.start()
        except BaseException:
            self._give_back(gpus)
            raise
        self._running[job.key] = running
        if self._kill_at is not None:  # a signal's handler has called stop meanwhile
            child.send_signal(signal.SIGINT)
        return running

    def wait(self, timeout: float | None = None) -> Finished | None:
        """Wait for the end of any job.

        Args:
            timeout: seconds at most. Default: as long as it takes.

        Returns:
            The job that has ended; None if none has in time.

        Raises:
            InvalidStateError: nothing runs.
        """
        if not self._running:
            raise InvalidStateError("No job runs that could be waited for. Submit one first.")
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            until = min(end, math.inf if self._kill_at is None else self._kill_at)
            left = until - time.monotonic()
            try:
                # Not for ever: stop may be called by a signal's handler.
                key = self._ended.get(timeout=max(0.0, min(left, 1.0)))
            except queue.Empty:
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._kill()
                if time.monotonic() >= end:
                    return None
                continue
            return self._finished(self._running.pop(key))

    def stop(self, grace: float = 0.0) -> None:
        """Ask all processes to end, as Ctrl-C does, and kill those that have not in time; nothing new is started.

        It returns at once; ``wait`` goes on to hand out what ends. It may be called again, and by a signal's handler.

        Args:
            grace: seconds until they are killed. Default 0: at once.
        """
        is_first = self._kill_at is None
        at = time.monotonic() + grace
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)
        for running in self.running:
            if grace <= 0:
                running.child.kill()
            elif is_first:
                running.child.send_signal(signal.SIGINT)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        while self._running:
            self.wait()

    def _kill(self) -> None:
        self._kill_at = math.inf
        for running in self.running:
            running.child.kill()

    def _finished(self, running: Running) -> Finished:
        self._give_back(running.gpus)
        child, seconds = running.child, time.monotonic() - running.started
        exitcode = child.exitcode if child.exitcode is not None else 0
        return Finished(running.job, exitcode, child.error, seconds, self.is_stopped, child.unguarded)

    def _give_back(self, gpus: tuple[str, ...]) -> None:
        if self._gpus is not None:
            self._gpus.give_back(gpus)

    def _variables(self, gpus: tuple[str, ...]) -> Mapping[str, str | None]:
        # A run that another one starts is no part of it, and no trial of its search.
        found: dict[str, str | None] = {"TRAINLAB_SEARCH": None, "TRAINLAB_EXPERIMENT": None}
        if self._gpus is not None:
            found |= self._gpus.environment(gpus)
        if self._most > 1 and not any(name in os.environ for name in _THREADS):
            from trainlab.distributed.cpus import cpu_quota, usable_cpus

            cpus = min(float(len(usable_cpus())), cpu_quota() or math.inf)
            found[_THREADS[0]] = str(max(1, math.floor(cpus / self._most)))
        return found


def refuse_unguarded(finished: Finished) -> None:
    """Raise what ended a process that imported a script which runs something on import, for so do all others.

    Args:
        finished: the job that has ended.

    Raises:
        LaunchError: that is so.
    """
    if finished.unguarded:
        raise LaunchError(finished.unguarded)


def _make(folder: Path) -> None:
    from trainlab.runs.folder_lock import unusable

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, "made", error) from error
