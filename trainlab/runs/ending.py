"""How a run ends: its status, by what came out of it. No torch."""

import signal

__all__ = ["STATUSES", "Preempted", "ended_by_signal", "status_of", "told_error"]

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


def told_error(error: BaseException | None) -> str | None:
    """Give an error as one line for the run's record: its class and message; None where a run has finished."""
    return None if status_of(error) == "finished" else f"{type(error).__name__}: {error}"
