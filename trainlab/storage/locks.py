"""Locks of files: shared by those who read, exclusive for who removes; none where a file system has no locks."""

import contextlib
import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Hold", "excluding_holds", "is_at"]

# What file systems without locks answer.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Hold:
    """A shared lock of a file, until it is called or gone; a forked child does not have it.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file, or it was removed while the lock was waited for.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        self._let_go = weakref.finalize(self, _unlock, descriptor, os.getpid())
        _holds.add(self)
        try:
            if not _lock(descriptor, fcntl.LOCK_SH):
                self()
            elif not is_at(descriptor, path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        except BaseException:
            self()
            raise

    def __call__(self) -> None:
        """Let go; it may be called again."""
        self._let_go()


_holds: "weakref.WeakSet[Hold]" = weakref.WeakSet()


def _leave_holds_to_parent() -> None:
    for hold in list(_holds):
        hold()


# A worker that outlives a killed reader would hold the file with its copy of the descriptor.
os.register_at_fork(after_in_child=_leave_holds_to_parent)


@contextlib.contextmanager
def excluding_holds(path: Path) -> Iterator[bool]:
    """Keep a file from being held.

    Args:
        path: the file.

    Yields:
        Whether it is there; a link is taken as missing, since nobody can hold it.

    Raises:
        BlockingIOError: it is held, or was replaced this instant.
    """
    descriptor = _opened_to_lock(path)
    if descriptor is None:
        yield False
        return
    try:
        _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = is_at(descriptor, path)
        if not is_there and os.path.lexists(path):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        yield is_there
    finally:
        _unlock(descriptor, os.getpid())


def is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is still the one of a path.

    Args:
        descriptor: the open file.
        path: the path.

    Returns:
        False also if there is nothing.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, how: int) -> bool:
    """Lock a file. False where files cannot be locked; BlockingIOError if another has it."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _unlock(descriptor: int, owner: int) -> None:
    """Unlock and close in the process that locked; elsewhere only close, for the lock is shared with it."""
    try:
        if os.getpid() == owner:
            # A child that was forked this instant may not have closed its copy yet.
            _lock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _opened_to_lock(path: Path) -> int | None:
    """The descriptor of a file, or None if nobody can hold it: it is missing, or a link."""
    for mode in (os.O_RDWR, os.O_RDONLY):  # NFS locks exclusively only what may be written
        try:
            return os.open(path, mode | _FLAGS)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return None
            if mode == os.O_RDONLY:
                raise
    return None
