"""JoinedFolder: a run's folder as the ranks other than the chief have it."""

import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainlab.errors import RunFolderError
from trainlab.runs.folder_lock import FolderLock
from trainlab.runs.masking import Masking
from trainlab.runs.names import RECORD
from trainlab.runs.run_folder import RunFolder

__all__ = ["ChiefsLock", "JoinedFolder"]


class JoinedFolder(RunFolder):
    """A run's folder that the chief holds: this rank has a log of its own there, and the chief writes the rest.

    Args:
        told: what the chief's ``RunFolder.told`` gave.
        rank: which rank this process is, from 1.
        masking: what keeps known secrets out of its log. Default: none are known.

    Raises:
        RunFolderError: this process does not see the folder.
    """

    def __init__(self, told: Mapping[str, Any], rank: int, masking: Masking | None = None) -> None:
        path = Path(told["path"])
        if told["url"] is None and not (path / RECORD).exists():
            raise RunFolderError(
                f"Rank {rank} on {socket.gethostname()} does not see the run's folder. Received: {path}, made by rank "
                "0. Several hosts need a folder that all of them share, or a URL as run_dir (s3://bucket/runs/a)."
            )
        super().__init__(path, told["name"], ChiefsLock(), masking=masking)
        self.url, self.place, self.checkpoints_place = told["url"], told["place"], told["checkpoints_place"]
        self.continues, self.resumes = told["continues"], told["resumes"]
        self.log_file = path / f"log.rank-{rank}.txt"

    def push(self, files: Iterable[Path] | None = None) -> None:
        """Do nothing: the chief pushes.

        Args:
            files: not used.
        """

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing: the chief writes.

        Args:
            params: not used.
        """

    def write_record(self, **fields: Any) -> None:
        """Do nothing: the chief writes.

        Args:
            **fields: not used.
        """

    def attach_log(self, logger_name: str = "trainlab") -> None:
        """Write what is logged, from INFO on, to ``log.rank-1.txt`` or so.

        Args:
            logger_name: The logger; default "trainlab".

        Raises:
            RunFolderError: The file cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)  # of a run on a store, on another host than the chief's
        super().attach_log(logger_name)


class ChiefsLock(FolderLock):
    """In place of the lock, which the chief has, or the owner of a folder that is lent."""

    def __init__(self) -> None:
        self.is_held = True

    def release(self) -> None:
        """Note that the folder is not used any more."""
        self.is_held = False
