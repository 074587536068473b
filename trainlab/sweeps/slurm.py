"""A sweep on SLURM: each run is a job of an array."""

import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidTypeError, InvalidValueError, LaunchError, RankFailedError
from trainlab.launch import JobHandle, Platform, launch_array
from trainlab.launch.slurm import find_lost
from trainlab.sweeps.sweep_folder import Entry, SweepFolder
from trainlab.sweeps.worker import run_job

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment

__all__ = ["Ended", "check_platform", "ended", "submit", "submitted_before", "wait_for"]

_JOBS = "jobs"


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Args:
        error: the traceback of what ended it, or how it came to its end, in a line; "" for a good end.
        exitcode: of its process; None where nobody knows.
        says_all: whether there is no more to be learned from what the run has recorded.
    """

    error: str = ""
    exitcode: int | None = None
    says_all: bool = False


def check_platform(
    platform: Any, max_num_processes: int, num_gpus_per_process: int | None, *, keep_going: bool
) -> Platform:
    """Check what a sweep on SLURM is asked for.

    Args:
        platform: as given.
        max_num_processes: as given.
        num_gpus_per_process: as given.
        keep_going: as given.

    Returns:
        The platform.

    Raises:
        InvalidTypeError: it is no platform.
        InvalidValueError: it is not SLURM's, or something is given that the platform says itself.
    """
    if not isinstance(platform, Platform):
        raise InvalidTypeError(f"platform is a trainlab.launch.Platform. Received: {platform!r}.")
    if platform.device != "slurm":
        raise InvalidValueError(
            f"Only a sweep on SLURM has a platform. Received: device={platform.device!r}. Leave platform out, and say "
            "with max_num_processes and num_gpus_per_process what this machine does."
        )
    given = {
        "max_num_processes": (max_num_processes, 1, "Platform(array_parallelism=…)"),
        "num_gpus_per_process": (num_gpus_per_process, None, "Platform(gpus_per_node=…)"),
        "Platform(folder=…)": (platform.folder, None, "name and output_dir"),
        "keep_going": (keep_going, True, "scancel, since each job goes on by itself"),
    }
    for name, (value, default, instead) in given.items():
        if value != default:
            raise InvalidValueError(f"On SLURM a sweep has no {name}. Received: {value!r}. Use {instead}.")
    return platform


def submitted_before(
    experiment: "Experiment", folder: SweepFolder, entries: Sequence[Entry], platform: Platform
) -> dict[str, "JobHandle[Any]"]:
    """Find the jobs that earlier calls have submitted, and whose end nobody was told yet.

    Args:
        experiment: what runs.
        folder: the sweep's.
        entries: the runs that are not finished.
        platform: SLURM's.

    Returns:
        The jobs, by the run's key.

    Raises:
        LaunchError: SLURM does not answer.
    """
    places = {entry.key: folder.path / folder.jobs[entry.key] for entry in entries if entry.key in folder.jobs}
    if platform.executor == "slurm":
        # A call that was killed may have submitted jobs that it could not note any more.
        for array in sorted({place.parent for place in places.values() if not (place / "job.json").exists()}):
            find_lost(array, platform, platform.name or experiment.name)
    return {key: JobHandle.load(place) for key, place in places.items() if (place / "job.json").exists()}


def submit(
    experiment: "Experiment", folder: SweepFolder, entries: Sequence[Entry], platform: Platform
) -> dict[str, "JobHandle[Any]"]:
    """Submit an array with a job for each run.

    Args:
        experiment: what runs.
        folder: the sweep's.
        entries: the runs; there may be none.
        platform: SLURM's.

    Returns:
        The jobs, by the run's key.

    Raises:
        LaunchError: SLURM refuses the jobs.
    """
    if not entries:
        return {}
    # The parameters lie there, with their secrets.
    jobs = folder.path / _JOBS
    jobs.mkdir(mode=0o700, exist_ok=True)
    number = 1 + max((int(path.name) for path in jobs.glob("[0-9]*")), default=-1)
    # Noted before: of a process that is killed in between, a job that was submitted is found.
    folder.jobs.update({entry.key: f"{_JOBS}/{number:03d}/{index}" for index, entry in enumerate(entries)})
    folder.write()
    options = {"folder": jobs / f"{number:03d}", "wait": False, "name": platform.name or experiment.name}
    place = place_of(experiment)
    calls = [(place, entry.member.params, entry.folder) for entry in entries]
    for entry in entries:
        entry.folder.mkdir(parents=True, exist_ok=True)
    submitted = launch_array(_run_placed, calls, platform=platform.model_copy(update=options))
    return {entry.key: handle for entry, handle in zip(entries, submitted, strict=True)}


def wait_for(handles: "Iterable[JobHandle[Any]]", *, is_shown: bool) -> None:
    """Wait for the end of jobs.

    Args:
        handles: the jobs.
        is_shown: whether a line tells how they are.

    Raises:
        KeyboardInterrupt: Ctrl-C; jobs of SLURM go on.
    """
    from rich.console import Console

    from trainlab.launch.waiting import wait_visibly

    wait_visibly(list(handles), Console(stderr=True, quiet=not is_shown))


def ended(handle: "JobHandle[Any]") -> Ended:
    """Tell how a job ended, of which nothing is needed any more then.

    Args:
        handle: the job, which has ended.

    Returns:
        It.
    """
    try:
        handle.result()
    except RankFailedError as error:
        return Ended(error.traceback or _first_line(error), error.exitcode, bool(error.traceback))
    except LaunchError as error:
        return Ended(_first_line(error), says_all=True)
    finally:
        handle.remove_call()
    return Ended()


def place_of(experiment: "Experiment") -> str:
    """The place by which ``load_experiment`` finds an experiment of this program, or of a module of its.

    Args:
        experiment: it.

    Returns:
        Such as "/home/a/train.py:train".
    """
    main = inspect.unwrap(experiment.main)
    where = main.__module__
    if where in ("__main__", "__mp_main__"):
        spec = getattr(sys.modules[where], "__spec__", None)
        where = str(Path(inspect.getfile(main)).absolute()) if spec is None else spec.name
    return f"{where}:{experiment.path}"


def _run_placed(place: str, params: Any, run_dir: Path) -> None:
    """What a job does; it finds the experiment by its place, for in a job the script is not the program."""
    from trainlab.experiments.loading import load_experiment

    run_job(load_experiment(place), params, run_dir, is_job=True)


def _first_line(error: LaunchError) -> str:
    # Lines of a log follow.
    return str(error).partition("\n")[0]
