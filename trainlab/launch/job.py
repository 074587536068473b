"""JobHandle: a job that was submitted, to wait for, to read and to cancel; from any process."""

import json
import logging
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from trainlab.errors import InvalidValueError, LaunchError, RankFailedError
from trainlab.launch.failures import FirstFailure
from trainlab.launch.slurm_queue import ENDED, EndedSource, LocalProcess, NoAnswerError, SlurmQueue, Source

__all__ = ["NOTES", "JobHandle", "JobRecord"]

logger = logging.getLogger("trainlab.launch")
T = TypeVar("T")
# In submitit's folder, with the job's id before it: a folder for each attempt, of what its ranks noted.
NOTES = "notes"
_FILE = "job.json"
_FORMAT = 1
# What a shared file system may take until it shows a file that another node has written.
_LATE_SECONDS = 20.0
# Without an answer of SLURM's.
_PATIENCE_SECONDS = 1800.0
_LINES = 20
# After these ends nobody puts a job back into the queue.
_OVER = {"COMPLETED", "FAILED", "CANCELLED"}
_WHY = {
    "CANCELLED": "was cancelled",
    "TIMEOUT": "ran into its time limit",
    "DEADLINE": "ran into its deadline",
    "PREEMPTED": "was preempted",
    "NODE_FAIL": "lost a node",
    "OUT_OF_MEMORY": "ran out of memory (raise Platform(mem=…))",
    "BOOT_FAIL": "could not be started: a node did not boot",
    "UNKNOWN": "is not known to SLURM any more, and left no result",
}


@dataclass(frozen=True)
class JobRecord:
    """What a job is found by.

    Args:
        job_id: SLURM's number ("12_3" for one of an array), or the local executor's.
        name: of the function, or the job's own.
        executor: "slurm" or "local"; "debug" is never written.
        ranks: how many there are.
        folder: the job's.
        files: the folder of submitit's files.
        host: the machine that it was submitted on.
    """

    job_id: str
    name: str
    executor: str
    ranks: int
    folder: Path
    files: Path
    host: str = ""

    @property
    def path(self) -> Path:
        """The file of it."""
        return self.folder / _FILE

    def write(self, **more: Any) -> None:
        """Write ``job.json`` into the job's folder.

        Args:
            more: what else is known.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "format": _FORMAT, **more}
        content |= {"folder": "", "files": os.path.relpath(self.files, self.folder)}
        temporary = self.folder / f".{_FILE}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(self.path)

    @classmethod
    def read(cls, folder: Path) -> "tuple[JobRecord, str | None]":
        """Read ``job.json``.

        Args:
            folder: the job's.

        Returns:
            The record, and the state that the job is known to have ended in.

        Raises:
            LaunchError: the folder is no job's.
        """
        path = folder / _FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, state = content.pop("format"), content.pop("state", None)
            if version != _FORMAT:
                raise LaunchError(f"A job of another version of trainlab. Received: format {version} in {path}.")
            content |= {"folder": folder, "files": Path(os.path.normpath(folder / content["files"]))}
            return cls(**content), state
        except FileNotFoundError:
            tasks = sorted(str(one.parent) for one in folder.glob(f"*/{_FILE}"))
            more = f" It is an array's: load one of {', '.join(tasks)}." if tasks else ""
            raise LaunchError(
                f"There is no job in this folder. Received: {str(folder)!r}, without {_FILE}.{more}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LaunchError(f"A job's record cannot be read: {path}: {type(error).__name__}: {error}.") from error


class JobHandle(Generic[T]):
    """A job that was submitted.

    Args:
        record: what it is found by.
        source: who knows its state. Default None: SLURM, or this machine's processes.
        ended: the state that it is known to have ended in. Default None.
    """

    def __init__(self, record: JobRecord, source: Source | None = None, *, ended: str | None = None) -> None:
        self._record = record
        self._source = source or _source(record)
        self._ended = ended
        self._written = ended is not None
        self._silent_since: float | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "JobHandle[Any]":
        """Find a job again, in whatever process.

        What a job returned is a pickle in its folder, which ``result`` loads: find only jobs of your own so.

        Args:
            folder: the job's.

        Returns:
            A handle.

        Raises:
            LaunchError: the folder is no job's.
        """
        record, ended = JobRecord.read(Path(folder).absolute())
        return cls(record, ended=ended)

    def __repr__(self) -> str:
        return f"JobHandle(job_id={self.job_id!r}, folder={str(self.folder)!r})"

    @property
    def job_id(self) -> str:
        """SLURM's number of the job; "12_3" for one of an array."""
        return self._record.job_id

    @property
    def name(self) -> str:
        """The job's name."""
        return self._record.name

    @property
    def folder(self) -> Path:
        """The job's folder, which is its run's too."""
        return self._record.folder

    @property
    def ranks(self) -> int:
        """How many ranks it has."""
        return self._record.ranks

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine without SLURM, and ends with the terminal."""
        return self._record.executor != "slurm"

    @property
    def state(self) -> str:
        """SLURM's word for where it stands, such as "PENDING", "RUNNING", "COMPLETED", "FAILED" or "CANCELLED".

        Where SLURM has forgotten it, and left nothing by which its end could be told: "UNKNOWN".
        """
        state = self._source.state() or self._ended or self._state_of_files()
        if state in ENDED and not self._written:
            self._ended, self._written = state, True
            if self._record.executor != "debug":
                self._record.write(state=state)
            if state in _OVER:
                self.remove_call()
        return state

    @property
    def reason(self) -> str:
        """Why it is PENDING, in SLURM's last word, such as "Priority" or "Resources"; "" if it is not."""
        return self._source.reason

    @property
    def done(self) -> bool:
        """Whether it has ended, and is not requeued."""
        return self.state in ENDED

    def wait(self, timeout: float | None = None) -> str:
        """Wait for its end, however often it is requeued.

        Args:
            timeout: in seconds. Default None: as long as it takes.

        Returns:
            The state that it ended in.

        Raises:
            LaunchError: it did not end in time.
        """
        last = ""
        for state in self.watch(timeout):
            last = state
        if last not in ENDED:
            raise LaunchError(f"{self._title} has not ended after {timeout} s: it is {self.told(last) or 'not known'}.")
        return last

    def told(self, state: str) -> str:
        """A state with why it is so.

        Args:
            state: that it was last seen in.

        Returns:
            Such as "PENDING (Priority)".
        """
        return f"{state} ({self.reason})" if state == "PENDING" and self.reason else state

    def watch(self, timeout: float | None = None) -> Iterator[str]:
        """Look at it about every second, and ask SLURM less and less often.

        Args:
            timeout: in seconds. Default None: until its end.

        Yields:
            The state last known, until the job has ended or the time is over; "" as long as SLURM gives no answer.
        """
        start = asked = time.monotonic()
        state = self._looked("")
        yield state
        while state not in ENDED and (timeout is None or time.monotonic() - start < timeout):
            time.sleep(1.0 if timeout is None else max(0.0, min(1.0, start + timeout - time.monotonic())))
            now = time.monotonic()
            if now - asked >= min(30.0, max(1.0, (now - start) / 20)) or self._has_results():
                asked = now
                state = self._looked(state)
            yield state

    def follow(self) -> list[T]:
        """Wait with a line that tells how it is, on the terminal.

        Returns:
            As ``result``.

        Raises:
            LaunchError: as ``result``.
        """
        from trainlab.launch.waiting import wait_visibly

        wait_visibly([self])
        return self.result()

    def result(self, timeout: float | None = None) -> list[T]:
        """Wait for its end, and give what it returned.

        Args:
            timeout: in seconds. Default None: as long as it takes.

        Returns:
            What the function returned, by rank.

        Raises:
            RankFailedError: a rank failed; the first cause, with its traceback.
            LaunchError: it was cancelled, killed or lost, or did not end in time.
        """
        state = self.wait(timeout)
        values = self._results(_LATE_SECONDS if state == "COMPLETED" else 0.0)
        if values is None:
            raise self._failure(state)
        return values

    def cancel(self) -> None:
        """Cancel it; nothing if it has ended.

        Raises:
            LaunchError: SLURM refuses.
        """
        if self._record.executor == "local":
            self._source.state()  # an error on another machine
            self._cancelled.touch()  # before its end, which somebody may be waiting for
        self._source.cancel()

    def remove_call(self) -> None:
        """Remove what was submitted, whose arguments may be secret; the job cannot be put back into the queue then.

        A job that has come to its end has done so itself, or else whoever looks at it when it is over.
        """
        (self._record.files / f"{self.job_id}_submitted.pkl").unlink(missing_ok=True)

    def logs(self, rank: int = 0) -> str:
        """Give what a rank has written so far, over all of its attempts.

        Args:
            rank: which; that of rank 0 has what the job's own script and SLURM said, too. Default 0.

        Returns:
            Its standard output and error; "" if there is nothing yet.

        Raises:
            InvalidValueError: there is no such rank.
        """
        path = self.log(rank)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def log(self, rank: int = 0) -> Path:
        """The file that a rank writes to.

        Args:
            rank: which. Default 0.

        Returns:
            Its path.

        Raises:
            InvalidValueError: there is no such rank.
        """
        if not 0 <= rank < self.ranks:
            raise InvalidValueError(f"A rank is between 0 and {self.ranks - 1}. Received: {rank!r}.")
        return self._record.files / f"{self.job_id}_{rank}_log.out"

    @property
    def _title(self) -> str:
        return f"Job {self.job_id} ({self.name})"

    @property
    def _cancelled(self) -> Path:
        return self._record.files / f"{self.job_id}_cancelled"

    def _result_files(self) -> list[Path]:
        return [self._record.files / f"{self.job_id}_{rank}_result.pkl" for rank in range(self.ranks)]

    def _has_results(self) -> bool:
        return all(path.exists() for path in self._result_files())

    def _looked(self, state: str) -> str:
        """The state now, or the one before for as long as SLURM gives no answer."""
        try:
            found = self.state
        except NoAnswerError as error:
            if self._silent_since is None:
                self._silent_since = time.monotonic()
                logger.warning("%s It is asked again.", error)
            if time.monotonic() - self._silent_since > _PATIENCE_SECONDS:
                raise
            return state
        self._silent_since = None
        return found

    def _state_of_files(self) -> str:
        if self._results(0.0) is not None:
            return "COMPLETED"
        if self._cancelled.exists():
            return "CANCELLED"
        failed = any(path.exists() for path in self._result_files()) or _is_noted(self._notes(), "error", "failure")
        return "FAILED" if failed or self.is_local else "UNKNOWN"

    def _results(self, patience: float) -> list[T] | None:
        """What the ranks returned; None if not all of them did."""
        end = time.monotonic() + patience
        while not self._has_results() and time.monotonic() < end:
            time.sleep(0.5)
        found = []
        for path in self._result_files():
            try:
                outcome, value = pickle.loads(path.read_bytes())
            except FileNotFoundError:
                return None
            if outcome != "success":
                return None
            found.append(pickle.loads(value))
        return found

    def _notes(self) -> Path:
        """The folder of what the ranks of the last attempt noted."""
        folder = self._record.files / f"{self.job_id}_{NOTES}"
        attempts = sorted((path for path in folder.glob("[0-9]*")), key=lambda path: int(path.name))
        return attempts[-1] if attempts else folder

    def _failure(self, state: str) -> LaunchError:
        notes = self._notes()
        if state != "CANCELLED" and (found := next(notes.glob("rank-*.not_requeued.json"), None)) is not None:
            why = f"was told to end, and is not requeued: {_read(found)['told']}"
            saved = next((_read(path)["path"] for path in notes.glob("rank-*.checkpoint.json")), None)
            last = f"Its newest checkpoint: {saved}" if saved else self._last_lines(0)
            return RankFailedError(f"{self._title} {why}.\n{last}".rstrip())
        is_told = _is_noted(notes, "error") or (state not in _WHY and _is_noted(notes, "failure", "exit"))
        if state == "CANCELLED" or not is_told:
            why = _WHY.get(state, f"ended as {state} without a result")
            return LaunchError(f"{self._title} {why}.\n{self._last_lines(0)}".rstrip())
        exits = {_rank_of(path): _read(path)["code"] for path in notes.glob("*.exit.json")}
        first = FirstFailure.of(notes, exits, self.ranks)
        rank = first.rank if 0 <= first.rank < self.ranks else None
        log = f"The whole log: {self.log(rank or 0)}" if self.log(rank or 0).exists() else ""
        told = f"\n\n{first.traceback.rstrip()}\n\n{log}" if first.traceback else f"\n{self._last_lines(rank or 0)}"
        return RankFailedError(
            f"{self._title} ended as {state}. {first.headline.rstrip('.')}.{told}".rstrip(),
            rank=rank,
            exitcode=first.exitcode,
            traceback=first.traceback,
        )

    def _last_lines(self, rank: int) -> str:
        lines = self.logs(rank).rstrip().splitlines()[-_LINES:]
        if not lines:
            return f"{self.log(rank)} is empty." if self.log(rank).exists() else ""
        return "\n".join([f"The last lines of {self.log(rank)}:", *lines])


def _source(record: JobRecord) -> Source:
    if record.executor == "slurm":
        return SlurmQueue(record.job_id)
    if record.executor == "local":
        return LocalProcess(int(record.job_id), record.host, record.files)
    return EndedSource()


def _is_noted(notes: Path, *names: str) -> bool:
    return any(True for name in names for _ in notes.glob(f"rank-*.{name}.json"))


def _rank_of(path: Path) -> int:
    return int(path.name.removeprefix("rank-").partition(".")[0])


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
