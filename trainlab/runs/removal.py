"""Removing runs for good: a whole run or nothing of it, and none that a process works in."""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from trainlab.errors import RunFolderError
from trainlab.runs.folder_lock import FolderLock, lock_or_holder
from trainlab.runs.listing import RunInfo, is_held, read_run
from trainlab.runs.names import LOCK, RECORD
from trainlab.storage import open_store

__all__ = ["remove_run"]


def remove_run(
    run: RunInfo,
    storage_options: Mapping[str, Any] | None = None,
    *,
    elsewhere: bool = False,
    damaged: bool = False,
) -> None:
    """Remove a run with all that is in its folder, the runs inside of it too.

    Args:
        run: The run.
        storage_options: For a URL, what its file system asks for. Default none.
        elsewhere: Whether to remove also what its record says to run where this machine cannot see it. Default False.
        damaged: Whether to remove also a folder of which nothing tells that trainlab made it. Default False.

    Raises:
        RunFolderError: It is a link, is held by a live process, says that it runs elsewhere, or may be no run of
            trainlab. Nothing is removed.
        OSError: It cannot be removed, or not to its end; then it is told where the rest is.
    """
    if isinstance(run.path, Path) and run.path.is_symlink():
        raise RunFolderError(f"This is a link to {run.path.resolve()}. Received: {run.path}. Pass the run's own path.")
    if run.status == "damaged" and not damaged and not _was_locked(run.path):
        raise RunFolderError(
            f"Nothing tells that this is a run of trainlab. Received: {run.reason}. "
            "If the folder is to go with all that is in it, pass --damaged."
        )
    if not isinstance(run.path, Path):
        _refuse_running(run, elsewhere=elsewhere)
        above, _, name = str(run.path).rpartition("/")
        open_store(above, storage_options).remove_unread(name, RECORD)
        return
    with _held(run.path, elsewhere=elsewhere):
        # Of this name none is listed; and what is there of it is the rest of an earlier attempt.
        hidden = run.path.with_name(f".removed-{os.getpid()}-{run.path.name}")
        run.path.rename(hidden)
    try:
        shutil.rmtree(hidden)
    except OSError as error:
        raise RunFolderError(
            f"The run is no longer listed, and not all of its files could be removed: {error}. "
            f"Received: {run.path}. Remove the rest yourself: {hidden}."
        ) from error


def _was_locked(place: Path | str) -> bool:
    """Whether a process of trainlab has held a folder: its lock says which."""
    if not isinstance(place, Path):
        return False
    try:
        holder = json.loads((place / LOCK).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(holder, dict) and {"pid", "host", "started"} <= holder.keys()


@contextmanager
def _held(folder: Path, *, elsewhere: bool) -> Iterator[None]:
    """Hold a run and those anywhere inside of it, so that none is removed that someone else holds."""
    with ExitStack() as locks:
        for name, _, files in os.walk(folder, onerror=_raise):
            inner = Path(name)
            if RECORD not in files:
                if LOCK in files and is_held(inner):
                    raise _of_another(inner, "another process")
                continue
            run = read_run(inner)
            if run is not None and run.record.get("host") != socket.gethostname():
                _refuse_running(run, elsewhere=elsewhere)
            lock = lock_or_holder(inner)
            if not isinstance(lock, FolderLock):
                raise _of_another(inner, lock or "this process")
            locks.callback(lock.release)
        yield


def _raise(error: OSError) -> NoReturn:
    raise error


def _of_another(folder: Path, holder: str) -> RunFolderError:
    return RunFolderError(f"The run is held by {holder}. Received: {folder}. Wait until it ends, or stop it.")


def _refuse_running(run: RunInfo, *, elsewhere: bool) -> None:
    if run.status == "running" and not elsewhere:
        raise RunFolderError(
            f"The run's record says that process {run.record.get('pid')} on {run.record.get('host')} works in it, "
            f"which cannot be seen from here. Received: {run.path}. If that process has ended, pass --elsewhere."
        )
