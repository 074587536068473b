"""StopSignals: a signal only asks for a stop; the loop sees it after the batch."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from trainlab.training.context import TrialContext

__all__ = ["StopSignals"]


class StopSignals:
    """A block in which SIGTERM and SIGINT ask the context for a stop; a second SIGINT aborts.

    In a SLURM job SIGUSR1 and SIGUSR2 ask for it too: ``--signal`` announces the end by them. They are left alone where
    they are ignored, or handled by something that is not Python's (``faulthandler.register``), which could not be put
    back. Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        context: whose stop is asked for.

    Attributes:
        received: the number of the first signal that came, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, context: TrialContext) -> None:
        self._context = context
        self._before: dict[int, Any] = {}
        self._is_ending = False
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            numbers = (*self.SIGNALS, *_announcements())
            self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            default = _let_pass if self._is_ending and number != signal.SIGINT else signal.SIG_DFL
            is_default = handler in (None, signal.SIG_DFL, _let_pass)
            signal.signal(number, default if is_default else handler)

    def end_process(self) -> None:
        """Note that the process comes to its end, in a SLURM job that may send further signals meanwhile.

        They would kill it, where nobody has set a handler, before the run is closed.
        """
        self._is_ending = "SLURM_JOB_ID" in os.environ

    def earlier(self, number: int) -> Callable[[int, FrameType | None], object] | None:
        """Give the handler that a signal had before, if it is one of Python's that somebody has set.

        Args:
            number: of the signal.

        Returns:
            The handler; None if there is none.
        """
        handler = self._before.get(number)
        if not callable(handler) or handler in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, _let_pass):
            return None
        found: Callable[[int, FrameType | None], object] = handler
        return found

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._is_ending and number != signal.SIGINT:
            return
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


def _let_pass(number: int, frame: FrameType | None) -> None:
    """In place of the default, which would end a process that is at its end already."""


def _announcements() -> list[int]:
    """The signals besides SIGTERM by which the end of a job is announced, where nothing else makes use of them."""
    environ = os.environ
    if "SLURM_JOB_ID" not in environ and "SUBMITIT_EXECUTOR" not in environ:
        return []
    named = f"SIG{environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"
    numbers = {signal.SIGUSR1, signal.SIGUSR2, signal.Signals.__members__.get(named, signal.SIGUSR2)}
    foreign = _caught_outside_python()
    return sorted(
        number
        for number in numbers - set(StopSignals.SIGNALS)
        if signal.getsignal(number) is not signal.SIG_IGN and number not in foreign
    )


def _caught_outside_python() -> set[int]:
    """The signals with a handler in C, which Python takes for unset."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set()
    mask = int(next((line.split()[1] for line in text.splitlines() if line.startswith("SigCgt:")), "0"), 16)
    return {
        number
        for number in signal.valid_signals()
        if mask >> (number - 1) & 1 and signal.getsignal(number) in (None, signal.SIG_DFL)
    }
