"""Outlet: text for a person, whose loss never ends a run."""

import logging
import sys
from typing import TextIO

__all__ = ["Outlet"]

logger = logging.getLogger("trainlab.recording")


class Outlet:
    """Writes text to a stream. Once the stream cannot be written, that is logged, and the rest is dropped.

    Args:
        stream: where to write; None: what ``sys.stderr`` is at the time of each write.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._broken = False

    def write(self, text: str) -> None:
        """Write text and flush; characters that the stream cannot encode become question marks.

        Args:
            text: the text, with its ends of lines.
        """
        stream = sys.stderr if self._stream is None else self._stream
        if stream is None or self._broken:  # a process without a console has no stderr
            return
        try:
            encoding = getattr(stream, "encoding", None)
            stream.write(text.encode(encoding, "replace").decode(encoding) if encoding else text)
            stream.flush()
        except (OSError, ValueError) as error:  # the terminal is gone, a pipe's reader has left, the stream is closed
            self._broken = True
            logger.warning("The display of progress stops, the run goes on: it cannot be written (%s).", error)
