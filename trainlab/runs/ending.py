"""How a run ends: its status, by what came out of it. No torch."""

import signal

__all__ = ["STATUSES", "Preempted", "ended_by_signal", "name_of_signal", "status_of", "told_error"]

STATUSES = ("running", "finished", "failed", "interrupted", "preempted")


class Preempted(SystemExit):
    """Ends a run that a signal has stopped and whose job is back in SLURM's queue, to go on later."""


def status_of(error: BaseException | None) -> str:
    """Tell how a run has ended.

    Args:
        error: what came out of it; None for nothing.

    Returns:
        "finished" (``sys.exit(0)``, too), "preempted", "interrupted" (Ctrl-C, or another signal) or "failed".
    """
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    if isinstance(error, Preempted):
        return "preempted"
    return "interrupted" if isinstance(error, KeyboardInterrupt) or ended_by_signal(error) else "failed"


def ended_by_signal(error: BaseException | None) -> bool:
    """Tell whether an error is a SystemExit with the status of a signal: 128 and its number."""
    if not isinstance(error, SystemExit) or not isinstance(error.code, int):
        return False
    return error.code - 128 in signal.valid_signals()


def name_of_signal(number: int) -> str:
    """Give the name of a signal: "SIGTERM"; of one that has none, such as a real-time signal, "signal 40"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def told_error(error: BaseException | None) -> str | None:
    """Give an error as text for the run's record: its class and message; None where a run has finished."""
    if status_of(error) == "finished":
        return None
    try:
        message = str(error)
    except Exception:  # the user's __str__ may raise anything, or give no text
        message = "<its message cannot be told>"
    return f"{type(error).__name__}: {message}"
