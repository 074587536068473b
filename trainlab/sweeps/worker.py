"""run_job: what a process of a sweep or a search does."""

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.runs.folder_lock import FolderLock, lock_or_holder
from trainlab.runs.listing import RunInfo, read_run

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trainlab.experiments.definition import Experiment

__all__ = ["is_whole", "run_job"]

# What a killed sweep's process may take to end, while the system takes back its memory, or its GPU's.
_ENDING_SECONDS = 60.0
_LOOK_SECONDS = 0.05


def run_job(
    experiment: "Experiment", params: "Mapping[str, Any] | BaseModel", run_dir: Path, *, is_job: bool = False
) -> None:
    """Run an experiment in a folder; if it was begun there already, go on with it, unless it is finished.

    Args:
        experiment: it.
        params: its parameters by name.
        run_dir: the run's folder.
        is_job: whether this is a job, perhaps one rank of several, of which SLURM has ended the one before. Default
            False.
    """
    from trainlab.experiments.opening import ranks_of_environment
    from trainlab.experiments.running import run

    # In a script's background Ctrl-C is ignored, and so would be the sweep's asking to end.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not is_job:
        _wait_for_the_one_before(run_dir)
    values = experiment.read(params)
    try:
        with ranks_of_environment(values) as ranks:
            # All ranks do as the chief does, for a file system may show them the record at different times.
            is_done = _is_done(run_dir) if ranks is None else ranks.on_chief(lambda: _is_done(run_dir))
        if not is_done:
            run(experiment, values, run_dir=run_dir, resumes=True)
    except KeyboardInterrupt:  # the sweep asks for the end: no traceback
        raise SystemExit(128 + signal.SIGINT) from None


def is_whole(run: RunInfo | None) -> bool:
    """Tell whether a run is finished, and has a record by which it can be known again.

    Args:
        run: it; None for none.

    Returns:
        Whether it is left alone.
    """
    return run is not None and run.status == "finished" and isinstance(run.record.get("params"), Mapping)


def _is_done(run_dir: Path) -> bool:
    return is_whole(read_run(run_dir))


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
