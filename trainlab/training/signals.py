"""StopSignals: a signal only asks for a stop; the loop sees it after the batch. EarlySignals: it waits for the loop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainlab.distributed.slurm import in_batch_job

if TYPE_CHECKING:
    from trainlab.training.context import TrialContext

__all__ = ["EarlySignals", "StopSignals"]

# The signal that came while no fit was there to obey it; a process has one, however many runs it opens.
_waiting: list[int] = []


class EarlySignals:
    """From the opening of a run to its end in a SLURM batch job: what announces the job's end waits for the next fit.

    While models are built or data are loaded the default action would fail the job, instead of requeueing it. Handlers
    of anybody else are left alone. Outside of a batch job, and of the main thread, it does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread() and in_batch_job(os.environ):
            numbers = (signal.SIGTERM, *_announcements())
            foreign = _caught_outside_python()
            wanted = [one for one in numbers if _is_unset(signal.getsignal(one)) and one not in foreign]
            self._before = {number: signal.signal(number, _wait) for number in wanted}

    def close(self) -> None:
        """Put back what was there before: the default action, or what ends an experiment's run."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                if signal.getsignal(number) is _wait:
                    signal.signal(number, signal.SIG_DFL if handler in (None, _wait, _let_pass) else handler)

    @staticmethod
    def take() -> int | None:
        """Give the signal that still waits, which then waits no more; None if there is none."""
        number = _waiting[0] if _waiting else None
        _waiting.clear()
        return number


class StopSignals:
    """A block in which SIGTERM and SIGINT ask the context for a stop; a second SIGINT aborts.

    In a SLURM job SIGUSR1 and SIGUSR2 ask for it too: ``--signal`` announces the end by them. They are left alone where
    they are ignored, or handled by something that is not Python's (``faulthandler.register``), which could not be put
    back. One that has come before, and waits, counts as well. Outside the main thread, where Python allows no handlers,
    it does nothing.

    Args:
        context: whose stop is asked for.

    Attributes:
        received: the number of the first signal that came, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, context: "TrialContext") -> None:
        self._context = context
        self._before: dict[int, Any] = {}
        self._is_ending = False
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            numbers = (*self.SIGNALS, *_announcements())
            self._before = {number: signal.signal(number, self._ask) for number in numbers}
            if (waiting := EarlySignals.take()) is not None:
                self._ask(waiting, None)
        return self

    def __exit__(self, *exception: object) -> None:
        """Put back the handlers that were there before; what came too late for this fit waits for the next."""
        if self.received is not None and self._before.get(self.received) is _wait and not self._is_ending:
            _waiting.append(self.received)
        for number, handler in self._before.items():
            if _is_unset(handler) and self._is_ending and number != signal.SIGINT:
                handler = _let_pass
            elif handler in (None, _let_pass):
                handler = signal.SIG_DFL
            signal.signal(number, handler)

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
        if not callable(handler) or _is_unset(handler) or handler in (signal.SIG_IGN, signal.default_int_handler):
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
        _tell(number, "finishing the batch, then a checkpoint. Ctrl-C again aborts.")


def _wait(number: int, frame: FrameType | None) -> None:
    """In place of the default, while a run is open and no fit trains."""
    if not _waiting:
        _tell(number, "noted; the next fit makes a checkpoint, and ends.")
        _waiting.append(number)


def _let_pass(number: int, frame: FrameType | None) -> None:
    """In place of the default, which would end a process that is at its end already."""


# What a signal has for which nobody has set a handler.
_UNSET = (None, signal.SIG_DFL, _let_pass, _wait)


def _is_unset(handler: Any) -> bool:
    """Tell whether nobody has set a handler; what ends an experiment's run stands in for the default, too."""
    return handler in _UNSET or getattr(handler, "ends_run", False)


def _forget() -> None:
    """In a forked child, which no fit of this process's stops: SIGTERM ends it, what else SLURM sends does not."""
    _waiting.clear()
    for number in signal.valid_signals():
        if signal.getsignal(number) is _wait:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else _let_pass)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _tell(number: int, text: str) -> None:
    # A handler may interrupt a write to sys.stderr, whose buffer cannot be entered twice. Where no one reads it any
    # more (Ctrl-C ends `tee` too, a terminal was closed), the run is still to be saved.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{signal.Signals(number).name}: {text}\n".encode())


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
