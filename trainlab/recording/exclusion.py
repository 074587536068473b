"""Exclusion: keeps the recorders of other processes out of a folder."""

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from trainlab.errors import InvalidStateError

__all__ = ["Exclusion"]


class Exclusion:
    """A lock of a folder itself, until it is ended or this process is; a forked child does not have it.

    Where folders cannot be locked, or there can be no folder, nobody is kept out.

    Args:
        folder: the folder, which is made.

    Raises:
        InvalidStateError: another process has it, or this one.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):  # whoever writes there is told
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._descriptor is None:
            return
        _all.add(self)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.leave_to_parent()
            raise InvalidStateError(
                "Another Recorder writes to this folder, that of another process or one that was given another path, "
                f"and two would cut each other's files. Received: {folder}. Wait until it has ended, or pass an "
                "output_dir of its own."
            ) from error
        except OSError:  # a file system without locks
            self.leave_to_parent()

    def end(self) -> None:
        """Let the folder go; further calls do nothing."""
        if self._descriptor is not None:
            # A child that was forked this instant may not have closed its copy yet.
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.leave_to_parent()

    def leave_to_parent(self) -> None:
        """Close the descriptor alone: to unlock would unlock the parent's."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_all: "weakref.WeakSet[Exclusion]" = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for exclusion in list(_all):
        exclusion.leave_to_parent()


# A worker that outlives a killed loop would hold the folder with its copy of the descriptor.
os.register_at_fork(after_in_child=_leave_all_to_parent)
