"""LineFile: a text file that only grows, by whole lines, and survives a process that died while writing."""

import logging
from pathlib import Path
from typing import BinaryIO

__all__ = ["LineFile"]

logger = logging.getLogger("trainlab.recording")

_TAIL = 65_536


class LineFile:
    """A file of lines, opened when the first one is written and kept open.

    Args:
        path: the file; it is appended to, after a torn last line has been cut off.
        header: the first line of a new file; None (default) for none.
    """

    def __init__(self, path: Path, header: str | None = None) -> None:
        self._path = Path(path)
        self._header = header
        self._file: BinaryIO | None = None

    def append(self, line: str) -> None:
        """Write one line.

        Args:
            line: its text, without the end of the line.

        Raises:
            OSError: the file cannot be written.
        """
        if self._file is None:
            self._file = self._open()
            if self._header is not None and self._file.tell() == 0:
                self._file.write(self._header.encode() + b"\n")
        self._file.write(line.encode() + b"\n")

    def flush(self) -> None:
        """Hand all lines to the operating system."""
        if self._file is not None:
            self._file.flush()

    def files(self) -> list[Path]:
        """List the file, if there is one.

        Returns:
            The path, or nothing.
        """
        return [self._path] if self._path.exists() else []

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _open(self) -> BinaryIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            _cut_torn_line(self._path)
        return self._path.open("ab")


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        size = keep = file.seek(0, 2)
        while keep:
            start = max(keep - _TAIL, 0)
            file.seek(start)
            end = file.read(keep - start).rfind(b"\n")
            if end >= 0:
                keep = start + end + 1
                break
            keep = start
        if keep < size:
            file.truncate(keep)
            logger.info("Cut a torn last line of %d bytes off %s.", size - keep, path)
