"""The runs that are below a folder or a URL, as they are read for a person: quickly, and whatever state they are in."""

import contextlib
import fcntl
import json
import math
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from trainlab.errors import RunFolderError
from trainlab.runs.ending import STATUSES
from trainlab.runs.names import LOCK, PARAMS, RECORD, SERIES, TAGS

__all__ = [
    "Read",
    "RunInfo",
    "as_path",
    "described",
    "each_run",
    "find_runs",
    "is_held",
    "is_url",
    "number",
    "read_run",
    "read_unlocked",
    "run_folders",
    "tags_in",
    "value_at",
]

# In a run's folder, the runs that were begun by `trainlab.init` inside it.
_INNER = "runs"
_URL = re.compile(r"(?!file://|local://)[A-Za-z][A-Za-z0-9+.:-]*://")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# How much of a series' end is read first, and at most, to find the last validation.
_TAIL_BYTES, _LONGEST_TAIL = 2**15, 2**24
# What is shorter is read at once.
_PIECE_BYTES = 2**16
_VALIDATION = b'{"kind": "validation"'
# What is nested deeper is not read: whoever shows it would come to the end of Python's stack.
_DEEPEST = 100
# What a run's record holds, where it holds it at all.
_KINDS: dict[str, type] = {"git": dict, "versions": dict, "experiment": dict, "started": str, "ended": str}
_KINDS_OF_EXPERIMENT: dict[str, type] = {"path": str, "module": str, "file": str, "qualname": str, "options": dict}

# Reads a file of a run's folder by its name: all of it, or if it is not negative at most so many bytes of its end.
Read = Callable[[str, int], bytes]


@dataclass
class RunInfo:
    """What is known of a run.

    Attributes:
        path: its folder, or its URL.
        name: its name; an experiment's with those of its groups.
        status: running, finished, failed, interrupted or preempted as its record says; "crashed" if the record says
            running and no process holds the folder; "damaged" if the record cannot be read.
        params: its parameters, secrets masked; of a run without an experiment its hyperparameters.
        metrics: its metrics, those of the last validation while it runs.
        started: when it was begun, ISO 8601; None if that is not known.
        ended: when it ended; None if it did not, or not in order.
        tags: sorted.
        record: all that ``run.json`` holds.
        reason: why it is damaged; else empty.
    """

    path: Path | str
    name: str
    status: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    tags: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def duration(self) -> float | None:
        """The seconds of all its starts of which the end is known, up to now for one that runs; None if none is."""
        starts = self.record.get("starts")
        spans = [_span(start, is_running=False) for start in starts[:-1]] if isinstance(starts, list) else []
        if isinstance(starts, list) and starts:
            spans.append(_span(starts[-1], is_running=self.status == "running"))
        known = [span for span in spans if span is not None]
        return sum(known) if known else None


def find_runs(place: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> list[RunInfo]:
    """Read all runs below a place, at any depth; links are not followed.

    Args:
        place: A folder, or any URL that fsspec knows. It may be a run itself.
        storage_options: For a URL, what its file system asks for. Default none.

    Returns:
        The runs, in no order; those whose record cannot be read as damaged.

    Raises:
        RunFolderError: There is no such folder.
        OSError: The place cannot be read.
    """
    return list(each_run(place, storage_options))


def each_run(place: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Iterator[RunInfo]:
    """Read all runs below a place one by one, so that those that are not meant need not all be held.

    Args:
        place: As for ``find_runs``.
        storage_options: As for ``find_runs``.

    Yields:
        The runs, as ``find_runs`` returns them.

    Raises:
        RunFolderError: There is no such folder.
        OSError: The place cannot be read.
    """
    if is_url(place):
        from trainlab.runs.remote_listing import find_remote_runs

        yield from find_remote_runs(os.fspath(place), storage_options)
        return
    host = socket.gethostname()
    for folder, names in _local_folders(place):
        yield _read_local(folder, names, host)


def read_run(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> RunInfo | None:
    """Read one run.

    Args:
        path: Its folder, or its URL.
        storage_options: For a URL, what its file system asks for. Default none.

    Returns:
        The run; None if there is none.
    """
    if is_url(path):
        from trainlab.runs.remote_listing import read_remote_run

        return read_remote_run(os.fspath(path), storage_options)
    folder = as_path(path)
    try:
        names = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _read_local(folder, names, socket.gethostname()) if RECORD in names else None


def read_unlocked(folder: str | os.PathLike[str]) -> RunInfo | None:
    """Read a run that may be about to take its folder's lock, which is not touched.

    Args:
        folder: Its folder.

    Returns:
        The run, as it says of itself; None if there is none.
    """
    path = os.fspath(folder)
    try:
        names = set(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if RECORD not in names:
        return None
    return described(Path(path), names, lambda name, tail: _content(f"{path}/{name}", tail), lambda _: True)


def run_folders(place: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Find the folders of all runs below a place, and read none.

    Args:
        place: As for ``find_runs``.
        storage_options: As for ``find_runs``.

    Returns:
        Their paths or URLs.

    Raises:
        RunFolderError: There is no such folder.
    """
    if is_url(place):
        from trainlab.runs.remote_listing import remote_run_folders

        return remote_run_folders(os.fspath(place), storage_options)
    return [folder for folder, _ in _local_folders(place)]


def is_url(place: str | os.PathLike[str]) -> bool:
    """Tell a URL of another file system from a folder of this machine.

    Args:
        place: It.

    Returns:
        Whether it is one.
    """
    return _URL.match(os.fspath(place)) is not None


def as_path(place: str | os.PathLike[str]) -> str:
    """Give a folder of this machine as what is in it is called.

    Args:
        place: A path, which may begin with ``~``, or a URL with ``file://``.

    Returns:
        Its absolute path.

    Raises:
        RunFolderError: The text is empty.
    """
    text = os.fspath(place)
    protocol, separator, rest = text.partition("://")
    path = rest if separator and protocol in ("file", "local") else text
    if not path:
        raise RunFolderError(f"An empty text names no folder. Received: {text!r}. For the current folder pass '.'.")
    return os.path.abspath(os.path.expanduser(path))


def is_held(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a live process of this machine holds a run's folder; nothing is made or changed.

    Args:
        folder: The run's folder.

    Returns:
        Whether one does.

    Raises:
        OSError: The lock is there and cannot be opened.
    """
    try:
        descriptor = os.open(os.path.join(folder, LOCK), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock is refused while there is an exclusive one, and is gone again in the next line but one.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _local_folders(place: str | os.PathLike[str]) -> Iterator[tuple[str, Collection[str]]]:
    """The runs' folders below a folder, each with the names in it."""
    top = as_path(place)
    if not os.path.isdir(top):
        raise RunFolderError(f"There is no such folder. Received: {top}. Pass the folder that the runs are in.")
    above = [top]
    while above:
        folder = above.pop()
        try:
            with os.scandir(folder) as entries:
                found = list(entries)
        except FileNotFoundError:
            continue  # it was removed this instant
        except OSError:
            if folder == top:
                raise
            yield folder, {RECORD}  # whose reading tells why: it is listed as damaged
            continue
        names = {entry.name for entry in found}
        if RECORD in names:
            yield folder, names
            inner = [entry for entry in found if entry.name == _INNER] if _INNER in names else []
        else:
            inner = [entry for entry in found if not entry.name.startswith(".")]
        above += [entry.path for entry in inner if entry.is_dir(follow_symlinks=False)]


def _read_local(folder: str, names: Collection[str], host: str) -> RunInfo:
    def read(name: str, tail: int) -> bytes:
        return _content(f"{folder}/{name}", tail)

    def is_alive(record: Mapping[str, Any]) -> bool:
        # The lock of another machine is not to be seen on every file system.
        return record.get("host") != host or is_held(folder)

    return described(Path(folder), names, read, is_alive)


def _content(path: str, tail: int) -> bytes:
    """A file, or its end; several times as quick as by a file object, which counts where there are ten thousand."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if tail >= 0:
            os.lseek(descriptor, max(0, os.fstat(descriptor).st_size - tail), os.SEEK_SET)
        data = os.read(descriptor, _PIECE_BYTES)
        if len(data) < _PIECE_BYTES:
            return data
        pieces = [data]
        while piece := os.read(descriptor, _LONGEST_TAIL):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def described(
    path: Path | str, names: Collection[str], read: Read, is_alive: Callable[[Mapping[str, Any]], bool]
) -> RunInfo:
    """Tell what a run's files say.

    Args:
        path: Its folder, or its URL.
        names: The files that are in it.
        read: Reads one of them.
        is_alive: Tells of a record that says "running" whether that is so.

    Returns:
        The run; a damaged one if its record cannot be read.
    """
    try:
        record = _record(read(RECORD, -1))
        status = str(record.get("status"))
        if status == "running" and not is_alive(record):
            status = "crashed"
        starts = record.get("starts") or [record]
        return RunInfo(
            path=path,
            name=str(record.get("name", "")),
            status=status,
            params=_params(record, names, read),
            metrics=_metrics(record, status, names, read),
            started=starts[0].get("started"),
            ended=starts[-1].get("ended"),
            tags=tags_in(read(TAGS, -1)) if TAGS in names else (),
            record=record,
        )
    except (OSError, ValueError) as error:
        return RunInfo(path, "", "damaged", reason=f"{path}: {error}")


def _record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{RECORD} is no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{RECORD} is nested too deeply") from None
    starts = record.get("starts", []) if isinstance(record, dict) else None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ValueError(f"{RECORD} does not hold what a run's record holds")
    if record.get("status") not in STATUSES or not (starts or "started" in record):
        raise ValueError(f"{RECORD} is no run's record of trainlab")
    if data.count(b"{") + data.count(b"[") > _DEEPEST and _is_deep(record):
        raise ValueError(f"{RECORD} is nested too deeply")
    for part in (record, *starts):
        _check_kinds(part, _KINDS)
    if experiment := record.get("experiment"):
        _check_kinds(experiment, _KINDS_OF_EXPERIMENT)
        if not all(isinstance(words, list) for words in (experiment.get("options") or {}).values()):
            raise ValueError(f"{RECORD} does not hold lists as options of its experiment")
    return record  # type: ignore[no-any-return]  # it is a dict: only then is there a list


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        value = values.get(name)
        if value is not None and type(value) is not kind:  # as JSON is read, there are no others that derive from it
            raise ValueError(f"{RECORD} does not hold what a run's record holds as {name!r}")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for values in inner for one in values]
        if not level:
            return False
    return True


def _params(record: Mapping[str, Any], names: Collection[str], read: Read) -> Mapping[str, Any]:
    params = record.get("params")
    if isinstance(params, dict):
        return params
    if PARAMS not in names:
        return {}
    import yaml

    try:
        found = yaml.safe_load(read(PARAMS, -1))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{PARAMS} is no YAML: {error}") from None
    hparams = found.get("hparams", found) if isinstance(found, dict) else None
    return hparams if isinstance(hparams, dict) else {}


def _metrics(record: Mapping[str, Any], status: str, names: Collection[str], read: Read) -> Mapping[str, Any]:
    metrics = record.get("metrics")
    known = {name: number(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {}
    if SERIES not in names or (known and status not in ("running", "crashed")):
        return known
    return _last_validation(read) or known


def _last_validation(read: Read) -> dict[str, Any]:
    """The metrics of the last validation, found from the end of the series."""
    tail = _TAIL_BYTES
    while True:
        data = read(SERIES, tail)
        at = len(data)
        while (at := data.rfind(_VALIDATION, 0, at)) >= 0:
            # A line that a killed process did not finish, or that is none of ours.
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                metrics = json.loads(data[at:].partition(b"\n")[0])["metrics"]
                if not _is_deep(metrics):
                    return {name: number(value) for name, value in metrics.items()}
        if len(data) < tail or tail >= _LONGEST_TAIL:
            return {}
        tail *= 8


def number(value: Any) -> Any:
    """Read a number of a series, in which those that are not finite are texts.

    Args:
        value: As JSON has it.

    Returns:
        The number; what is none as it was.
    """
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def value_at(values: Any, name: str, default: Any = None) -> Any:
    """A parameter's value in nested ones.

    Args:
        values: They.
        name: Such as "optimizer.lr".
        default: What to give where there is none. Default None.

    Returns:
        The value.
    """
    if not isinstance(values, Mapping):
        return default
    if name in values:
        return values[name]
    above, _, rest = name.partition(".")
    return value_at(values.get(above), rest, default) if rest else default


def tags_in(data: bytes) -> tuple[str, ...]:
    """Read the file of a run's tags.

    Args:
        data: Its content.

    Returns:
        The tags, sorted.

    Raises:
        ValueError: It holds something else.
    """
    try:
        tags = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{TAGS} is no JSON: {error}") from None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"{TAGS} is no list of texts")
    return tuple(sorted(tags))


def _span(start: Mapping[str, Any], *, is_running: bool) -> float | None:
    try:
        begun = datetime.fromisoformat(start["started"])
        ended = datetime.now().astimezone() if is_running else datetime.fromisoformat(start["ended"])
        return (ended - begun).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
