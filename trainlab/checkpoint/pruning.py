"""Removing checkpoints by hand, by the same rules as a run does and never while one goes on."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from trainlab.checkpoint.commands import Place
from trainlab.checkpoint.layout import NAME, remove_checkpoint
from trainlab.checkpoint.matching import shown
from trainlab.checkpoint.retention import Entry, Retention, expired
from trainlab.errors import InvalidValueError, RunFolderError
from trainlab.runs.names import LOCK
from trainlab.storage import Store

__all__ = ["Removal", "plan_removal", "remove", "run_kept_from_starting"]


@dataclass
class Removal:
    """What pruning removes, and how it went.

    Attributes:
        expired: the checkpoints to remove, oldest first.
        rubbish: the unfinished ones.
        left: why each of the others is left as it is, for those that no rule keeps.
        removed: those that were removed.
        being_read: those that someone reads, and that stay.
        failed: why others could not be removed.
    """

    expired: list[str]
    rubbish: list[str]
    left: dict[str, str]
    removed: list[str] = field(default_factory=list)
    being_read: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def plan_removal(place: Place, retention: Retention, *, metric: str | None, smaller_is_better: bool) -> Removal:
    """Choose what to remove: of the checkpoints that runs name, and that are not damaged.

    Args:
        place: What was found.
        retention: What to keep.
        metric: The validation metric that tells which is the best; None if none does.
        smaller_is_better: Whether a smaller value is better.

    Returns:
        The plan; nothing is removed yet.

    Raises:
        InvalidValueError: A single checkpoint was asked for, or none was validated with the metric.
    """
    if place.is_one:
        raise InvalidValueError(
            f"Checkpoints are pruned by comparing them. Received: {place.found[0].location}, which is one. "
            "Pass the folder that it is in."
        )
    entries, rubbish = [], []
    left: dict[str, str] = {}
    for found in place.found:
        if found.condition == "unfinished":
            rubbish.append(found.name)
        elif found.entry is None:
            left[found.name] = found.condition
        elif not NAME.fullmatch(found.name):
            left[found.name] = "its name is not one that runs give"
        else:
            entries.append(found.entry)
    if metric is not None:
        _require_metric(metric, entries)
    chosen = expired(entries, retention, metric=metric, smaller_is_better=smaller_is_better)
    return Removal(chosen, rubbish, left)


def remove(store: Store, removal: Removal, *, rubbish: bool) -> None:
    """Remove what was chosen; what is being read stays, and what fails does not stop the rest.

    Args:
        store: The folder of the checkpoints.
        removal: The plan, in which it is noted how it went.
        rubbish: Whether to remove unfinished ones, too.
    """
    for name in [*removal.expired, *(removal.rubbish if rubbish else [])]:
        try:
            is_removed = remove_checkpoint(store, name)
        except OSError as error:
            removal.failed[name] = error.strerror or str(error)
        else:
            (removal.removed if is_removed else removal.being_read).append(name)


@contextlib.contextmanager
def run_kept_from_starting(store: Store) -> Iterator[None]:
    """Hold the run that checkpoints of this machine belong to, if they belong to one, as the run itself would.

    Args:
        store: The folder of the checkpoints.

    Raises:
        RunFolderError: A live process holds it, or nobody may.
    """
    folder = Path(os.path.realpath(store.location())) if store.is_local else None
    lock = folder.parent / LOCK if folder is not None and folder.name == "checkpoints" else None
    if lock is None or not lock.exists():
        yield
        return
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise RunFolderError(
            f"The run's lock cannot be taken: {error.strerror}. Received: {lock}. Prune as the user who trains."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise RunFolderError(
                f"The run is held by {_holder_in(descriptor)}, which removes its own checkpoints. "
                f"Received: {lock.parent}. Wait until it ends, or stop it; what it keeps is told by fit(retention=...)."
            ) from None
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": datetime.now().astimezone().isoformat()}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _require_metric(metric: str, entries: list[Entry]) -> None:
    metrics = {str(name) for entry in entries for name in entry.validation}
    if metric not in metrics:
        raise InvalidValueError(
            f"No checkpoint here was validated with this metric. Received: {metric!r}. "
            f"They have: {shown(sorted(metrics)) if metrics else 'none'}."
        )


def _holder_in(lock: int) -> str:
    try:
        holder = json.loads(os.pread(lock, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
