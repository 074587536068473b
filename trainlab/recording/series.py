"""Series: hands each record to all backends, and keeps their files at one with the checkpoint a run goes on from."""

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainlab.errors import InvalidValueError
from trainlab.recording.record import Record

__all__ = ["Backend", "Series"]

logger = logging.getLogger("trainlab.recording")

# Each write wakes the threads of backends, which then take turns with the training: not more often than this.
_WRITE_SECONDS = 1.0
# A backend that has failed, as on a full disk, is tried again after this, or at a flush.
_RETRY_SECONDS = 30.0
# A file is known again by its first bytes: they hold the time of its first record.
_BEGINNING = 128


class Backend(Protocol):
    """One form in which a run's series are written, to files that only grow."""

    def write(self, record: Record) -> None:
        """Write a record.

        Args:
            record: the record.
        """

    def flush(self) -> None:
        """Hand all that was written to the operating system: a process killed afterwards loses none of it."""

    def files(self) -> list[Path]:
        """List the files that there are, of earlier processes too.

        Returns:
            Their paths, in the run's folder.
        """

    def close(self) -> None:
        """Flush and close; a later ``write`` opens again."""


class Closable(Protocol):
    """What writes, and can be told to begin anew."""

    def close(self) -> None:
        """Let go of what is open."""


class Series:
    """The series of a run, each step once after any number of crashes and resumes.

    A checkpoint holds how long each file was (``state_dict``). A run that resumes from it cuts the files back to that
    (``restore``), so what a dead process wrote after the checkpoint is written once, by the process that repeats it.

    Args:
        folder: the run's folder; no other process writes there.
        backends: where records go, in this order.
    """

    def __init__(self, folder: Path, backends: Sequence[Backend]) -> None:
        self._folder = Path(folder)
        self._backends = list(backends)
        self._pending: list[Record] = []
        self._written_at = -math.inf
        # Why records were lost since the last flush, which tells of it.
        self._failed: OSError | None = None
        # What cannot write, since when, and why.
        self._failing: dict[Closable, tuple[float, OSError]] = {}
        # What a Trial writes while it is built is no repetition: the first restore leaves files made since alone.
        self._earlier: set[Path] | None = set(self.files())

    def record(self, record: Record) -> None:
        """Write a record to all backends, at once or, where records come fast, with the next ones.

        Args:
            record: the record.
        """
        self._pending.append(record)
        if time.monotonic() - self._written_at >= _WRITE_SECONDS:
            self._write_pending()

    def flush(self) -> None:
        """Hand all that was recorded to the operating system: a process killed afterwards loses none of it.

        Raises:
            OSError: a file could not be written; what it had not taken yet is lost.
        """
        self._finish([(backend, backend.flush) for backend in self._backends])

    def files(self) -> list[Path]:
        """List the files of all backends that there are.

        Returns:
            Their paths, in the run's folder.
        """
        return [path for backend in self._backends for path in backend.files()]

    def state_dict(self) -> dict[str, Any]:
        """Give the position of the recording, after a flush.

        Returns:
            ``files``: the size in bytes of each file, by its path relative to the run's folder; ``begins``: its first
            bytes, in hexadecimal, by which it is known again.
        """
        self.flush()
        files = {path.relative_to(self._folder).as_posix(): path for path in self.files()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        return {
            "files": sizes,
            "begins": {name: _beginning(path, sizes[name]).hex() for name, path in files.items()},
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Cut the files back to a checkpoint, before anything is recorded after it.

        The first call leaves files alone that this process made itself, but those that the state knows. A file that
        the state does not name, or that is another one than the state means (it comes from another run's checkpoint),
        holds only what will be repeated, and is removed. All that is cut is logged.

        Args:
            state: what ``state_dict`` gave for the checkpoint that the run goes on from; None: the run begins anew.

        Raises:
            InvalidValueError: a size is none.
        """
        self.close()
        sizes = {} if state is None else {name: _checked_size(size) for name, size in state["files"].items()}
        begins = {} if state is None else state.get("begins", {})
        for path in self.files():
            name = path.relative_to(self._folder).as_posix()
            begin = bytes.fromhex(begins.get(name, ""))
            if self._earlier is None or path in self._earlier or (begin and _begins_so(path, begin)):
                _cut(path, sizes.get(name, 0), begin)
        self.go_on()

    def go_on(self) -> None:
        """Take what is written from here on for the run's own series: a later ``restore`` cuts it, too."""
        self._earlier = None

    def attempt(self, writer: Closable, action: Callable[[], None]) -> None:
        """Let something write into the run's folder. A full disk must not end the training: the next flush tells of it.

        After a failure nothing is attempted for a while, and what was to be written is lost.

        Args:
            writer: what writes; it is closed if it fails.
            action: its writing.
        """
        since, error = self._failing.get(writer, (-math.inf, None))
        if time.monotonic() - since < _RETRY_SECONDS:
            self._failed = error
        else:
            self._failed = self._error_of(writer, action) or self._failed

    def close(self) -> None:
        """Flush and close all backends; further calls do nothing.

        Raises:
            OSError: a file could not be written to its end.
        """
        self._finish([(backend, backend.close) for backend in self._backends])

    def _finish(self, actions: Sequence[tuple[Backend, Callable[[], None]]]) -> None:
        """Write what is pending, also where writing has just failed, and then do the rest; tell of all failures."""
        lost, self._failed = self._failed, None
        pending, self._pending = self._pending, []
        for backend, action in actions:
            for step in (functools.partial(_write_all, backend, pending), action):
                self._failed = self._error_of(backend, step) or self._failed
        self._written_at = time.monotonic()
        failed, self._failed = self._failed or lost, None
        if failed is not None:
            raise failed
        self._failing.clear()

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, []
        for backend in self._backends:
            self.attempt(backend, functools.partial(_write_all, backend, pending))
        self._written_at = time.monotonic()

    def _error_of(self, writer: Closable, action: Callable[[], None]) -> OSError | None:
        try:
            action()
        except OSError as error:
            if writer not in self._failing:
                logger.error(
                    "What is recorded cannot be written by %s: %s. Until it can, what it had not written is lost.",
                    type(writer).__name__,
                    error,
                )
            self._failing[writer] = (time.monotonic(), error)
            with contextlib.suppress(OSError):
                writer.close()
            return error
        return None


def _write_all(backend: Backend, records: Sequence[Record]) -> None:
    for record in records:
        backend.write(record)


def _checked_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidValueError(f"The size of a recorded file is an int of at least 0. Received: {size!r}.")
    return size


def _beginning(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(min(size, _BEGINNING))


def _begins_so(path: Path, begins: bytes) -> bool:
    return begins.startswith(_beginning(path, len(begins)))


def _cut(path: Path, size: int, begins: bytes) -> None:
    found = path.stat().st_size
    if size == 0 or not _begins_so(path, begins):
        logger.info("Removed %s (%d bytes): nothing of it was recorded before the checkpoint.", path, found)
        path.unlink()
    elif found > size:
        os.truncate(path, size)
        logger.info("Cut %s from %d to %d bytes: the rest was recorded after the checkpoint.", path, found, size)
    elif found < size:
        logger.warning(
            "%s has %d bytes and had %d at the checkpoint: what was recorded in between is lost.", path, found, size
        )
