"""ConsoleBackend: what is recorded, as lines for a person."""

from pathlib import Path

from trainlab.recording.line import SEPARATOR, values
from trainlab.recording.outlet import Outlet
from trainlab.recording.record import Record, scalars

__all__ = ["ConsoleBackend"]


class ConsoleBackend:
    """Writes each record as a line to ``sys.stderr``."""

    def __init__(self) -> None:
        self._outlet = Outlet(None)

    def write(self, record: Record) -> None:
        """Write a record's scalars in a line.

        Args:
            record: the record.
        """
        self._outlet.write(SEPARATOR.join([f"step {record.batch}", *values(dict(scalars(record)))]) + "\n")

    def flush(self) -> None:
        """Do nothing: each line is written at once."""

    def files(self) -> list[Path]:
        """Return no files."""
        return []

    def close(self) -> None:
        """Do nothing."""
