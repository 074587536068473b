"""The files of a run, wherever it is: read, listed, and those of its checkpoints."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.runs.listing import RunInfo
from trainlab.storage import Store, open_store

__all__ = ["RunFiles"]

_LARGEST = 2**31
_CHECKPOINTS = "checkpoints"


class RunFiles:
    """The files of a run.

    Args:
        run: The run.
        storage_options: For a URL, what its file system asks for. Default none.
    """

    def __init__(self, run: RunInfo, storage_options: Mapping[str, Any] | None = None) -> None:
        self._run = run
        self._is_local = isinstance(run.path, Path)
        self._store: Store = open_store(run.path, None if self._is_local else storage_options)
        self._options = storage_options

    def read(self, name: str, tail: int = -1) -> bytes:
        """Read a file.

        Args:
            name: Its name in the run's folder.
            tail: How many bytes of its end. Default: all of it.

        Returns:
            The bytes; none if there is no such file.
        """
        try:
            data = self._store.read(name, _LARGEST)
        except FileNotFoundError:
            return b""
        return data if tail < 0 else data[-tail:] if tail else b""

    def sizes(self) -> dict[str, int]:
        """List the files of the run.

        Returns:
            The size of each by its name in the run's folder, sorted; of a link its own.
        """
        if not isinstance(self._run.path, Path):
            above, _, name = str(self._run.path).rpartition("/")
            return dict(sorted(open_store(above, self._options).files(name).items()))
        top = str(self._run.path)
        found: dict[str, int] = {}
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    found[os.path.relpath(path, top)] = os.lstat(path).st_size
                except FileNotFoundError:
                    continue  # a run that goes on has removed it
        return dict(sorted(found.items()))

    @property
    def checkpoints_elsewhere(self) -> str | None:
        """Where the run's checkpoints are, if that is not in its folder."""
        place = self._run.record.get("checkpoint_storage")
        return place if isinstance(place, str) else None

    def checkpoints(self) -> dict[str, int]:
        """List the run's checkpoints, wherever they are.

        Returns:
            The bytes of each by its name, in the order of their names; also of those that were not finished.
        """
        place = self.checkpoints_elsewhere or str(self._store.location(_CHECKPOINTS))
        store = open_store(place, self._options if "://" in place else None)
        return {name: sum(store.files(name).values()) for name in store.folders()}
