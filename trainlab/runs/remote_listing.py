"""The runs below a URL: one listing, and their records read together."""

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

from trainlab.errors import RunFolderError
from trainlab.runs.listing import RunInfo, described
from trainlab.runs.names import PARAMS, RECORD, SERIES, TAGS
from trainlab.storage.connection import Connection

__all__ = ["find_remote_runs", "read_remote_run", "remote_run_folders"]

# How many are read at a time.
_TOGETHER = 500
# No record is as long.
_LARGEST = 2**26


def find_remote_runs(url: str, storage_options: Mapping[str, Any] | None) -> list[RunInfo]:
    """Read all runs below a URL.

    Args:
        url: It.
        storage_options: For its file system.

    Returns:
        The runs, in no order.

    Raises:
        RunFolderError: There is nothing.
        StorageError: The store cannot be read.
    """
    place = _Place(url, storage_options)
    folders = _runs_in(place.files())
    place.read_together(
        f"{folder}{name}" for folder, names in folders.items() for name in (RECORD, TAGS) if name in names
    )
    return [place.described(folder, names) for folder, names in folders.items()]


def read_remote_run(url: str, storage_options: Mapping[str, Any] | None) -> RunInfo | None:
    """Read one run.

    Args:
        url: Its URL.
        storage_options: For its file system.

    Returns:
        The run; None if there is none.
    """
    place = _Place(url, storage_options)
    names = {name for name in (RECORD, TAGS, PARAMS, SERIES) if place.has(name)}
    return place.described("", names) if RECORD in names else None


def remote_run_folders(url: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    """Find the folders of all runs below a URL.

    Args:
        url: It.
        storage_options: For its file system.

    Returns:
        Their URLs.

    Raises:
        RunFolderError: There is nothing.
    """
    place = _Place(url, storage_options)
    return [place.location(folder) for folder in _runs_in(place.files())]


class _Place:
    """What is at a URL; names are relative to it."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self._connection = Connection(url, storage_options or {})
        self._read: dict[str, bytes] = {}

    def location(self, name: str) -> str:
        return f"{self._connection.url}/{name}".rstrip("/")

    def files(self) -> list[str]:
        root = self._connection.root
        found = self._connection.do("list", self._connection.url, lambda fs: fs.find(root))
        start = root.strip("/") + "/" if root.strip("/") else ""
        names = [name.lstrip("/").removeprefix(start) for name in found]
        if not names:
            raise RunFolderError(
                f"There is nothing here. Received: {self._connection.url}. Pass the URL that the runs are below."
            )
        return names

    def has(self, name: str) -> bool:
        path = f"{self._connection.root}/{name}"
        return self._connection.do("read", self.location(name), lambda fs: bool(fs.isfile(path)))

    def read_together(self, names: Iterable[str]) -> None:
        """Read files at the same time, where the file system can; one that fails is read alone when it is needed."""
        wanted = list(names)
        for start in range(0, len(wanted), _TOGETHER):
            part = wanted[start : start + _TOGETHER]
            paths = [f"{self._connection.root}/{name}" for name in part]
            got = self._connection.do("read", self._connection.url, functools.partial(_read_all, paths=paths))
            self._read |= {name: data for name, data in zip(part, got, strict=True) if isinstance(data, bytes)}

    def read(self, name: str, tail: int) -> bytes:
        if name in self._read:
            return self._read.pop(name)
        path = f"{self._connection.root}/{name}"
        start = -tail if tail >= 0 else None
        data: bytes = self._connection.do("read", self.location(name), lambda fs: _cut(fs, path, start))
        return data

    def described(self, folder: str, names: Iterable[str]) -> RunInfo:
        # Nobody holds a run on a store: what its record says is all there is to know.
        return described(
            self.location(folder), set(names), lambda name, tail: self.read(f"{folder}{name}", tail), lambda _: True
        )


def _read_all(fs: Any, paths: list[str]) -> list[Any]:
    """Whole files, or the error of each that cannot be read; unlike `cat` it takes no name for a pattern."""
    # Without an end s3fs would ask for the size of each first.
    return list(fs.cat_ranges(paths, 0, _LARGEST, on_error="return"))


def _cut(fs: Any, path: str, start: int | None) -> Any:
    """A file, or its end, which may be longer than the file."""
    if start is None:
        return fs.cat_file(path)
    size = fs.info(path)["size"]
    return fs.cat_file(path, start=max(0, size + start), end=size) if size else b""


def _runs_in(files: Iterable[str]) -> dict[str, set[str]]:
    """The runs' folders, "" or ending in "/", each with the names of its files."""
    by_folder: dict[str, set[str]] = {}
    for file in files:
        folder, name = os.path.split(file)
        by_folder.setdefault(f"{folder}/" if folder else "", set()).add(name)
    found = {folder: names for folder, names in by_folder.items() if RECORD in names}
    return {folder: names for folder, names in found.items() if not _is_inside_of_another(folder, found)}


def _is_inside_of_another(folder: str, runs: Mapping[str, Any]) -> bool:
    """Whether it is in a run's folder, and not among that run's own runs."""
    parts = folder.split("/")[:-1]
    above = ["/".join([*parts[:count], ""]) for count in range(len(parts))]
    return any(run in runs and not folder[len(run) :].startswith("runs/") for run in above)
