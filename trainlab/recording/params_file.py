"""The file of a recorder's parameters."""

from pathlib import Path

from trainlab.runs.run_record import rewrite

__all__ = ["ParamsFile"]


class ParamsFile:
    """The file ``recorded_params.yaml``, which is whole or as it was before.

    Args:
        folder: the folder that it is in.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "recorded_params.yaml"

    def exists(self) -> bool:
        """Tell whether parameters were written.

        Returns:
            Whether they were.
        """
        return self._path.exists()

    def holds(self, text: str) -> bool:
        """Tell whether this is what was written.

        Args:
            text: YAML.

        Returns:
            Whether it is.
        """
        return self.exists() and self._path.read_bytes() == text.encode()

    def write(self, text: str) -> None:
        """Write parameters in the place of those that are there.

        Args:
            text: YAML.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rewrite(self._path, text)

    def remove(self) -> None:
        """Remove it, if it is there."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Do nothing: it is whole when it is written."""
