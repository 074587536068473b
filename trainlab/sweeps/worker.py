"""run_job: what a process of a sweep or a search does."""

import signal
import threading
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.runs.folder_lock import FolderLock, lock_or_holder
from trainlab.runs.listing import read_run

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trainlab.experiments.definition import Experiment

__all__ = ["plain_result", "run_job"]

# What a killed sweep's process may take to end, while the system takes back its memory, or its GPU's.
_ENDING_SECONDS = 60.0
_LOOK_SECONDS = 0.05


def run_job(
    experiment: "Experiment", params: "Mapping[str, Any] | BaseModel", run_dir: Path, *, is_job: bool = False
) -> Any:
    """Run an experiment in a folder; if it was begun there already, go on with it, unless it is finished.

    Args:
        experiment: it.
        params: its parameters by name.
        run_dir: the run's folder.
        is_job: whether this is a job, perhaps one rank of several, of which SLURM has ended the one before. Default
            False.

    Returns:
        What ``plain_result`` makes of what the main function returned; of a run that is finished what its record has.
    """
    from trainlab.experiments.running import run

    # In a script's background Ctrl-C is ignored, and so would be the sweep's asking to end.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not is_job:
        _wait_for_the_one_before(run_dir)
        before = read_run(run_dir)
        if before is not None and before.status == "finished":  # by the process that was waited for
            return before.record.get("result", dict(before.metrics) or None)
    try:
        return plain_result(run(experiment, experiment.read(params), run_dir=run_dir, resumes=True))
    except KeyboardInterrupt:  # the sweep asks for the end: no traceback
        raise SystemExit(128 + signal.SIGINT) from None


def plain_result(returned: Any) -> Any:
    """What is told of what a main function returned; all else stays in its process.

    Args:
        returned: anything.

    Returns:
        A number, or numbers by name; of an object with ``metrics`` these; else None.
    """
    if isinstance(returned, Real):
        return returned
    if isinstance(returned, Mapping):
        return dict(returned) if all(isinstance(value, Real) for value in returned.values()) else None
    metrics = getattr(returned, "metrics", None)
    if not isinstance(metrics, Mapping):
        return None
    return {name: value for name, value in metrics.items() if isinstance(value, Real)}


def _wait_for_the_one_before(run_dir: Path) -> None:
    """Wait until a process that was killed has let go of the folder; who holds it longer is told by the run's start."""
    if not run_dir.exists():
        return
    end = time.monotonic() + _ENDING_SECONDS
    while time.monotonic() < end:
        lock = lock_or_holder(run_dir)
        if isinstance(lock, FolderLock):
            lock.release()
            return
        time.sleep(_LOOK_SECONDS)
