"""What a store is, and opening one by its path or URL."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.storage.local import LocalStore

__all__ = ["Store", "open_store"]


class Store(Protocol):
    """A folder on some file system: named files in named folders.

    Every method raises OSError (StorageError is one), never anything of the file system's own library.
    Names are relative, with ``/`` between their parts.

    Attributes:
        url: For a person, and to open it again: an absolute path, or a URL without credentials.
        is_local: Whether it is in the file system of this machine.
    """

    url: str
    is_local: bool

    def location(self, name: str = "") -> Path | str:
        """Where a name is.

        Args:
            name: a file or folder; default the store's own folder.

        Returns:
            A path below a local store, the text of a URL below a remote one.
        """
        ...

    def folders(self) -> list[str]:
        """The names of the folders directly in the store.

        Returns:
            The names, sorted, without links; empty if the store's own folder does not exist.
        """
        ...

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
        ...

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
        ...

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
        ...

    def open(self, name: str, *, size: int, checksum: str) -> BinaryIO:
        """Open a file for reading; a remote one through the local cache.

        The bytes are not compared with the checksum. Whoever reads them does, and calls ``forget`` if they differ.

        Args:
            name: its name.
            size: the number of bytes that it should have.
            checksum: the checksum that it should have.

        Returns:
            The file, at its start.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it is no file, or reached through a link; of a remote one, it has another size.
        """
        ...

    def forget(self, name: str, checksum: str) -> None:
        """Drop the cached copy of a file, so that it is fetched anew.

        Args:
            name: its name.
            checksum: the checksum that it should have.
        """
        ...

    def make_folder(self, name: str) -> None:
        """Make a folder, and those above it, durably.

        Args:
            name: its name.

        Raises:
            FileExistsError: there is something of this name, or in an object store below it.
        """
        ...

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a new file, durable on return. What was begun stays on an error.

        Args:
            name: its name, in a folder that was made.
            pieces: the bytes, in order; they must not change until the return.
        """
        ...

    def sync_folder(self, name: str) -> None:
        """Make the names in a folder durable.

        Args:
            name: the folder.
        """
        ...

    def publish(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, durable on return; replaces one of this name.

        Args:
            name: its name, in a folder that was made.
            data: its content.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is no error.

        Args:
            name: its name.
        """
        ...

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all below it; a missing one is no error.

        Args:
            name: its name.
        """
        ...

    def hold(self, folder: str, by: str) -> Callable[[], None]:
        """Keep a folder from ``remove_unread`` while it is read.

        Locally that holds against all processes of the machine, in an object store only against this one.

        Args:
            folder: its name.
            by: the name of the file in it that stands for the folder.

        Returns:
            A function that lets go; it may be called again. So does its end as an object.

        Raises:
            FileNotFoundError: there is no such file, or it has just been removed.
        """
        ...

    def remove_unread(self, folder: str, first: str) -> bool:
        """Remove a folder unless someone holds it. A crash in between leaves it without its ``first``.

        Args:
            folder: its name.
            first: the file in it that stands for it, and is removed before the others.

        Returns:
            Whether it was removed; True also if it was not there.
        """
        ...


def open_store(place: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at a path or URL. Nothing is read or made yet.

    Args:
        place: a path (``~`` is the home folder), a ``file://`` URL, or any other URL that fsspec knows, such as
            ``s3://bucket/folder``.
        storage_options: for the file system of a URL, as fsspec takes them: credentials, endpoint, ...; default none.

    Returns:
        The store.

    Raises:
        InvalidTypeError: ``place`` is no text and no path.
        InvalidValueError: the protocol or an option is not known, or the URL has a password in it.
        MissingDependencyError: the protocol needs a package that is not installed.
    """
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InvalidTypeError(f"A place to store is a path or a URL. Received: {place!r}")
    protocol, separator, rest = text.partition("://")
    if separator and protocol not in {"file", "local"}:
        from trainlab.storage.remote import RemoteStore

        return RemoteStore(text, storage_options or {})
    if storage_options:
        raise InvalidValueError(
            "storage_options are for URLs of other file systems; a folder of this machine takes none. "
            f"Received: {text!r} with the options {sorted(storage_options)}"
        )
    path = rest if separator else text
    if not path:
        raise InvalidValueError(f"A place to store needs a path. Received: {text!r}")
    return LocalStore(os.path.expanduser(path))
