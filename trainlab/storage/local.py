"""A store in a folder of this machine: what is written survives a crash, what is read is no link."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from trainlab.errors import StorageError
from trainlab.storage.faults import reached
from trainlab.storage.locks import Hold, excluding_holds
from trainlab.storage.names import MARK, checked_name

__all__ = ["LocalStore"]

# As much as a disk takes in some milliseconds: between two pieces a signal is handled.
_PIECE_BYTES = 8 * 2**20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# What file systems that cannot fsync a folder answer.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_KINDS = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


class LocalStore:
    """A folder of this machine, as a ``Store``. Errors are the operating system's own.

    Args:
        folder: the folder; it need not exist.
    """

    is_local = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._root = Path(os.path.abspath(folder))
        self.url = str(self._root)

    def location(self, name: str = "") -> Path:
        """The path of a name.

        Args:
            name: a file or folder; default the store's own folder.

        Returns:
            The path, absolute.
        """
        return self._root / checked_name(name) if name else self._root

    def folders(self) -> list[str]:
        """The names of the folders directly in the store.

        Returns:
            The names, sorted, without links; empty if the store's own folder does not exist.
        """
        try:
            with os.scandir(self._root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def files(self, folder: str) -> dict[str, int]:
        """All files below a folder.

        Args:
            folder: its name.

        Returns:
            The size of each, by its name relative to the folder.

        Raises:
            FileNotFoundError: there is no such folder.
            StorageError: there is a link or a device below it.
        """
        path = self._without_links(folder)
        return dict(_files_below(path))

    def size(self, name: str) -> int:
        """The size of a file.

        Args:
            name: its name.

        Returns:
            The number of bytes.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it is a link, a folder or a device.
        """
        path = self._without_links(name)
        return _file_size(path, os.lstat(path))

    def read(self, name: str, limit: int) -> bytes:
        """A whole small file.

        Args:
            name: its name.
            limit: how many bytes it may have.

        Returns:
            The bytes.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it is larger, or no file.
        """
        with self._open(name) as file:
            size = os.fstat(file.fileno()).st_size
            # No more than it has is asked for, as much as that is allocated; it may still be growing.
            data = file.read(min(size, limit) + 1)
            if size > limit or len(data) > limit:
                raise StorageError(f"{self.location(name)} has {max(size, len(data))} bytes, and may have {limit}.")
            return data

    def open(self, name: str, *, size: int, checksum: str) -> BinaryIO:
        """Open a file for reading.

        Args:
            name: its name.
            size: unused.
            checksum: unused.

        Returns:
            The file, at its start.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it is no file, or reached through a link.
        """
        return self._open(name)

    def forget(self, name: str, checksum: str) -> None:
        """Drop the cached copy of a file: there are none of local files.

        Args:
            name: unused.
            checksum: unused.
        """

    def make_folder(self, name: str) -> None:
        """Make a folder, and those above it, durably.

        Args:
            name: its name.

        Raises:
            FileExistsError: there is something of this name.
        """
        path = self._path(name)
        missing = [parent for parent in path.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            _sync_folder(parent.parent)
        path.mkdir()
        reached("folder made")
        _sync_folder(path.parent)

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a new file, durable on return. What was begun stays on an error.

        Args:
            name: its name, in a folder that exists.
            pieces: the bytes, in order.

        Raises:
            FileExistsError: there is something of this name.
        """
        with _new_file(self._path(name)) as descriptor:
            reached("file begun")
            for piece in pieces:
                for part in _parts(piece):
                    _write_all(descriptor, part)
                    reached("piece written")
            reached("file written")
            os.fsync(descriptor)
        reached("file synced")

    def sync_folder(self, name: str) -> None:
        """Make the names in a folder durable.

        Args:
            name: the folder.
        """
        _sync_folder(self._path(name))
        reached("folder synced")

    def publish(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, durable on return; replaces one of this name.

        Args:
            name: its name, in a folder that exists.
            data: its content.
        """
        path = self._path(name)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with _new_file(unfinished) as descriptor:
                reached("manifest begun")
                _write_all(descriptor, memoryview(data))
                reached("manifest written")
                os.fsync(descriptor)
            if path.parent != self._root:
                _sync_folder(path.parent.parent)
            reached("manifest synced")
            os.rename(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        reached("published")
        _sync_folder(path.parent)
        reached("published durably")

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is no error.

        Args:
            name: its name.
        """
        self._path(name).unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all below it; a missing one is no error. No link is followed.

        Args:
            name: its name.
        """
        _remove_tree(self._path(name))

    def hold(self, folder: str, by: str) -> Callable[[], None]:
        """Keep a folder from ``remove_unread``, by any process, while it is read.

        Args:
            folder: its name.
            by: the name of the file in it that stands for the folder.

        Returns:
            A function that lets go; so do its end as an object, and the end of this process. Where files cannot
            be locked nothing is held.

        Raises:
            FileNotFoundError: there is no such file, or it has just been removed.
        """
        return Hold(self._without_links(f"{folder}/{by}"))

    def remove_unread(self, folder: str, first: str) -> bool:
        """Remove a folder unless someone holds it.

        Args:
            folder: its name.
            first: the file in it that stands for it, and is removed before the others.

        Returns:
            Whether it was removed; True also if it was not there.
        """
        path = self._without_links(folder)
        standing = path / checked_name(first)
        try:
            with excluding_holds(standing) as is_there:
                if is_there:
                    standing.unlink()
                    reached("first removed")
                    _sync_folder(path)
        except BlockingIOError:
            return False
        _remove_tree(path)
        reached("folder removed")
        return True

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)

    def _without_links(self, name: str) -> Path:
        """The path of a name of which no part is a link."""
        path = self._path(name)
        inside = Path(os.path.realpath(self._root), name)
        if os.path.realpath(path) != str(inside):
            raise StorageError(errno.ELOOP, f"{path} is a link, or in a folder that is one; stores hold none.")
        return path

    def _open(self, name: str) -> BinaryIO:
        path = self._without_links(name)
        # A pipe would be waited for.
        descriptor = os.open(path, _READ | os.O_NONBLOCK)
        try:
            _file_size(path, os.fstat(descriptor))
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def _file_size(path: Path, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path} is not a file but a {_KINDS.get(stat.S_IFMT(status.st_mode), 'device')}.")
    return status.st_size


def _files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every file below a folder."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name, _file_size(Path(entry.path), entry.stat(follow_symlinks=False))


def _remove_tree(folder: Path) -> None:
    """Remove a folder and all below it, as far as it is there."""
    if folder.is_symlink():
        raise StorageError(errno.ELOOP, f"{folder} is a link; stores hold none, and what it leads to is not removed.")
    folders, last = [folder], []
    for path in folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.name == MARK:
                    last.append(Path(entry.path))
                else:
                    Path(entry.path).unlink(missing_ok=True)
                    reached("part removed")
    for mark in last:
        mark.unlink(missing_ok=True)
        reached("part removed")
    for path in reversed(folders):
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()


def _parts(piece: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(piece)
    if view.nbytes:
        view = view.cast("B")
        for start in range(0, view.nbytes, _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _NEW, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
