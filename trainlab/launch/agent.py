"""The agent of a node: it starts the ranks, watches them, and starts them again after a loss."""

import fcntl
import json
import logging
import os
import pickle
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException

from trainlab.distributed import launched
from trainlab.errors import LaunchError, RankFailedError
from trainlab.launch.failures import FirstFailure, History
from trainlab.launch.logs import keep_logs
from trainlab.launch.platform import Platform
from trainlab.launch.rounds import Rounds
from trainlab.launch.tasks import FunctionTask, ScriptTask

__all__ = ["run_agent"]

logger = logging.getLogger("trainlab.launch")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_UNHEARD = (signal.SIGHUP, signal.SIGQUIT)  # of them, those that would kill a rank that trains
_OF_SLURM = (signal.SIGUSR1, signal.SIGUSR2)
_MONITOR_SECONDS = 0.1
_PREFIX = "trainlab-launch-"
_ROUNDS = 10_000  # more than there are restarts in one job of SLURM


def run_agent(
    task: FunctionTask | ScriptTask, name: str, platform: Platform, processes: int, variables: Mapping[str, str]
) -> list[Any]:
    """Run a task on this node's ranks, together with those of the other nodes.

    Args:
        task: what each rank does.
        name: of the function or the script.
        platform: as given to ``launch``.
        processes: ranks of this node.
        variables: for the environment of the ranks.

    Returns:
        What the function returned, by rank; None for each rank of a script.

    Raises:
        RankFailedError: a rank failed, and was not, or not any more, started again.
        LaunchError: the nodes do not find each other.
        SystemExit: the ranks came to an end in good order after a signal, with 128 + its number.
        KeyboardInterrupt: Ctrl-C.
    """
    launch_id, first = _identity(platform)
    with _scratch() as folder:
        attempts = _Attempts(folder, pickle.dumps(task), platform, processes, variables)
        with _handlers(), _quiet(), keep_logs(folder, name, platform, launch_id):
            return attempts.run(launch_id, first, isinstance(task, FunctionTask))


class _Attempts:
    """The attempts of one node at a task."""

    def __init__(
        self, folder: Path, task: bytes, platform: Platform, processes: int, variables: Mapping[str, str]
    ) -> None:
        self._folder, self._task, self._platform, self._processes = folder, task, platform, processes
        self._variables = {**variables, "TRAINLAB_AGENT_PID": str(os.getpid())}
        self._history = History(platform)
        self._notes = folder / "notes"

    def run(self, launch_id: str, first: int, returns: bool) -> list[Any]:
        rounds = Rounds(self._platform, launch_id, first, self._begin)
        try:
            return self._run(rounds, returns)
        except BaseException as error:
            rounds.give_up(f"{error}".splitlines()[0] if str(error) else type(error).__name__)
            raise
        finally:
            rounds.close()

    def _run(self, rounds: Rounds, returns: bool) -> list[Any]:
        while True:
            agent = _Agent(self._spec(rounds), DefaultLogsSpecs(log_dir=str(self._folder / "torch")), self._platform)
            try:
                result = agent.run()
            except SignalException as stopped:
                if stopped.sigval == signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise SystemExit(128 + stopped.sigval) from None
            group = agent.get_worker_group()
            if result is None:
                raise LaunchError("Another node has ended the launch.")
            if not result.is_failed():
                return self._results(rounds, group) if returns else []
            self._learn(result, group.workers[0].world_size)

    def _learn(self, result: RunResult, size: int) -> None:
        """Find out what went wrong, and whether to try again."""
        failure = FirstFailure.of(
            self._notes, {rank: failed.exitcode for rank, failed in result.failures.items()}, size
        )
        if failure.stopped_by is not None:
            raise SystemExit(128 + failure.stopped_by)
        self._history.add(failure, self._notes)
        logger.warning(
            "%s. All ranks are started again (%d of at most %d times).",
            failure.headline.removesuffix("."),
            self._history.restarts,
            self._platform.max_restarts,
        )

    def _spec(self, rounds: Rounds) -> WorkerSpec:
        return WorkerSpec(
            role="rank",
            local_world_size=self._processes,
            entrypoint=sys.executable,
            args=("-m", "trainlab.launch.rank", str(self._folder)),
            rdzv_handler=rounds,
            max_restarts=0,  # that is decided here, by what went wrong
            monitor_interval=_MONITOR_SECONDS,
        )

    def _begin(self, launch_id: str, number: int) -> None:
        """A round begins: its ranks leave their notes and logs in empty folders, and are told so in a file.

        Each rank finds the task in a file of its own, which it removes.

        Not by this process's environment, which launches in other threads share.
        """
        shutil.rmtree(self._notes, ignore_errors=True)
        logs = self._folder / "logs" / str(number)
        self._notes.mkdir()
        logs.mkdir()
        told = {
            "TRAINLAB_LAUNCH_ID": launch_id,
            "TRAINLAB_ATTEMPT": str(number),
            "TRAINLAB_LAUNCH_DIR": str(self._notes),
            "TRAINLAB_LOGS": str(logs),
        }
        for local_rank in range(self._processes):
            (self._folder / f"task-{local_rank}").write_bytes(self._task)
        (self._folder / "variables").write_text(json.dumps({**self._variables, **told}), encoding="utf-8")

    def _results(self, rounds: Rounds, group: WorkerGroup) -> list[Any]:
        mine = {int(path.stem.removeprefix("rank-")): path.read_bytes() for path in self._notes.glob("*.result")}
        found = rounds.exchange(group.group_world_size or 1, mine)
        size = group.workers[0].world_size
        missing = [rank for rank in range(size) if rank not in found]
        if missing:
            raise RankFailedError(
                f"Rank {missing[0]} of {size} ended with status 0 before its function had returned: by os._exit, say.",
                rank=missing[0],
                exitcode=0,
            )
        return [_loaded(found[rank], rank) for rank in range(size)]


def _loaded(content: bytes, rank: int) -> Any:
    try:
        return pickle.loads(content)
    except Exception as error:
        raise LaunchError(
            f"What rank {rank} returned cannot be read here: {type(error).__name__}: {error}. Return what this process "
            "can make again from a pickle."
        ) from error


class _Agent(LocalElasticAgent):
    """torch's agent, with as much time for the ranks to end as the platform says, and an end to that on Ctrl-C."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, platform: Platform) -> None:
        super().__init__(spec, logs, start_method="spawn", exit_barrier_timeout=platform.timeout or 600.0)
        self._grace = platform.grace

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        if death_sig in _UNHEARD:
            death_sig = signal.SIGTERM
        if self._pcontext is not None:
            # torch calls this where it handles a signal, and where ranks are started again: then Ctrl-C is the first.
            is_ending = isinstance(sys.exc_info()[1], SignalException)
            with _passed_on(list(self._pcontext.pids().values())) if is_ending else nullcontext():
                self._pcontext.close(death_sig, int(self._grace) or 1)
        super()._shutdown(death_sig, timeout)


@contextmanager
def _passed_on(pids: list[int]) -> Iterator[None]:
    """While the ranks come to an end after a signal, a further Ctrl-C goes to them: they end at once.

    Other signals are let pass from now on: batch systems send more than one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def again(number: int, frame: FrameType | None) -> None:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    before = signal.signal(signal.SIGINT, again)
    for number in _caught():
        if number != signal.SIGINT:
            signal.signal(number, _let_pass)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _handlers() -> Iterator[None]:
    """Signals end the ranks in good order; the handlers that were there before come back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise) for number in _caught()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _caught() -> tuple[signal.Signals, ...]:
    return _SIGNALS + (_OF_SLURM if "SLURM_JOB_ID" in os.environ else ())


def _raise(number: int, frame: FrameType | None) -> None:
    raise SignalException(f"received {signal.Signals(number).name}", signal.Signals(number))


def _let_pass(number: int, frame: FrameType | None) -> None:
    """The launch comes to its end already."""


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder that only this user can enter, for the time of a launch; those that killed agents left are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (left / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an agent that lives holds it
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / "unlocked").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "unlocked").rename(folder / "lock")  # which nobody ever finds without a holder that lives
            for inner in ("logs", "torch", "notes"):
                (folder / inner).mkdir()
            yield folder


def _identity(platform: Platform) -> tuple[str, int]:
    """The launch's name and the number of its first attempt: what was begun under a name before is gone on with."""
    if platform.run_id is not None:
        return platform.run_id, int(time.time())
    outer = launched()
    if outer is not None:  # a job of SLURM, which may have been requeued
        return outer.id, outer.attempt * _ROUNDS
    return secrets.token_hex(3), 0


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's agent would tell, this one tells in its own words."""
    named = logging.root.manager.loggerDict
    loud = [logging.getLogger(name) for name in list(named) if name.startswith("torch.distributed.elastic")]
    loud = [source for source in loud if not source.disabled]
    for source in loud:
        source.disabled = True
    try:
        yield
    finally:
        for source in loud:
            source.disabled = False
