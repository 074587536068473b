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
            OSError: a file could not be written; what it had not taken yet is lost, and the next record begins anew.
        """
        self._write_pending()
        failed, self._failed = self._failed, None
        for backend in self._backends:
            failed = self._attempt(backend, backend.flush) or failed
        if failed is not None:
            raise failed

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

        The first call leaves files alone that this process made itself. A file that the state does not name, or that
        is another one than the state means (it comes from another run's checkpoint), holds only what will be
        repeated, and is removed. All that is cut is logged.

        Args:
            state: what ``state_dict`` gave for the checkpoint that the run goes on from; None: the run begins anew.

        Raises:
            InvalidValueError: a size is none.
        """
        self.close()
        sizes = {} if state is None else {name: _checked_size(size) for name, size in state["files"].items()}
        begins = {} if state is None else state.get("begins", {})
        for path in self.files():
            if self._earlier is None or path in self._earlier:
                name = path.relative_to(self._folder).as_posix()
                _cut(path, sizes.get(name, 0), bytes.fromhex(begins.get(name, "")))
        self._earlier = None

    def close(self) -> None:
        """Flush and close all backends; further calls do nothing.

        Raises:
            OSError: a file could not be written to its end.
        """
        self._write_pending()
        failed, self._failed = self._failed, None
        for backend in self._backends:
            failed = self._attempt(backend, backend.close) or failed
        if failed is not None:
            raise failed

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, []
        for record in pending:
            for backend in self._backends:
                self._failed = self._attempt(backend, functools.partial(backend.write, record)) or self._failed
        self._written_at = time.monotonic()

    def _attempt(self, backend: Backend, action: Callable[[], None]) -> OSError | None:
        """Let a backend do something. A full disk must not end the training: the next checkpoint will tell of it."""
        try:
            action()
        except OSError as error:
            logger.error(
                "What is recorded cannot be written by %s: %s. What it had not written yet is lost.",
                type(backend).__name__,
                error,
            )
            with contextlib.suppress(OSError):
                backend.close()
            return error
        return None


def _checked_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidValueError(f"The size of a recorded file is an int of at least 0. Received: {size!r}.")
    return size


def _beginning(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(min(size, _BEGINNING))


def _cut(path: Path, size: int, begins: bytes) -> None:
    found = path.stat().st_size
    if size == 0 or not begins.startswith(_beginning(path, min(found, len(begins)))):
        logger.info("Removed %s (%d bytes): nothing of it was recorded before the checkpoint.", path, found)
        path.unlink()
    elif found > size:
        os.truncate(path, size)
        logger.info("Cut %s from %d to %d bytes: the rest was recorded after the checkpoint.", path, found, size)
    elif found < size:
        logger.warning(
            "%s has %d bytes and had %d at the checkpoint: what was recorded in between is lost.", path, found, size
        )
