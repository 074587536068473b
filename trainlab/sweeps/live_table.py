"""LiveTable: what the tables of sweeps and searches have in common, a place on the terminal and lines elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from typing_extensions import Self

__all__ = ["LiveTable"]


class LiveTable:
    """A table that is kept up to date on a terminal until the end of its ``with`` block, and stays there whole.

    Args:
        console: where to show it. Default None: standard error.
        is_shown: False for nothing at all. Default True.
    """

    def __init__(self, console: "Console | None" = None, *, is_shown: bool = True) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True)
        self._is_shown = is_shown
        self._live: Live | None = None
        self._begun = time.monotonic()

    def __enter__(self) -> "Self":
        if self._is_shown and self._console.is_terminal:
            from rich.live import Live

            # What stays at the end is printed then, all of it.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._console.print(self._whole())

    def say(self, text: str) -> None:
        """Print a line that stays.

        Args:
            text: the line.
        """
        if self._is_shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _whole(self) -> "Table":
        """All that there is to tell, at the end."""
        raise NotImplementedError
