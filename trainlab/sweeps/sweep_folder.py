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
from trainlab.experiments.opening import root_of
from trainlab.runs.current import current_run
from trainlab.runs.folder_lock import FolderLock, now, take_lock, unusable
from trainlab.runs.listing import RunInfo, read_run, value_at
from trainlab.runs.masking import MASK
from trainlab.runs.plain_numbers import standard_json
from trainlab.runs.run_record import replace_text
from trainlab.sweeps.reading import Member, keyed, module_of, own_values

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment

__all__ = ["Entry", "SweepFolder", "check_unchanged", "folder_of"]

_FILE = "sweep.json"
_FORMAT = 1
_NAME = re.compile(r"[\w+=-][\w.+=-]{0,99}")
_NUMBER = re.compile(r"(\d+)(?:_.*)?")
_ABSENT = object()


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
        jobs: by the run's key, the folder of the job that was submitted for it, as text; until its end was told.
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
        path = folder_of(experiment, "sweep", name, _output_dir(members, output_dir))
        lock = take_lock(path, path, "sweep's folder", "name")
        try:
            record = _read(path, identity)
            record.setdefault("salt", secrets.token_hex(16))
            members = keyed(members, record["salt"])
            runs = record.get("runs")
            known = (
                _known_again(path, experiment, members) if runs is None else {one["key"]: one["folder"] for one in runs}
            )
            entries = _entries(path, members, known)
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
            if entry.key in self.jobs:
                runs[entry.key]["job"] = self.jobs[entry.key]
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


def folder_of(experiment: "Experiment", kind: str, name: str, output_dir: object) -> Path:
    """Find the folder of a sweep or a search, or make it.

    Args:
        experiment: what runs.
        kind: "sweep" or "search".
        name: its own.
        output_dir: the folder that those of experiments are in.

    Returns:
        It, absolute.

    Raises:
        InvalidValueError: it is a URL.
        RunFolderError: it cannot be made.
    """
    root = root_of(output_dir)
    if "://" in root:
        raise InvalidValueError(f"A {kind}'s folder is one of this machine. Received: output_dir={root!r}.")
    path = Path(root).expanduser().joinpath(*experiment.path.split("/"), f"{kind}_{name}").absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(path, "made", error, "output_dir") from error
    return path


def check_unchanged(experiment: "Experiment", entry: Entry, recorded: Mapping[str, Any]) -> None:
    """Refuse an earlier call's run for the one that is asked for, where a value has changed.

    Args:
        experiment: what runs.
        entry: the run.
        recorded: the parameters that it was made with, as its record has them.

    Raises:
        RunFolderError: the list, defaults, environment variables or files give other values now.
    """
    if changed := _changed(experiment, entry.member, recorded):
        raise RunFolderError(
            f"The run {entry.label} of this sweep was made with other values than it would be made with now: "
            f"{', '.join(changed)}. Received: {entry.folder}. Give the sweep another name, or remove that folder."
        )


def _changed(experiment: "Experiment", member: Member, recorded: Mapping[str, Any]) -> list[str]:
    """What differs from the values of a run that was made; secrets, which are masked there, are taken for the same."""
    found = []
    given = {name: _text(standard_json(value)) for name, value in member.given.items()}
    for name, value in {**own_values(experiment, member.values), **given}.items():
        before = value_at(recorded, name, _ABSENT)
        if before is not _ABSENT and MASK not in _text(before) and _text(before) != value:
            found.append(f"{name} was {before!r} and is {json.loads(value)!r}")
    return found


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidValueError(
            f"A sweep's name has letters, digits and . _ + = -, and at most 100 of them. Received: {name!r}."
        )
    return name


def _name_of(identity: Mapping[str, str], members: Sequence[Member]) -> str:
    text = json.dumps([identity, [member.key for member in members]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _output_dir(members: Sequence[Member], output_dir: str | Path | None) -> str | Path:
    outer = current_run()
    if output_dir is not None:
        return output_dir
    if outer is not None:
        return outer.output_dir / "runs"
    given = {str(one.values.params["output_dir"]) for one in members}
    if len(given) > 1:
        raise InvalidValueError(
            f"The runs of a sweep are in one folder. Received: output_dir {', '.join(sorted(given))} in its list. Pass "
            "output_dir to run_parameter_sweep instead."
        )
    return given.pop()


def _read(path: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    file = path / _FILE
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unusable(file, "read", error, "output_dir") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    if isinstance(record, dict) and isinstance(record.get("format"), int) and record["format"] != _FORMAT:
        raise RunFolderError(
            f"The sweep is one of another version of trainlab. Received: format {record['format']} in {file}. "
            "Pass another name."
        )
    if not _is_whole(record):
        raise _damaged(file, "it does not hold what it should")
    if record["experiment"] != identity:
        before, now_ = (f"{one['path']} of {one['module']}" for one in (record["experiment"], identity))
        raise RunFolderError(
            f"The sweep of this name is one of another experiment. Received: {now_}, where {path} is one of {before}. "
            "Pass another name, or another output_dir."
        )
    return record  # type: ignore[no-any-return]  # it is whole


def _is_whole(record: Any) -> bool:
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        return False
    begun, runs = record.get("experiment"), record.get("runs")
    if not isinstance(begun, dict) or not isinstance(runs, list) or not isinstance(record.get("salt"), str):
        return False
    texts = [begun.get("path"), begun.get("module")]
    for one in runs:
        texts += [one.get("key"), one.get("folder"), one.get("job", "")] if isinstance(one, dict) else [None]
    return all(isinstance(text, str) for text in texts)


def _damaged(file: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"The sweep's list cannot be read: {why}. Received: {file}. Remove this file, and start the sweep again: its "
        "runs are known by their own records, save those that differ in secrets, which are made anew. Jobs of SLURM "
        "that have not ended are not known again; cancel them before."
    )


def _known_again(path: Path, experiment: "Experiment", members: Sequence[Member]) -> dict[str, str]:
    """The folders of runs by their keys, where there is no list of them, as their records tell."""
    left: dict[str, RunInfo] = {}
    for folder in sorted(path.iterdir()):
        found = read_run(folder)
        if found is not None and found.params and found.name == experiment.path:
            left[folder.name] = found
    known = {}
    for member in members:
        labels = (label for label, run in left.items() if not _changed(experiment, member, run.params))
        if not member.has_secrets and (label := next(labels, None)) is not None:
            known[member.key] = label
            del left[label]
    return known


def _entries(path: Path, members: Sequence[Member], known: Mapping[str, str]) -> tuple[Entry, ...]:
    digits = max(3, len(str(len(members) - 1)))
    taken = [_NUMBER.fullmatch(label) for label in [*known.values(), *(one.name for one in path.iterdir())]]
    found, number = [], 1 + max((int(one[1]) for one in taken if one is not None), default=-1)
    for member in members:
        label = known.get(member.key)
        if label is None:
            label = "_".join(filter(None, [f"{number:0{digits}d}", member.label]))
            number += 1
        found.append(Entry(member, label, path / label))
    return tuple(found)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
