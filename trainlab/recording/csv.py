"""CsvBackend: the run's series as a table of step, tag and value."""

import csv
import io
from pathlib import Path

from trainlab.recording.line_file import LineFile
from trainlab.recording.record import Record, scalars

__all__ = ["CsvBackend"]

# A tag with one of these characters is put into quotes.
_END = "\r\n"


class CsvBackend:
    """Writes each scalar of a record as a row ``step,tag,value`` below a header; the tags are those of TensorBoard.

    Args:
        path: the file, made with the first record.
    """

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path, header="step,tag,value")

    def write(self, record: Record) -> None:
        """Append a record's scalars; what has no value is left out.

        Args:
            record: the record.
        """
        for tag, value in scalars(record):
            self._lines.append(_row(record.batch, tag, value))
        self._lines.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._lines.flush()

    def files(self) -> list[Path]:
        """List the file, if there is one.

        Returns:
            Its path, or nothing.
        """
        return self._lines.files()

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        self._lines.close()


def _row(*cells: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=_END).writerow(cells)
    return text.getvalue().removesuffix(_END)
