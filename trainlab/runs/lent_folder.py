"""LentFolder: a run's folder as ``trainlab.init`` has it inside an experiment, whose folder it is."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainlab.runs.joined_folder import ChiefsLock
from trainlab.runs.run_folder import RunFolder

__all__ = ["LentFolder"]


class LentFolder(RunFolder):
    """An open folder, lent: what is written goes through its owner, who also decides how the run has ended.

    Args:
        owner: the folder.
    """

    def __init__(self, owner: RunFolder) -> None:
        vars(self).update(vars(owner))  # it is the same folder
        self._owner, self._lock = owner, ChiefsLock()

    @property
    def record(self) -> Mapping[str, Any]:
        """What ``run.json`` held when the owner opened the folder."""
        return self._owner.record

    def push(self, files: Iterable[Path] | None = None) -> None:
        """Push, as the owner does.

        Args:
            files: which files. Default: all but the checkpoints.
        """
        self._owner.push(files)

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing: ``params.yaml`` holds the experiment's parameters.

        Args:
            params: not used.
        """

    def write_record(self, **fields: Any) -> None:
        """Put fields into the owner's ``run.json``, but for ``status`` and ``error``, which are the owner's.

        Args:
            **fields: as the owner's.
        """
        self._owner.write_record(**{name: value for name, value in fields.items() if name not in ("status", "error")})

    def note_failure(self, told: str) -> None:
        """Write down at once that the run has failed: this process may not come to its end in order.

        Args:
            told: what went wrong.
        """
        self._owner.note_failure(told)

    def attach_log(self, logger_name: str = "trainlab") -> None:
        """Write what is logged into the owner's log.

        Args:
            logger_name: the logger; default "trainlab".
        """
        self._owner.attach_log(logger_name)

    def attach_users_log(self) -> None:
        """Write what the program's own loggers have to say into the owner's log."""
        self._owner.attach_users_log()

    def close(self) -> None:
        """Push; the owner keeps the folder, and its log open."""
        if self._lock.is_held:
            self._lock.release()
            self._owner.push()
