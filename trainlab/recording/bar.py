"""The progress bar's looks, drawn with rich. Imported when a bar is started, so that rich is not loaded before."""

import os
from typing import TextIO

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

__all__ = ["Bar"]

_WIDTH = 24


class Bar:
    """Draws rows for a terminal; writes nothing.

    Args:
        stream: the terminal, whose width and colours are used.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, force_terminal=True, legacy_windows=False)

    def render(self, label: str, fraction: float | None, details: str) -> str:
        """Draw one row, cut to what the terminal's width is now.

        Args:
            label: what stands before the bar.
            fraction: how much is done, from 0 to 1; None draws no bar.
            details: what stands behind it.

        Returns:
            The row as text with colours, without the end of the line.
        """
        self._console.width = os.get_terminal_size(self._stream.fileno()).columns or 80
        room = self._console.width - 1
        parts: list[Text | ProgressBar] = [Text(f"{label} ", style="bold")]
        if fraction is not None and room >= len(label) + _WIDTH + 10:
            parts.append(ProgressBar(total=1.0, completed=fraction, width=_WIDTH))
            details = f" {fraction:4.0%}  {details}"
            room -= _WIDTH
        tail = Text(details)
        tail.truncate(max(room - len(label) - 1, 0), overflow="ellipsis")
        with self._console.capture() as captured:
            for part in (*parts, tail):
                self._console.print(part, end="", no_wrap=True, highlight=False, crop=False)
        return captured.get()
