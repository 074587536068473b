"""The lock of a folder, which one process holds; and the error of a folder that cannot be used."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from trainlab.errors import RunFolderError
from trainlab.runs.names import LOCK

__all__ = ["FolderLock", "lock_or_holder", "now", "take_lock", "unusable"]

# Whoever only looks whether a folder is held has its lock for an instant, see trainlab.runs.listing.is_held.
_TRIES, _PAUSE_SECONDS = 4, 0.05


class FolderLock:
    """The lock of a folder, until it is released; a forked child does not have it."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self.is_held = True
        _held[folder] = self

    def release(self) -> None:
        """Free the folder. Does nothing if the lock is not held."""
        if not self.is_held:
            return
        self.is_held = False
        del _held[self._folder]
        # A child that was forked this instant may not have closed its copy yet.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def leave_to_parent(self) -> None:
        """Close a forked child's copy; to unlock would unlock the parent's."""
        self.is_held = False
        os.close(self._descriptor)


# The folders that this process holds, without symbolic links.
_held: dict[Path, FolderLock] = {}


def _leave_locks_to_parent() -> None:
    while _held:
        _, lock = _held.popitem()
        lock.leave_to_parent()


# A worker that outlives a killed run would hold the folder with its copy of the descriptor.
os.register_at_fork(after_in_child=_leave_locks_to_parent)


def take_lock(path: Path, place: Path | str, what: str = "run's folder", argument: str = "run_dir") -> FolderLock:
    """Lock a folder against other runs, of this process too.

    Args:
        path: The folder.
        place: What to call it in errors.
        what: What it is, in errors.
        argument: Which argument names it.

    Returns:
        The lock, to be released.

    Raises:
        RunFolderError: Someone holds it, or nobody can.
    """
    lock = lock_or_holder(path)
    if isinstance(lock, FolderLock):
        return lock
    if not lock:
        raise RunFolderError(
            f"This process holds the {what} already. Received: {place}. "
            f"Close the run that holds it first, or pass another {argument}."
        )
    raise RunFolderError(
        f"The {what} is held by {lock}. Received: {place}. Wait until it ends or stop it, or pass another {argument}."
    )


def lock_or_holder(path: Path) -> FolderLock | str:
    """Lock a folder if nobody holds it.

    Args:
        path: The folder.

    Returns:
        The lock, to be released; or who holds it, "" for this process.

    Raises:
        RunFolderError: It cannot be locked.
    """
    resolved = path.resolve()
    if resolved in _held:
        return ""
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise unusable(path / LOCK, "opened", error) from error
    # flock and not lockf: a record lock is lost as soon as anything in this process has read the file.
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_holder()).encode())
    except OSError as error:
        holder = _describe_holder(descriptor)
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise unusable(path / LOCK, "locked", error) from error
        return holder
    return FolderLock(resolved, descriptor)


def _lock(descriptor: int) -> None:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def unusable(path: Path, done: str, error: OSError, argument: str = "run_dir") -> RunFolderError:
    """The error of a file or folder that cannot be used.

    Args:
        path: It.
        done: What cannot be done with it, such as "opened".
        error: Why.
        argument: Which one names the place.

    Returns:
        The error, to be raised.
    """
    reason = error.strerror or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "a file is in its place"
    return RunFolderError(f"{path} cannot be {done}: {reason}. Choose another {argument}, or make this place writable.")


def now() -> str:
    """Return the time, for people."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _holder() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": now()}


def _describe_holder(lock: int) -> str:
    try:
        holder = json.loads(os.pread(lock, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        # It took the lock this instant and has not written yet who it is.
        return "another process"
