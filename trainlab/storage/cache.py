"""Copies of remote files on this machine, named by their content: bounded, and shared by all processes."""

import contextlib
import fcntl
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trainlab.errors import InvalidValueError, StorageError
from trainlab.storage.checksums import is_checksum
from trainlab.storage.locks import is_at

__all__ = ["cache_folder", "forget", "open_cached"]

logger = logging.getLogger("trainlab.storage")

_DEFAULT_GB = 20.0
# <algorithm>-<digits>-<size>, and the same while it is being fetched.
_ENTRY = re.compile(r"[a-z0-9_]+-[0-9a-f]+-([0-9]+)(\.part)?")

_warned: set[str] = set()


def open_cached(checksum: str, size: int, fetch: Callable[[str], None]) -> BinaryIO:
    """Open the copy of a remote file, which is fetched if there is none.

    The folder is ``$TRAINLAB_CACHE``, by default ``~/.cache/trainlab``. It takes ``$TRAINLAB_CACHE_GB`` gigabytes,
    by default 20; those not read for longest go first. A larger file, or any if the folder cannot be written,
    is fetched to a temporary file without a name. The bytes are not compared with the checksum.

    Args:
        checksum: the checksum that the file should have.
        size: the number of bytes that it should have.
        fetch: writes the remote file to the path it is given, over what is there.

    Returns:
        The file, at its start.

    Raises:
        StorageError: the remote file has another size.
        InvalidValueError: ``$TRAINLAB_CACHE_GB`` is no number.
    """
    if not is_checksum(checksum):
        raise StorageError(f"A file is fetched by its checksum, algorithm:digits. Received: {checksum!r}")
    folder, limit = cache_folder(), _limit()
    if size > limit:
        if limit:
            _warn_once(f"{size} bytes are more than the cache {folder} may take ($TRAINLAB_CACHE_GB)")
        return _fetched_aside(size, fetch)
    entry = folder / f"{checksum.replace(':', '-')}-{size}"
    file = _opened(entry, size)
    if file is not None:
        return file
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = _Part(entry)
    except OSError as error:
        _warn_once(f"The cache {folder} cannot be used: {error}")
        return _fetched_aside(size, fetch)
    with part:
        file = _opened(entry, size)  # another process may have fetched it meanwhile
        if file is not None:
            return file
        _evict(folder, limit - size, part.path)
        fetch(str(part.path))
        _check_size(part.path, size)
        file = part.path.open("rb")
        part.path.rename(entry)
        return file


def forget(checksum: str) -> None:
    """Remove the copies of a file.

    Args:
        checksum: its checksum.
    """
    if is_checksum(checksum):
        for path in cache_folder().glob(f"{checksum.replace(':', '-')}-*"):
            if not path.name.endswith(".part"):
                path.unlink(missing_ok=True)


class _Part:
    """The file that an entry is fetched to, locked: others that want the same wait for it."""

    def __init__(self, entry: Path) -> None:
        self.path = entry.with_name(entry.name + ".part")
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(self._descriptor)
                raise
            if is_at(self._descriptor, self.path):
                return
            os.close(self._descriptor)

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        if is_at(self._descriptor, self.path):
            self.path.unlink()
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def cache_folder() -> Path:
    """Give the folder that copies of remote files are kept in.

    Returns:
        ``$TRAINLAB_CACHE``, or without it ``~/.cache/trainlab``; it need not be there.

    Raises:
        RuntimeError: It is below a home that cannot be told.
    """
    given = Path(os.environ.get("TRAINLAB_CACHE") or "~/.cache/trainlab")
    return Path(os.path.abspath(given.expanduser()))


def _limit() -> int:
    """How many bytes the cache may take."""
    text = os.environ.get("TRAINLAB_CACHE_GB") or str(_DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise InvalidValueError(f"TRAINLAB_CACHE_GB is a number of gigabytes, 0 for no cache. Received: {text!r}")
    return int(gigabytes * 1e9)


def _opened(entry: Path, size: int) -> BinaryIO | None:
    """An entry, if it is there and has its size; it is noted as read now."""
    try:
        descriptor = os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    if status.st_size != size:
        file.close()
        return None
    with contextlib.suppress(OSError):  # a copy that is not ours can be read all the same
        # The file system itself notes it once a day, or never.
        os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
    return file


def _evict(folder: Path, limit: int, wanted: Path) -> None:
    """Remove what was not read for longest until the rest is within a limit, and what nobody fetches any more."""
    # A file that is being fetched counts with the size that it will have.
    kept = [
        entry
        for entry in _entries(folder)
        if entry.path != wanted and not (entry.is_part and _remove_abandoned(entry.path))
    ]
    total = sum(entry.size for entry in kept)
    for entry in sorted(kept, key=lambda entry: entry.read_at):
        if total > limit and not entry.is_part:
            entry.path.unlink(missing_ok=True)
            total -= entry.size


class _Entry(NamedTuple):
    path: Path
    size: int
    is_part: bool
    read_at: int


def _entries(folder: Path) -> Iterator[_Entry]:
    for path in folder.iterdir():
        parts = _ENTRY.fullmatch(path.name)
        if parts:
            with contextlib.suppress(FileNotFoundError):
                yield _Entry(path, int(parts[1]), parts[2] is not None, path.lstat().st_atime_ns)


def _remove_abandoned(part: Path) -> bool:
    """Remove a file that was being fetched by a process that is no more."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(descriptor, part):
            part.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _fetched_aside(size: int, fetch: Callable[[str], None]) -> BinaryIO:
    """The remote file in a file without a name, which is gone when it is closed."""
    descriptor, name = tempfile.mkstemp(prefix="trainlab-")
    os.close(descriptor)
    path = Path(name)
    try:
        fetch(name)
        _check_size(path, size)
        return path.open("rb")
    finally:
        path.unlink(missing_ok=True)


def _check_size(path: Path, size: int) -> None:
    received = path.stat().st_size
    if received != size:
        raise StorageError(f"A fetched file has {received} bytes; expected: {size}.")


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning("%s. Remote files are fetched each time they are read.", text)
