"""The folder of one run: where it is, who holds it, and what is written about the run as a whole."""

import contextlib
import copy
import itertools
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from trainlab.errors import InvalidStateError, InvalidValueError, RunFolderError, StorageError
from trainlab.runs.ending import STATUSES
from trainlab.runs.folder_lock import FolderLock, take_lock, unusable
from trainlab.runs.launch_folder import begun_before, folder_to_continue, new_folder
from trainlab.runs.masking import Masking
from trainlab.runs.names import LOCK, LOG, PARAMS, RECORD, SERIES
from trainlab.runs.plain_numbers import standard_json
from trainlab.runs.remote_folder import RemoteFolder, given_place, warn_of_another_writer
from trainlab.runs.run_log import RunLog
from trainlab.runs.run_record import describe_start, ended, read_record, replace_text
from trainlab.runs.yaml_text import to_yaml

__all__ = ["RunFolder"]

logger = logging.getLogger("trainlab.runs")

# Of what an error says; some hold a whole array, or the output of a program.
_LONGEST_ERROR = 10_000
_MISSING = object()


class RunFolder:
    """A run's folder, locked by this process until ``close``. Made by ``RunFolder.open``.

    A run on a store works in a folder of this machine, which ``push`` and ``close`` copy to the store.

    Attributes:
        path: The folder, absolute; of a run on a store the one that it works in.
        url: The run's URL, None for a run on this machine.
        place: The URL if there is one, else the path: what ``run_dir`` is to be to go on with the run.
        name: The run's name.
        continues: Whether the folder held this run already when it was opened.
        resumes: Whether it is the run of an earlier attempt of this launch, which goes on by itself.
        checkpoints: The folder of the checkpoints of a run on this machine.
        checkpoints_place: The folder or the URL of the checkpoints.
        tensorboard: The folder of TensorBoard's event files.
        metrics_file: ``metrics.jsonl``.
        log_file: ``log.txt``.
        params_file: ``params.yaml``.
        record_file: ``run.json``.
        masking: What keeps known secrets out of ``params.yaml``, ``run.json`` and ``log.txt``.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        lock: FolderLock,
        remote: RemoteFolder | None = None,
        masking: Masking | None = None,
    ) -> None:
        self.path = path
        self.url = None if remote is None else remote.url
        self.place: Path | str = path if self.url is None else self.url
        self.name = name
        self.checkpoints = path / "checkpoints"
        self.checkpoints_place: Path | str = self.checkpoints if remote is None else remote.location("checkpoints")
        self.tensorboard = path / "tensorboard"
        self.metrics_file = path / SERIES
        self.log_file = path / LOG
        self.params_file = path / PARAMS
        self.record_file = path / RECORD
        self.continues = self.record_file.exists()
        self.resumes = False
        self.masking = Masking() if masking is None else masking
        self._lock = lock
        self._remote = remote
        self._log: RunLog | None = None
        # A failure elsewhere is noted by a thread of its own.
        self._writing = threading.Lock()
        shown = self._shown(self.record_file)
        self._record: dict[str, Any] = read_record(self.record_file, shown) if self.continues else {}
        self._record_before = MappingProxyType(copy.deepcopy(self._record))

    @classmethod
    def open(
        cls,
        *,
        name: str,
        run_dir: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] = "runs",
        storage_options: Mapping[str, Any] | None = None,
        launch_id: str | None = None,
        attempt: int = 0,
        is_launchers: bool = False,
        masking: Masking | None = None,
    ) -> "RunFolder":
        """Take a run's folder, which is made if need be, lock it, and note the start in ``run.json``.

        Args:
            name: The run's name; with ``/``, as "group/train", for nested folders.
            run_dir: Exactly this folder, or any URL that fsspec knows (``s3://bucket/runs/a``); if it holds a run,
                this goes on with it. Default: a new folder ``<root>/<name>/<date>_<time>_<six letters or digits>``.
            root: Where new folders are made; default ``runs`` in the current folder.
            storage_options: For a URL, what its file system asks for: keys, endpoints. Default none.
            launch_id: What started this process, which is noted; a new folder's name ends in it. Default: nothing did.
            attempt: How often it was started before. Then, without ``run_dir``, this goes on with the first run of
                that name that the launch began by the same command and has not gone on with yet. Default 0.
            is_launchers: Whether ``run_dir`` is of the launcher's choice, which keeps files of its own there, and not
                the user's. Default False.
            masking: What keeps known secrets out of what is written. Default: none are known.

        Returns:
            The folder, locked; at a URL only against other processes of this machine.

        Raises:
            InvalidValueError: ``name`` cannot name a folder, the URL is none that can be used, or there are
                ``storage_options`` for a local folder.
            MissingDependencyError: The URL asks for a package that is not installed.
            RunFolderError: The folder holds something else than a run, a live process holds it,
                or it cannot be made, read or written.
        """
        given = given_place(run_dir, storage_options)
        remote = given if isinstance(given, RemoteFolder) else None
        if given is None:
            above = _absolute(Path(root)) / _checked_name(name)
            before = folder_to_continue(above, launch_id, attempt) if launch_id is not None and attempt > 0 else None
            path, lock = before or new_folder(above, launch_id)
        else:
            path = given.path if isinstance(given, RemoteFolder) else _given_folder(given, is_launchers=is_launchers)
            lock = take_lock(path, path if remote is None else remote.url)
        try:
            if remote is not None:
                remote.fetch()
            folder = cls(path, name, lock, remote, masking)
            if launch_id is not None:
                folder.resumes = begun_before(folder.record, launch_id, attempt)
            folder._note_start(launch_id, attempt)
            folder._push_start()
        except BaseException:
            lock.release()
            raise
        return folder

    @property
    def record(self) -> Mapping[str, Any]:
        """What ``run.json`` held when the folder was opened, for reading only; empty for a new run."""
        return self._record_before

    @property
    def told(self) -> dict[str, Any]:
        """What the other ranks have to know to join this run."""
        return {
            "path": str(self.path),
            "name": self.name,
            "url": self.url,
            "place": self.place,
            "checkpoints_place": self.checkpoints_place,
            "continues": self.continues,
            "resumes": self.resumes,
        }

    def push(self, files: Iterable[Path] | None = None) -> None:
        """Copy what changed since the last push to the store; a run on this machine has nothing to copy.

        A file that grows meanwhile is copied as long as it was; of one that is gone the copy is removed.
        Several threads may push.

        Args:
            files: Which files, in the run's folder. Default: all but the checkpoints.

        Raises:
            InvalidStateError: The folder is closed.
            OSError: A file cannot be read, or the store does not take it. The next push tries again.
        """
        if self._remote is None:
            return
        self._require_open("push")
        self._remote.push(files)

    def close(self) -> None:
        """Close the log, push, and let go of the folder. A second call does nothing.

        Raises:
            StorageError: The store did not take all files. The folder is let go all the same.
            RunFolderError: The last lines of the log could not be written. The folder is let go all the same.
        """
        try:
            with contextlib.ExitStack() as closing:
                if self._lock.is_held:
                    closing.callback(self.push)
                if self._log is not None:
                    closing.callback(self._log.close)
        except OSError as error:
            if self.url is None:
                raise unusable(self.log_file, "written", error) from error
            raise StorageError(
                f"The last files of the run could not be copied to {self.url}: {error}. They are still in {self.path}: "
                "copy them there yourself before the run is opened again, for that takes the store's files."
            ) from error
        finally:
            self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.place)!r})"

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Write ``params.yaml``; but a continued run keeps the one it has.

        If a continued run is given other parameters than the file holds, a warning names their keys.

        Args:
            params: Nested mappings, lists and scalars; other objects are written as their ``str``, and values
                whose keys look like those of secrets (``password``, ``api_key``, ``token``) as ``***``.

        Raises:
            InvalidStateError: The folder is closed.
            RunFolderError: The file cannot be written, or that of a continued run cannot be read.
        """
        self._require_open("write_params")
        text = to_yaml(self.masking.data(params))
        if not self.continues or not self.params_file.exists():
            replace_text(self.params_file, text)
            return
        try:
            before = self.params_file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise unusable(self.params_file, "read", error) from error
        kept = _parsed(before, self._shown(self.params_file))
        differing = [] if kept is None else list(_differing(kept, _parsed(text, "what was given"), ""))
        if differing:
            logger.warning(
                "This run goes on with other parameters than those in %s, which stays as it is. They differ in: %s.",
                self._shown(self.params_file),
                ", ".join(differing),
            )

    def write_record(self, **fields: Any) -> None:
        """Put fields into ``run.json``; those it holds already and that are not named stay.

        Args:
            **fields: What a JSON file can hold; other objects are written as their ``str``. A mapping is
                merged into the mapping of that name. ``status`` is one of running, finished, failed, interrupted,
                preempted, and may come with ``error``, a text, of which 10,000 characters are kept.

        Raises:
            InvalidStateError: The folder is closed.
            InvalidValueError: An unknown ``status``.
            RunFolderError: The file cannot be written.
        """
        self._require_open("write_record")
        status = fields.get("status")
        if status is not None and status not in STATUSES:
            raise InvalidValueError(f"A run's status is one of {', '.join(STATUSES)}. Received: {status!r}.")
        with self._writing:
            if status is not None:
                self._record["starts"][-1].update({"status": status} if status == "running" else ended(status))
            if fields.get("git") is not None:  # of the code that runs, which need not be the script's
                self._record["starts"][-1]["git"] = {key: fields["git"].get(key) for key in ("commit", "dirty")}
            for field, value in fields.items():
                before = self._record.get(field)
                if isinstance(before, dict) and isinstance(value, Mapping):
                    value = {**before, **value}
                value = self.masking.data(value)
                self._record[field] = _shortened(value) if field == "error" and isinstance(value, str) else value
            replace_text(self.record_file, _json(self._record))

    def note_failure(self, told: str) -> None:
        """Write down at once that the run has failed: this process may not come to its end in order.

        Args:
            told: What went wrong.

        Raises:
            InvalidStateError: The folder is closed.
            RunFolderError: The file cannot be written.
        """
        self.write_record(status="failed", error=told)

    def attach_log(self, logger_name: str = "trainlab") -> None:
        """Write what is logged, from INFO on, to ``log.txt`` too, until ``close``.

        Of several open runs of this process, the one that attached last gets what is logged; when it closes,
        the one before it does again.

        Args:
            logger_name: The logger; default "trainlab". If it has no level of its own, it has INFO meanwhile.

        Raises:
            InvalidStateError: The folder is closed.
            RunFolderError: The file cannot be written.
        """
        self._require_open("attach_log")
        self._run_log().attach(logging.getLogger(logger_name))

    def attach_users_log(self) -> None:
        """Write what the program's own loggers have to say, from INFO on, to ``log.txt`` too, until ``close``.

        Raises:
            InvalidStateError: The folder is closed.
            RunFolderError: The file cannot be written.
        """
        self._require_open("attach_users_log")
        self._run_log().attach_users()

    def _run_log(self) -> RunLog:
        self._log = self._log or RunLog(self.log_file, self.masking)
        return self._log

    def _require_open(self, call: str) -> None:
        if not self._lock.is_held:
            raise InvalidStateError(
                f"This run's folder is closed, or held by the process that this one was forked from. "
                f"Received: {call}() on {self.place}. Open it again with RunFolder.open()."
            )

    def _shown(self, file: Path) -> Path | str:
        return file if self._remote is None else self._remote.location(file.name)

    def _push_start(self) -> None:
        if self._remote is None:
            return
        warn_of_another_writer(self._record_before, self._remote.url)
        try:
            self._remote.push()
        except OSError as error:
            raise RunFolderError(
                f"The run's folder cannot be written: {error}. Received: {self.url}. "
                "See that the URL is right, and that storage_options give the right to write there."
            ) from error

    def _note_start(self, launch_id: str | None, attempt: int) -> None:
        starts = self._record.setdefault("starts", [])
        if starts and starts[-1].get("status") == "running":
            # Nobody holds the folder, so that start ended without a word.
            starts[-1]["status"] = "crashed"
        start = describe_start()
        launch = {} if launch_id is None else {"launch_id": launch_id, "attempt": attempt}
        noted = {key: start[key] for key in ("started", "command", "pid", "host")} | launch
        starts.append(self.masking.data(noted))
        self.write_record(name=self.name, **start, status="running", error=None)


def _shortened(text: str) -> str:
    left_out = len(text) - _LONGEST_ERROR
    return text if left_out <= 0 else f"{text[:_LONGEST_ERROR]}… and {left_out} characters more"


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(standard_json(record), indent=2, default=str, allow_nan=False) + "\n"


def _checked_name(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise InvalidValueError(
            f"A run's name names a folder, or nested ones as in 'group/train'. Received: {name!r}. "
            "Pass another name, or the whole path as run_dir."
        )
    return name


def _given_folder(run_dir: Path, *, is_launchers: bool) -> Path:
    path = _absolute(run_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise unusable(path, "made", error) from error
    # A start that was killed before it wrote its record leaves these.
    foreign = {name for name in names - {LOCK} if not _is_leftover(name)}
    if foreign and RECORD not in names and not is_launchers:
        shown = ", ".join(sorted(foreign)[:5])
        raise RunFolderError(
            f"This folder is not empty and holds no run: it has no {RECORD}. Received: {path}, with {shown}. "
            "Pass a new or an empty folder as run_dir, or that of the run to go on with."
        )
    return path


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _is_leftover(name: str) -> bool:
    return name.startswith(f".{RECORD}.") and name.endswith(".tmp")


def _parsed(text: str, shown: Path | str) -> Any:
    """What a YAML file holds; None, with a warning, if that cannot be told."""
    import yaml  # not needed to begin a run

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        logger.warning("The parameters that this run goes on with cannot be compared with %s: %s", shown, error)
        return None


def _differing(kept: Any, given: Any, name: str) -> Iterator[str]:
    """The names of the values that are not the same in two files: ``lr``, ``layers[1].width``."""
    if isinstance(kept, Mapping) and isinstance(given, Mapping):
        for key in {**kept, **given}:
            yield from _differing(kept.get(key, _MISSING), given.get(key, _MISSING), f"{name}.{key}")
    elif isinstance(kept, list) and isinstance(given, list):
        for number, (one, other) in enumerate(itertools.zip_longest(kept, given, fillvalue=_MISSING)):
            yield from _differing(one, other, f"{name}[{number}]")
    elif kept != given and not (kept != kept and given != given):  # noqa: PLR0124  # NaN is the same as NaN here
        yield name.removeprefix(".")
