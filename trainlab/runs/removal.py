"""Removing runs for good: a whole run or nothing of it, and none that a process works in."""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trainlab.errors import RunFolderError
from trainlab.runs.folder_lock import FolderLock, lock_or_holder
from trainlab.runs.listing import RunInfo, find_runs
from trainlab.runs.remote_folder import RECORD
from trainlab.storage import open_store

__all__ = ["remove_run"]


def remove_run(run: RunInfo, storage_options: Mapping[str, Any] | None = None, *, elsewhere: bool = False) -> None:
    """Remove a run with all that is in its folder, the runs inside of it too.

    Args:
        run: The run.
        storage_options: For a URL, what its file system asks for. Default none.
        elsewhere: Whether to remove also what its record says to run where this machine cannot see it. Default False.

    Raises:
        RunFolderError: It is held by a live process, or says that it runs elsewhere. Nothing is removed.
        OSError: It cannot be removed, or not to its end; then it is told where the rest is.
    """
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


@contextmanager
def _held(folder: Path, *, elsewhere: bool) -> Iterator[None]:
    """Hold a run and those inside of it, so that none is removed that someone else holds."""
    with ExitStack() as locks:
        for run in find_runs(folder):
            if run.record.get("host") != socket.gethostname():
                _refuse_running(run, elsewhere=elsewhere)
            lock = lock_or_holder(Path(run.path))
            if not isinstance(lock, FolderLock):
                by = lock or "this process"
                raise RunFolderError(f"The run is held by {by}. Received: {run.path}. Wait until it ends, or stop it.")
            locks.callback(lock.release)
        yield


def _refuse_running(run: RunInfo, *, elsewhere: bool) -> None:
    if run.status == "running" and not elsewhere:
        raise RunFolderError(
            f"The run's record says that process {run.record.get('pid')} on {run.record.get('host')} works in it, "
            f"which cannot be seen from here. Received: {run.path}. If that process has ended, pass --elsewhere."
        )
