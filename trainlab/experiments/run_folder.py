"""The folder of one run: where it is, who holds it, and what is written about the run as a whole."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from trainlab.errors import InvalidStateError, InvalidValueError, RunFolderError
from trainlab.experiments.yaml_text import mask_command, to_yaml

__all__ = ["RunFolder"]

_LOCK = "lock"
_RECORD = "run.json"
_STATUSES = ("running", "finished", "failed", "interrupted")
_GIT_TIMEOUT_SECONDS = 5

# Which process holds which folder. A record lock does not keep the process that holds it from taking it again.
_held: dict[Path, int] = {}


class RunFolder:
    """A run's folder, locked by this process until ``close``. Made by ``RunFolder.open``.

    Attributes:
        path: The folder, absolute.
        name: The run's name.
        continues: Whether the folder held this run already when it was opened.
        checkpoints: The folder of the checkpoints.
        tensorboard: The folder of TensorBoard's event files.
        metrics_file: ``metrics.jsonl``.
        log_file: ``log.txt``.
        params_file: ``params.yaml``.
        record_file: ``run.json``.
    """

    def __init__(self, path: Path, name: str, lock: int) -> None:
        self.path = path
        self.name = name
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.metrics_file = path / "metrics.jsonl"
        self.log_file = path / "log.txt"
        self.params_file = path / "params.yaml"
        self.record_file = path / _RECORD
        self.continues = self.record_file.exists()
        self._lock: int | None = lock
        self._log_handlers: list[tuple[logging.Logger, logging.Handler]] = []
        self._record: dict[str, Any] = {}

    @classmethod
    def open(
        cls, *, name: str, run_dir: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] = "runs"
    ) -> "RunFolder":
        """Take a run's folder, which is made if need be, lock it, and note the start in ``run.json``.

        Args:
            name: The run's name.
            run_dir: Exactly this folder; if it holds a run, this goes on with it. Default: a new folder
                ``<root>/<name>/<date>_<time>_<six letters or digits>``.
            root: Where new folders are made; default ``runs`` in the current folder.

        Returns:
            The folder, locked.

        Raises:
            InvalidValueError: ``name`` cannot name a folder.
            RunFolderError: The folder holds something else than a run, a live process holds it,
                or it cannot be made or written.
        """
        path = _new_folder(Path(root), name) if run_dir is None else _given_folder(Path(run_dir))
        lock = _take_lock(path)
        try:
            folder = cls(path, name, lock)
            folder._note_start()
        except BaseException:
            _drop_lock(path, lock)
            raise
        return folder

    def close(self) -> None:
        """Close the log, and let go of the folder. A second call does nothing."""
        if self._lock is None:
            return
        for logger, handler in self._log_handlers:
            logger.removeHandler(handler)
            handler.close()
        self._log_handlers.clear()
        _drop_lock(self.path, self._lock)
        self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Write ``params.yaml`` anew.

        Args:
            params: Nested mappings, lists and scalars; other objects are written as their ``str``, and values
                whose keys look like those of secrets (``password``, ``api_key``, ``token``) as ``***``.

        Raises:
            InvalidStateError: The folder is closed.
            RunFolderError: The file cannot be written.
        """
        self._require_open("write_params")
        _replace_text(self.params_file, to_yaml(params))

    def write_record(self, **fields: Any) -> None:
        """Put fields into ``run.json``; those it holds already and that are not named stay.

        Args:
            **fields: What a JSON file can hold; other objects are written as their ``str``. A mapping is
                merged into the mapping of that name. ``status`` is one of running, finished, failed, interrupted,
                and may come with ``error``, a text.

        Raises:
            InvalidStateError: The folder is closed.
            InvalidValueError: An unknown ``status``.
            RunFolderError: The file cannot be written.
        """
        self._require_open("write_record")
        status = fields.get("status")
        if status is not None:
            if status not in _STATUSES:
                raise InvalidValueError(f"A run's status is one of {', '.join(_STATUSES)}. Received: {status!r}.")
            self._record["starts"][-1].update({"status": status} if status == "running" else _ended(status))
        for field, value in fields.items():
            before = self._record.get(field)
            if isinstance(before, dict) and isinstance(value, Mapping):
                value = {**before, **value}
            self._record[field] = value
        _replace_text(self.record_file, json.dumps(self._record, indent=2, default=str) + "\n")

    def attach_log(self, logger_name: str = "trainlab") -> None:
        """Write what is logged, from INFO on, to ``log.txt`` too, until ``close``.

        Args:
            logger_name: The logger; default "trainlab". If it has no level of its own, it gets INFO.

        Raises:
            InvalidStateError: The folder is closed.
            RunFolderError: The file cannot be written.
        """
        self._require_open("attach_log")
        logger = logging.getLogger(logger_name)
        if any(attached is logger for attached, _ in self._log_handlers):
            return
        try:
            handler = logging.FileHandler(self.log_file, encoding="utf-8")
        except OSError as error:
            raise _unusable(self.log_file, "opened", error) from error
        handler.setLevel(logging.INFO)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        self._log_handlers.append((logger, handler))

    def _require_open(self, call: str) -> None:
        if self._lock is None:
            raise InvalidStateError(
                f"This run's folder is closed. Received: {call}() on {self.path}. Open it again with RunFolder.open()."
            )

    def _note_start(self) -> None:
        if self.continues:
            self._record = _read_record(self.record_file)
        starts = self._record.setdefault("starts", [])
        if starts and starts[-1].get("status") == "running":
            # Nobody holds the folder, so that start ended without a word.
            starts[-1]["status"] = "interrupted"
        start = _describe_start()
        starts.append({key: start[key] for key in ("started", "command", "pid", "host", "git")})
        self.write_record(name=self.name, **start, status="running", error=None)


def _new_folder(root: Path, name: str) -> Path:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidValueError(
            f"A run's name names a folder: it is not empty and has no '/'. Received: {name!r}. "
            "Pass another name, or the whole path as run_dir."
        )
    while True:
        leaf = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"
        path = _absolute(root / name / leaf)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError as error:
            if not path.is_dir():
                raise _unusable(path, "made", error) from error
        except OSError as error:
            raise _unusable(path, "made", error) from error
        else:
            return path


def _given_folder(run_dir: Path) -> Path:
    path = _absolute(run_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise _unusable(path, "made", error) from error
    # A start that was killed before it wrote its record leaves these.
    foreign = {name for name in names - {_LOCK} if not _is_leftover(name)}
    if foreign and _RECORD not in names:
        shown = ", ".join(sorted(foreign)[:5])
        raise RunFolderError(
            f"This folder is not empty and holds no run: it has no {_RECORD}. Received: {path}, with {shown}. "
            "Pass a new or an empty folder as run_dir, or that of the run to go on with."
        )
    return path


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _unusable(path: Path, done: str, error: OSError) -> RunFolderError:
    reason = error.strerror or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "a file is in its place"
    return RunFolderError(f"{path} cannot be {done}: {reason}. Choose another run_dir, or make this place writable.")


def _take_lock(path: Path) -> int:
    resolved = path.resolve()
    if _held.get(resolved) == os.getpid():
        raise RunFolderError(
            f"This process holds the run's folder already. Received: {path}. "
            "Close the run that holds it first, or pass another run_dir."
        )
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unusable(path / _LOCK, "opened", error) from error
    # lockf and not flock: a record lock is not inherited by forked children, so it dies with this process.
    # Closing any descriptor of the file in this process would drop it; so nothing else here ever opens the file.
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, json.dumps(_holder()).encode())
    except OSError as error:
        holder = _describe_holder(lock)
        os.close(lock)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise _unusable(path / _LOCK, "locked", error) from error
        raise RunFolderError(
            f"The run's folder is held by {holder}. Received: {path}. "
            "Wait until it ends or stop it, or pass another run_dir."
        ) from None
    _held[resolved] = os.getpid()
    return lock


def _drop_lock(path: Path, lock: int) -> None:
    _held.pop(path.resolve(), None)
    os.close(lock)


def _holder() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}


def _describe_holder(lock: int) -> str:
    try:
        holder = json.loads(os.pread(lock, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        # It took the lock this instant and has not written yet who it is.
        return "another process"


def _is_leftover(name: str) -> bool:
    return name.startswith(f".{_RECORD}.") and name.endswith(".tmp")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unusable(path, "written", error) from error


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        starts = record.get("starts", []) if isinstance(record, dict) else None
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise ValueError("it does not hold what a run's record holds")
    except OSError as error:
        raise _unusable(path, "read", error) from error
    except ValueError as error:
        raise RunFolderError(
            f"The run's record cannot be read: {error}. Received: {path}. "
            "Repair the file; or, if the run is to go on without its history, put {} into it."
        ) from error
    return record


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _ended(status: str) -> dict[str, str]:
    return {"status": status, "ended": _now()}


def _describe_start() -> dict[str, Any]:
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    has_script = script is not None and script.is_file()
    return {
        "started": _now(),
        "command": mask_command(sys.argv),
        "executable": sys.executable,
        "script": os.path.relpath(script) if script is not None and has_script else None,
        "git": _git_state(script.resolve().parent if script is not None and has_script else Path.cwd()),
        "versions": {"python": platform.python_version(), "platform": platform.platform()},
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that the program's folder is at and whether tracked files differ from it; None outside of git."""
    commit = _git_output(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git_output(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git_output(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=True,
            # Else `git status` may take the index's lock, and get in the way of its owner.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
