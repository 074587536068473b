"""What a rank prints goes into its run's ``log.rank-<rank>.txt`` while the run is open."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainlab.runs.folder_lock import unusable
from trainlab.runs.masking import Masking

__all__ = ["RankOutput"]

logger = logging.getLogger("trainlab.runs")

_STREAMS = ("stdout", "stderr")
_PIECE_BYTES = 2**20


class RankOutput:
    """The file of a rank's output, from ``open`` to ``close``.

    Of several open runs of this process, the one that was opened last gets what is printed; when it closes, the one
    before it does again.

    Args:
        file: The file.
        masking: What keeps known secrets out of what Python code prints there.
    """

    def __init__(self, file: Path, masking: Masking) -> None:
        self.file, self.masking = file, masking
        try:
            file.parent.mkdir(parents=True, exist_ok=True)  # of a run on a store, on another host than the chief's
            self.descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise unusable(file, "opened", error) from error

    @classmethod
    def open(cls, folder: Path, rank: int, masking: Masking | None = None) -> "RankOutput | None":
        """Begin to write what this process prints into the run's folder, as far as its launcher asked for that.

        With TRAINLAB_LOG, the file that standard output and error go to: all that this process and its children
        print, what that file got before too. With TRAINLAB_CONSOLE_COPY=1: what Python code prints, which is shown
        on the console all the same; but nothing that moves the cursor, such as a progress bar.

        Args:
            folder: The run's folder.
            rank: Which rank this process is.
            masking: What keeps known secrets out of what Python code prints there. Default: none are known.

        Returns:
            The output, to be closed; None if nobody asked for it.

        Raises:
            RunFolderError: The file cannot be opened.
        """
        captured, copies = os.environ.get("TRAINLAB_LOG"), os.environ.get("TRAINLAB_CONSOLE_COPY")
        if not captured and copies != "1":
            return None
        output = cls(folder / f"log.rank-{rank}.txt", Masking() if masking is None else masking)
        if captured:
            _moved.append(output)
            _captured.move(Path(captured), output.descriptor)
        else:
            _copied.append(output)
        _console.watch()
        return output

    def close(self) -> None:
        """Let what is printed go where it went before."""
        if self in _moved:
            _moved.remove(self)
            _captured.lead_to(_moved[-1].descriptor if _moved else None)
        if self in _copied:
            _copied.remove(self)
        if not _copied and not _moved:
            _console.leave()
        os.close(self.descriptor)


class _Captured:
    """Standard output and error, as far as they go to a file of the launcher's."""

    def __init__(self) -> None:
        self._own: dict[int, int] = {}

    def move(self, file: Path, target: int) -> None:
        """Let them go to another file, and move there what they wrote before.

        Args:
            file: The launcher's.
            target: The descriptor of the other one.
        """
        try:
            if not self._own:
                # Of a child of a rank, somebody else may read what it prints.
                ours = [number for number in (1, 2) if os.path.samestat(os.fstat(number), file.stat())]
                self._own = {number: os.dup(number) for number in ours}
            self.lead_to(target)
            self._move(file, target)
        except OSError as error:
            logger.warning("What this rank prints may be in %s alone: %s", file, error)

    def has(self, stream: Any) -> bool:
        """Tell whether a stream is one of them."""
        try:
            return stream.fileno() in self._own
        except (AttributeError, OSError, ValueError):  # of one that is in memory, or closed
            return False

    def lead_to(self, target: int | None) -> None:
        """Let them go to another file.

        Args:
            target: Its descriptor; None: the launcher's.
        """
        _flush()
        for number, own in self._own.items():
            os.dup2(own if target is None else target, number)
            if target is None:
                os.close(own)
        if target is None:
            self._own = {}

    @staticmethod
    def _move(file: Path, target: int) -> None:
        with file.open("rb") as source:
            while piece := source.read(_PIECE_BYTES):
                _write_all(target, piece)
        os.truncate(file, 0)  # who writes there appends


class _Console:
    """``sys.stdout`` and ``sys.stderr``, whose ``write`` also writes into the last open run's file, without secrets.

    Where they lead to that file themselves, it writes there alone.

    The streams stay the same objects, for log handlers and progress bars have them already.
    """

    def __init__(self) -> None:
        self._watched: list[tuple[Any, Any, Any]] = []

    def watch(self) -> None:
        """Begin."""
        if self._watched:
            return
        for stream in {id(stream): stream for name in _STREAMS if (stream := getattr(sys, name)) is not None}.values():
            try:
                before, write = vars(stream).get("write"), _watched(stream)
                stream.write = write
            except (AttributeError, TypeError) as error:  # somebody's own stream
                logger.warning("What goes to %r cannot be copied into the run's folder: %s", stream, error)
            else:
                self._watched.append((stream, write, before))

    def leave(self) -> None:
        """Leave them alone again."""
        for stream, write, before in self._watched:
            if vars(stream).get("write") is not write:
                continue  # somebody else has put another one there, which calls this one
            if before is None:
                del stream.write
            else:
                stream.write = before
        self._watched.clear()


def _watched(stream: Any) -> Callable[[str], int]:
    write: Callable[[str], int] = stream.write

    def write_and_copy(text: str, /) -> int:
        if _moved and _captured.has(stream):
            write(_moved[-1].masking.text(text))
            return len(text)
        count = write(text)
        if _copied and "\r" not in text and "\x1b" not in text:
            _copy(_copied[-1], text)
        return count

    return write_and_copy


def _copy(output: RankOutput, text: str) -> None:
    try:
        _write_all(output.descriptor, output.masking.text(text).encode("utf-8", "backslashreplace"))
    except OSError as error:  # a full disk must not end the training, or the printing
        _copied.remove(output)
        logger.warning("%s gets no more of what is printed: %s", output.file, error)


def _flush() -> None:
    for name in _STREAMS:
        stream = getattr(sys, name)
        if stream is not None and not stream.closed:
            with contextlib.suppress(OSError):  # as in any print, who wrote there is told of it
                stream.flush()


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


# The open ones, in the order of their opening.
_moved: list[RankOutput] = []
_copied: list[RankOutput] = []
_captured = _Captured()
_console = _Console()
