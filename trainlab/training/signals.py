"""StopSignals: a signal only asks for a stop; the loop sees it after the batch."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from trainlab.training.context import TrialContext

__all__ = ["StopSignals"]


class StopSignals:
    """A block in which SIGTERM and SIGINT ask the context for a stop; a second SIGINT aborts.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        context: whose stop is asked for.

    Attributes:
        received: the number of the first signal that came, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, context: TrialContext) -> None:
        self._context = context
        self._before: dict[int, Any] = {}
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None or number == signal.SIGINT:
            self.received = number
        self._context.signalled = True
        self._context.ask_to_stop()
        # A handler may interrupt a write to sys.stderr, whose buffer cannot be entered twice. Where no one reads it any
        # more (Ctrl-C ends `tee` too, a terminal was closed), the run is still to be saved.
        with contextlib.suppress(OSError):
            os.write(
                2,
                f"\n{signal.Signals(number).name}: finishing the batch, then a checkpoint. "
                "Ctrl-C again aborts.\n".encode(),
            )
