"""SweepFolder: where a sweep's runs are, and which of them is which when it is run again."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidValueError, RunFolderError
from trainlab.runs.current import current_run
from trainlab.runs.folder_lock import FolderLock, now, take_lock, unusable
from trainlab.runs.run_record import read_record, replace_text
from trainlab.sweeps.reading import Member, at, keyed, module_of

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment

__all__ = ["Entry", "SweepFolder", "check_unchanged"]

_FILE = "sweep.json"
_FORMAT = 1
_NAME = re.compile(r"[\w+=-][\w.+=-]{0,99}")
_URL = re.compile(r"[A-Za-z][\w.+-]*://")


@dataclass(frozen=True)
class Entry:
    """A run of the sweep with its folder.

    Args:
        member: the entry of the list.
        label: its number and what differs: its folder's name.
        folder: the run's.
    """

    member: Member
    label: str
    folder: Path

    @property
    def key(self) -> str:
        """What the run is told apart by."""
        return self.member.key


@dataclass
class SweepFolder:
    """A sweep's folder, locked by this process until its ``with`` block ends. Made by ``SweepFolder.open``.

    Attributes:
        name: the sweep's.
        path: the folder, absolute.
        entries: the runs, in the order of the list.
        jobs: by the run's key, the folder of the job that was submitted for it, as text.
    """

    name: str
    path: Path
    entries: tuple[Entry, ...]
    jobs: dict[str, str] = field(default_factory=dict)
    _record: dict[str, Any] = field(default_factory=dict)
    _lock: FolderLock | None = None

    @classmethod
    def open(
        cls, experiment: "Experiment", members: Sequence[Member], *, name: str | None, output_dir: str | Path | None
    ) -> "SweepFolder":
        """Find the folder of a sweep, or make it, and note its list there.

        Args:
            experiment: what runs.
            members: the list.
            name: the sweep's. Default None: made of the experiment and the list, so that the same finds the same.
            output_dir: what the folders of experiments are in. Default None: the parameter of this name; in a run of
                an experiment ``runs`` in its folder.

        Returns:
            It, locked.

        Raises:
            InvalidValueError: the name or the place cannot be used.
            RunFolderError: another process holds it, it is another experiment's, or it cannot be read or written.
        """
        identity = {"path": experiment.path, "module": module_of(experiment)}
        name = _checked(name) if name is not None else _name_of(identity, members)
        path = _root(members, output_dir).joinpath(*experiment.path.split("/"), f"sweep_{name}").absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(path, "made", error) from error
        lock = take_lock(path, path, "sweep's folder", "name")
        try:
            record = _read(path, identity)
            record.setdefault("salt", secrets.token_hex(16))
            entries = _entries(path, keyed(members, record["salt"]), record)
            jobs = {one["key"]: one["job"] for one in record.get("runs", []) if one.get("job")}
            record.setdefault("started", now())
            folder = cls(name, path, entries, jobs, {**record, "name": name, "experiment": identity}, lock)
            folder.write()
        except BaseException:
            lock.release()
            raise
        return folder

    def write(self) -> None:
        """Write ``sweep.json``; runs that are in it and no more in the list stay.

        Raises:
            RunFolderError: it cannot be written.
        """
        runs = {one["key"]: one for one in self._record.get("runs", [])}
        for entry in self.entries:
            runs[entry.key] = {"key": entry.key, "folder": entry.label, "params": entry.member.given}
        for key, job in self.jobs.items():
            runs[key]["job"] = job
        record = {"format": _FORMAT, **self._record, "runs": list(runs.values())}
        replace_text(self.path / _FILE, json.dumps(record, indent=1, default=str) + "\n")

    def close(self) -> None:
        """Let go of the folder. A second call does nothing."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "SweepFolder":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def check_unchanged(experiment: "Experiment", entry: Entry, recorded: Mapping[str, Any]) -> None:
    """Refuse an earlier call's run for the one that is asked for, where a value that is not in the list has changed.

    Args:
        experiment: what runs.
        entry: the run.
        recorded: the parameters that it was made with, as its record has them.

    Raises:
        RunFolderError: defaults, environment variables or files give other values now.
    """
    plain, changed = entry.member.values.plain(), []
    for parameter in experiment.parameters:
        name = parameter.name
        is_drawn = parameter.default_factory is not None and entry.member.values.origins.get(name) == "default"
        if parameter.is_default or is_drawn or name in entry.member.given:
            continue
        before, after = at(recorded, name, _ABSENT), at(plain, name, _ABSENT)
        if _ABSENT not in (before, after) and _text(before) != _text(after):
            changed.append(f"{name} was {before!r} and is {after!r}")
    if changed:
        raise RunFolderError(
            f"The run {entry.label} of this sweep was made with other values than it would be made with now: "
            f"{', '.join(changed)}. Received: {entry.folder}. Give the sweep another name, or remove that folder."
        )


_ABSENT = "\0absent"


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidValueError(
            f"A sweep's name has letters, digits and . _ + = -, and at most 100 of them. Received: {name!r}."
        )
    return name


def _name_of(identity: Mapping[str, str], members: Sequence[Member]) -> str:
    text = json.dumps([identity, [member.key for member in members]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _root(members: Sequence[Member], output_dir: str | Path | None) -> Path:
    outer = current_run()
    if output_dir is None and outer is not None:
        return outer.output_dir / "runs"
    given = {str(output_dir)} if output_dir is not None else {str(one.values.params["output_dir"]) for one in members}
    if len(given) > 1:
        raise InvalidValueError(
            f"The runs of a sweep are in one folder. Received: output_dir {', '.join(sorted(given))} in its list. Pass "
            "output_dir to run_parameter_sweep instead."
        )
    (root,) = given
    if _URL.match(root):
        raise InvalidValueError(f"A sweep's folder is one of this machine. Received: output_dir={root!r}.")
    return Path(root).expanduser()


def _read(path: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    file = path / _FILE
    if not file.exists():
        return {}
    record = read_record(file, file)
    if record.get("format") != _FORMAT:
        raise RunFolderError(
            f"The sweep is one of another version of trainlab. Received: format {record.get('format')!r} in {file}. "
            "Pass another name."
        )
    if record["experiment"] != identity:
        before, now_ = (f"{one['path']} of {one['module']}" for one in (record["experiment"], identity))
        raise RunFolderError(
            f"The sweep of this name is one of another experiment. Received: {now_}, where {path} is one of {before}. "
            "Pass another name, or another output_dir."
        )
    return record


def _entries(path: Path, members: Sequence[Member], record: Mapping[str, Any]) -> tuple[Entry, ...]:
    folders = {one["key"]: one["folder"] for one in record.get("runs", [])}
    digits = max(3, len(str(len(members) - 1)))
    found, number = [], len(folders)
    for member in members:
        label = folders.get(member.key)
        if label is None:
            label = "_".join(filter(None, [f"{number:0{digits}d}", member.label]))
            number += 1
        found.append(Entry(member, label, path / label))
    return tuple(found)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
