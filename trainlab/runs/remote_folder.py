"""A run's folder on a store, and the copy of it on this machine that the run works in."""

import hashlib
import logging
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from trainlab.errors import InvalidValueError, RunFolderError
from trainlab.runs.names import LOCK, RECORD
from trainlab.storage import Store, open_store, reached
from trainlab.storage.cache import cache_folder

__all__ = ["RemoteFolder", "given_place", "warn_of_another_writer"]

logger = logging.getLogger("trainlab.runs")

# Checkpoints go to the store by themselves, and the lock holds a folder of this machine.
_NOT_COPIED = (LOCK, "checkpoints")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/(?!/)")
# A larger file goes up in parts.
_WHOLE_BYTES = 16 * 2**20
_PIECE_BYTES = 8 * 2**20
# No series is as long; what is, is nothing that a run wrote.
_LARGEST_BYTES = 16 * 2**30

# Size, time of change and inode: two that are equal are of the same content.
_Version = tuple[int, int, int]


class RemoteFolder:
    """The files of a run on a store, with a copy in a working folder; all but the checkpoints.

    Every file on an object store is always a whole one, old or new, at whatever instant a process dies.

    Args:
        store: The folder above that of the run.
        name: The name of the run's folder in it.

    Attributes:
        path: The working folder: ``$TRAINLAB_CACHE/runs/<end of the URL>-<hash>``, for the same URL the same;
            without TRAINLAB_CACHE in ``~/.cache/trainlab``. It must be locked before anything else is done.
        url: The run's URL.

    Raises:
        RunFolderError: The working folder cannot be made.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.url = str(store.location(name))
        self.path = _make_working_folder(self.url)
        self._store = store
        self._name = name
        self._folders: set[str] = set()
        self._pushed: dict[str, _Version] = {}
        self._pushing = threading.Lock()

    def location(self, name: str) -> str:
        """Where a file or folder of the run is on the store.

        Args:
            name: Its name.

        Returns:
            Its URL.
        """
        return str(self._store.location(self._full(name)))

    def fetch(self) -> None:
        """Make the working folder a copy of what the store has; what an earlier process left in it goes.

        Raises:
            RunFolderError: The store cannot be read, holds something else than a run, or the copy cannot be written.
        """
        names = self._remote_names()
        try:
            for entry in self.path.iterdir():
                if entry.name != LOCK:
                    _remove(entry)
            for name in names:
                # A name that leads out of the folder is refused by the store.
                content = self._read(name)
                file = self.path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                self._pushed[name] = _version(file.stat())
                self._folders.add(_parent(self._full(name)))
        except OSError as error:
            raise RunFolderError(
                f"The run's files on {self.url} cannot be copied to {self.path}: {error}. "
                "Set the environment variable TRAINLAB_CACHE to a folder that can be written and has room."
            ) from error

    def push(self, files: Iterable[Path] | None = None) -> None:
        """Copy what changed since the last push to the store, each file at once; what is gone is removed there.

        A file that grows meanwhile is copied as long as it was. Several threads may push; they take turns.

        Args:
            files: Which files, in the working folder. Default: all.

        Raises:
            OSError: A file cannot be read, or the store does not take it. What is missing there is tried again
                with the next push.
        """
        with self._pushing:
            if files is None:
                names = {*self._local_names(), *self._pushed}
            else:
                names = {Path(file).relative_to(self.path).as_posix() for file in files}
            # A record that says how the run ended comes after all that the run left.
            for name in sorted(names, key=lambda name: (name == RECORD, name)):
                self._push_file(name)

    def _push_file(self, name: str) -> None:
        try:
            file = (self.path / name).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if name in self._pushed:
                self._store.remove(self._full(name))
                del self._pushed[name]
            return
        with file:
            version = _version(os.fstat(file.fileno()))
            if version == self._pushed.get(name):
                return
            self._make_folder(_parent(self._full(name)))
            size = version[0]
            if size <= _WHOLE_BYTES:
                self._store.publish(self._full(name), file.read(size))
            else:
                self._store.write(self._full(name), _pieces(file, size))
        self._pushed[name] = version
        reached("run file pushed")

    def _full(self, name: str) -> str:
        return f"{self._name}/{name}"

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            with suppress(FileExistsError):
                self._store.make_folder(folder)
            self._folders.add(folder)

    def _local_names(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self.path, onerror=_raise_unless_gone):
            below = Path(folder).relative_to(self.path)
            if below == Path():
                folders[:] = [name for name in folders if name not in _NOT_COPIED]
            for name in files:
                # A text that is being replaced, or a link to nothing.
                is_temporary = name.startswith(".") and name.endswith(".tmp")
                if not is_temporary and (Path(folder) / name).is_file() and not (below == Path() and name == LOCK):
                    yield (below / name).as_posix()

    def _read(self, name: str) -> bytes:
        try:
            return self._store.read(self._full(name), _LARGEST_BYTES)
        except OSError as error:
            raise _unreadable(f"{self.url}, {name!r}", error) from error

    def _remote_names(self) -> list[str]:
        try:
            found = self._store.files(self._name)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.url, error) from error
        if RECORD not in found:
            raise RunFolderError(
                f"This folder is not empty and holds no run: it has no {RECORD}. Received: {self.url}, "
                f"with {', '.join(sorted(found)[:5])}. "
                "Pass a new or an empty folder as run_dir, or that of the run to go on with."
            )
        return sorted(name for name in found if name.split("/")[0] not in _NOT_COPIED)


def given_place(
    run_dir: str | os.PathLike[str] | None, storage_options: Mapping[str, Any] | None
) -> Path | RemoteFolder | None:
    """Tell a run's folder on this machine from one on a store.

    Args:
        run_dir: A path, or the URL of a file system that fsspec knows; ``file://`` is this machine.
        storage_options: What the file system of a URL asks for: keys, endpoints.

    Returns:
        The path, or the files at the URL; None for None.

    Raises:
        InvalidValueError: The URL cannot be used, or there are options for a local folder.
        MissingDependencyError: The URL asks for a package that is not installed.
        RunFolderError: There is no place for the copy of the files at the URL.
    """
    if run_dir is None:
        if storage_options:
            raise InvalidValueError(
                f"storage_options are for a run_dir that is a URL. Received: {sorted(storage_options)} and no run_dir."
            )
        return None
    text = os.fspath(run_dir)
    if not isinstance(run_dir, str) and _URL_AS_PATH.match(text):
        raise InvalidValueError(f"A Path cannot hold a URL. Received: {run_dir!r}. Pass the URL as text.")
    if not _URL.match(text) and not storage_options:
        return Path(text)
    store = open_store(text, storage_options)
    if store.is_local:
        return Path(store.location())
    above, _, name = store.url.rpartition("/")
    above += "/" if above.endswith(":/") else ""
    return RemoteFolder(open_store(above, storage_options), name)


def warn_of_another_writer(record: Mapping[str, Any], url: str) -> None:
    """Log a warning if the process that wrote a run's record may still be running: a store has no locks.

    Args:
        record: What the run's record holds, before this process changes it.
        url: The run's URL.
    """
    if record.get("status") != "running":
        return
    host, pid = record.get("host"), record.get("pid")
    if host == socket.gethostname() and not _may_live(pid):
        return
    logger.warning(
        "The run at %s says that it is running: in process %s on %s, since %s. Two live processes must not write "
        "one run, and nothing on a store keeps them from it: see that the other one has ended. This one goes on.",
        url,
        pid,
        host,
        record.get("started"),
    )


def _make_working_folder(url: str) -> Path:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", url.rstrip("/").rpartition("/")[2])[:40]
    leaf = f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    try:
        path = cache_folder() / "runs" / leaf
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise RunFolderError(
            f"The folder that a run at a URL works in cannot be made: {error}. Received: {url}. "
            "Set the environment variable TRAINLAB_CACHE to a folder that can be written."
        ) from error
    return path


def _may_live(pid: Any) -> bool:
    """Whether another process of this machine may have this id."""
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return True
    # In a container that is started again, its successor often has the id of the one that died.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _version(found: os.stat_result) -> _Version:
    return found.st_size, found.st_mtime_ns, found.st_ino


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(size, _PIECE_BYTES))):
        size -= len(piece)
        yield piece


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
        return
    with suppress(FileNotFoundError):
        entry.unlink()


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _unreadable(url: str, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"The run's folder cannot be read: {error}. Received: {url}. "
        "See that the URL is right, that it can be reached, and that storage_options give access to it."
    )
