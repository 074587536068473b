"""A store on another file system or an object store, through fsspec."""

import errno
import itertools
import threading
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar

from trainlab.errors import StorageError
from trainlab.storage import cache
from trainlab.storage.connection import Connection
from trainlab.storage.faults import reached
from trainlab.storage.names import MARK, checked_name

__all__ = ["RemoteStore"]

_T = TypeVar("_T")

_PART_BYTES = 16 * 2**20
_MOST_PARTS = 9_000  # S3 takes 10,000
_PIECE_BYTES = 8 * 2**20
# How many hold each folder, by its URL, and who may change that or rely on it.
_held: Counter[str] = Counter()
_holding = threading.RLock()


class RemoteStore:
    """A folder at a URL that fsspec knows, as a ``Store``.

    Args:
        url: the URL.
        storage_options: for the file system, as fsspec takes them; default none.
    """

    is_local = False

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._connection = Connection(url, storage_options or {})
        self.url = self._connection.url

    def location(self, name: str = "") -> str:
        """The URL of a name.

        Args:
            name: a file or folder; default the store's own folder.

        Returns:
            The URL.
        """
        if not name:
            return self.url
        return f"{self.url}{'' if self.url.endswith('/') else '/'}{checked_name(name)}"

    def folders(self) -> list[str]:
        """The names of the folders directly in the store.

        Returns:
            The names, sorted; empty if there is nothing.
        """
        try:
            entries = self._do("list", "", lambda fs: fs.ls(self._connection.root, detail=True))
        except FileNotFoundError:
            return []
        return sorted({_last(entry["name"]) for entry in entries if entry["type"] == "directory"})

    def files(self, folder: str) -> dict[str, int]:
        """All files below a folder.

        Args:
            folder: its name.

        Returns:
            The size of each, by its name relative to the folder.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        found = self._files(folder)
        if not found:
            raise FileNotFoundError(errno.ENOENT, f"There is nothing at {self.location(folder)}")
        return found

    def size(self, name: str) -> int:
        """The size of a file.

        Args:
            name: its name.

        Returns:
            The number of bytes.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it is a folder.
        """
        path = self._path(name)
        return self._do("read", name, lambda fs: self._size(fs, path))

    def read(self, name: str, limit: int) -> bytes:
        """A whole small file.

        Args:
            name: its name.
            limit: how many bytes it may have.

        Returns:
            The bytes.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it is larger, and was not read.
        """
        path = self._path(name)

        def read(fs: Any) -> bytes:
            size = self._size(fs, path)
            if size > limit:
                raise StorageError(f"{self.location(name)} has {size} bytes, and may have {limit}.")
            data: bytes = fs.cat_file(path) if size else b""
            self._check_size(name, len(data), size)
            return data

        return self._do("read", name, read)

    def open(self, name: str, *, size: int, checksum: str) -> BinaryIO:
        """Open a file for reading, through the local cache.

        Args:
            name: its name.
            size: the number of bytes that it should have.
            checksum: the checksum that it should have; not compared.

        Returns:
            The file, at its start.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it has another size.
        """
        path = self._path(name)
        actual = self.size(name)
        if actual != size:
            raise StorageError(f"{self.location(name)} has {actual} bytes; expected: {size}.")
        return cache.open_cached(
            checksum, size, lambda target: self._do("read", name, lambda fs: fs.get_file(path, target))
        )

    def forget(self, name: str, checksum: str) -> None:
        """Drop the cached copy of a file, so that it is fetched anew.

        Args:
            name: its name.
            checksum: the checksum that it should have.
        """
        cache.forget(checksum)

    def make_folder(self, name: str) -> None:
        """Make a folder; in an object store, where it is only part of names, only see that nothing is there.

        Args:
            name: its name.

        Raises:
            FileExistsError: there is something below it.
        """
        path = self._path(name)
        if self._files(name):
            raise FileExistsError(errno.EEXIST, f"There is something at {self.location(name)} already")
        if self._connection.has_folders:
            self._do("make", name, lambda fs: fs.makedirs(path, exist_ok=True))
        reached("folder made")

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file, durable on return: on S3 in parts, of which several are sent at a time.

        Args:
            name: its name.
            pieces: the bytes, in order; they are kept, and must not change, until the return.
        """
        data = _Joined(pieces)
        path = self._path(name)
        reached("file begun")

        def upload(fs: Any) -> None:
            part = max(_PART_BYTES, -(-len(data) // _MOST_PARTS))
            if len(data) <= part:
                fs.pipe_file(path, data[:])
            elif self._connection.is_s3:
                # Below two parts it sends them as one, which has to be bytes.
                fs.pipe_file(path, data if len(data) >= 2 * part else data[:], chunksize=part)
            else:
                with fs.open(path, "wb", block_size=part) as file:
                    for view in data.views():
                        file.write(view)
            self._check_size(name, self._size(fs, path), len(data))

        self._do("write", name, upload)
        reached("file synced")

    def sync_folder(self, name: str) -> None:
        """Does nothing: what was written is durable.

        Args:
            name: the folder.
        """

    def publish(self, name: str, data: bytes) -> None:
        """Write a file with a single put, which object stores take whole or not at all; replaces one of this name.

        Args:
            name: its name.
            data: its content.
        """
        path = self._path(name)
        reached("manifest synced")

        def put(fs: Any) -> None:
            fs.pipe_file(path, bytes(data))
            self._check_size(name, self._size(fs, path), len(data))

        self._do("write", name, put)
        reached("published")
        reached("published durably")

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is no error.

        Args:
            name: its name.
        """
        path = self._path(name)
        try:
            self._do("remove", name, lambda fs: fs.rm_file(path))
        except FileNotFoundError:
            return

    def remove_folder(self, name: str) -> None:
        """Remove all below a folder; a missing one is no error.

        Args:
            name: its name.

        Raises:
            StorageError: the store kept some of it.
        """
        path = self._path(name)
        others = [f"{path}/{file}" for file in self._files(name) if file != MARK]
        try:
            if others:
                self._do("remove", name, lambda fs: fs.rm(others))
            self._do("remove", name, lambda fs: fs.rm(path, recursive=True))
        except FileNotFoundError:
            return
        # s3fs does not tell when a store refuses to remove some of many.
        kept = self._files(name)
        if kept:
            raise StorageError(
                f"Could not remove {self.location(name)}: it still has {sorted(kept)[:3]}. "
                "Check whether the credentials may delete there."
            )

    def hold(self, folder: str, by: str) -> Callable[[], None]:
        """Keep a folder from ``remove_unread`` by this process while it is read.

        Args:
            folder: its name.
            by: the name of the file in it that stands for the folder.

        Returns:
            A function that lets go; so does its end as an object.

        Raises:
            FileNotFoundError: there is no such file.
        """
        hold = _Hold(self.location(folder))
        try:
            self.size(f"{folder}/{by}")
        except BaseException:
            hold()
            raise
        return hold

    def remove_unread(self, folder: str, first: str) -> bool:
        """Remove a folder unless this process holds it.

        Args:
            folder: its name.
            first: the file in it that stands for it, and is removed before the others.

        Returns:
            Whether it was removed; True also if it was not there.
        """
        with _holding:
            if _held[self.location(folder)]:
                return False
            self.remove(f"{folder}/{first}")
        reached("first removed")
        self.remove_folder(folder)
        reached("folder removed")
        return True

    def _do(self, doing: str, name: str, action: Callable[[Any], _T]) -> _T:
        return self._connection.do(doing, self.location(name), action)

    def _path(self, name: str) -> str:
        return f"{self._connection.root}/{checked_name(name)}"

    def _files(self, folder: str) -> dict[str, int]:
        """All files below a folder; empty if there is none."""
        path = self._path(folder)
        try:
            found = self._do("list", folder, lambda fs: fs.find(path, detail=True))
        except FileNotFoundError:
            return {}
        start = path.strip("/") + "/"
        return {
            name.lstrip("/")[len(start) :]: entry["size"]
            for name, entry in found.items()
            # An object whose name ends with "/" is how some tools mark a folder.
            if entry["type"] == "file" and name.lstrip("/").startswith(start) and not name.endswith("/")
        }

    def _size(self, fs: Any, path: str) -> int:
        fs.invalidate_cache()
        entry = fs.info(path)
        if entry["type"] != "file":
            raise StorageError(errno.EISDIR, f"{path} is a {entry['type']}, not a file.")
        return int(entry["size"])

    def _check_size(self, name: str, received: int, expected: int) -> None:
        if received != expected:
            # May pass: another may just be replacing it.
            raise StorageError(
                errno.EAGAIN, f"{self.location(name)} was transferred with {received} bytes; expected: {expected}."
            )


class _Joined:
    """Pieces as one long ``bytes``, of which only a part that is asked for is copied."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        views = (memoryview(piece) for piece in pieces)
        self._views = [view.cast("B") for view in views if view.nbytes]
        self._ends = list(itertools.accumulate(len(view) for view in self._views))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, part: slice) -> bytes:
        at, stop, _ = part.indices(len(self))
        found: list[memoryview] = []
        while at < stop:
            index = bisect_right(self._ends, at)
            view, end = self._views[index], self._ends[index]
            found.append(view[len(view) - (end - at) : len(view) - (end - stop) if stop < end else len(view)])
            at = end
        return b"".join(found)

    def views(self) -> Iterator[memoryview]:
        """All, without a copy, in views of a few MiB."""
        for view in self._views:
            for start in range(0, len(view), _PIECE_BYTES):
                yield view[start : start + _PIECE_BYTES]


class _Hold:
    """One that holds a folder, until it is called or gone."""

    def __init__(self, url: str) -> None:
        with _holding:
            _held[url] += 1
        self._let_go = weakref.finalize(self, _release, url)

    def __call__(self) -> None:
        self._let_go()


def _release(url: str) -> None:
    with _holding:
        _held[url] -= 1
        if not _held[url]:
            del _held[url]


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
