"""How a program with an experiment ends: by a signal in good order, and with which exit status."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainlab.errors import RankFailedError

__all__ = ["exit_status", "signals_end_run", "told_failure"]

# These would kill the process where it stands; Ctrl-C raises KeyboardInterrupt in any Python program.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_end_run() -> Iterator[None]:
    """In this block SIGTERM and SIGHUP raise SystemExit(128 + n), once, so that a run is brought to its end.

    Handlers of anybody else are left alone, and a ``fit`` inside of the block has its own. Outside the main thread it
    does nothing. On a rank that trainlab has launched, Ctrl-C raises what is a SystemExit(130) too: the launcher ends
    all ranks by these signals, so that the end of one is no failure that the others hear of.

    Yields:
        None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = {number: _end for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL}
    if _is_launched() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        taken[signal.SIGINT] = _interrupt
    for number, handler in taken.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) in _OURS:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class _Interrupted(SystemExit, KeyboardInterrupt):
    """Ctrl-C on a rank; a program may catch it as it does anywhere."""


def _end(number: int, frame: FrameType | None) -> None:
    # Who ends a process may send more than one, and what ends it is not to be cut short by the next.
    signal.signal(number, _let_pass)
    _expect_exit()
    raise SystemExit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.default_int_handler)  # again means at once
    _expect_exit()
    raise _Interrupted(128 + number)


def _let_pass(number: int, frame: FrameType | None) -> None:
    """The run comes to its end already."""


def _is_launched() -> bool:
    return "TRAINLAB_AGENT_PID" in os.environ


def _expect_exit() -> None:
    if _is_launched() and "trainlab.distributed" in sys.modules:
        from trainlab.distributed import get_context

        get_context().watchdog.expect_exit()


_OURS = (_end, _interrupt, _let_pass)
# To a fit, they are no handlers of the user's.
for _handler in _OURS:
    _handler.ends_run = True  # type: ignore[attr-defined]


def exit_status(error: BaseException) -> int:
    """The exit status of a program that an error ends.

    Args:
        error: what came out of the experiment's run.

    Returns:
        That of the rank or process that failed, 128 + n after signal n; 1 for any other error.
    """
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    code = error.exitcode if isinstance(error, RankFailedError) else None
    return 1 if not code else code if code > 0 else 128 - code


def told_failure(error: RankFailedError) -> str:
    """What is said on the console of a rank's or a process's failure.

    Args:
        error: of it.

    Returns:
        One sentence, and the traceback, unless that is on the console already: rank 0 and processes of their own
        show theirs themselves.
    """
    is_shown = error.rank in (0, None)
    return str(error).split("\n\nTraceback", maxsplit=1)[0] if is_shown else str(error)
