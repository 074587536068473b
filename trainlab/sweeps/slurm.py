"""A sweep on SLURM: each run is a job of an array."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidTypeError, InvalidValueError, LaunchError, RankFailedError
from trainlab.launch import JobHandle, Platform, launch_array
from trainlab.sweeps.sweep_folder import Entry, SweepFolder
from trainlab.sweeps.worker import run_job

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trainlab.experiments.definition import Experiment

__all__ = ["check_platform", "submit", "wait_for"]

_JOBS = "jobs"


@dataclass(frozen=True)
class _SubmittedRun:
    """What a job does; it finds the experiment by its place, for in a job the script is not the program."""

    place: str
    params: "Mapping[str, Any] | BaseModel"
    run_dir: Path

    def __call__(self) -> Any:
        from trainlab.experiments.loading import load_experiment

        return run_job(load_experiment(self.place), self.params, self.run_dir, is_job=True)


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


def submit(
    experiment: "Experiment", folder: SweepFolder, entries: Sequence[Entry], platform: Platform
) -> dict[str, "JobHandle[Any]"]:
    """Submit an array with a job for each run, unless one that an earlier call submitted is still to end.

    Args:
        experiment: what runs.
        folder: the sweep's.
        entries: the runs that are not finished.
        platform: SLURM's.

    Returns:
        The jobs, by the run's key.

    Raises:
        LaunchError: SLURM refuses the jobs.
    """
    handles = {entry.key: handle for entry in entries if (handle := _living(folder, entry)) is not None}
    new = [entry for entry in entries if entry.key not in handles]
    if not new:
        return handles
    number = sum(1 for _ in (folder.path / _JOBS).glob("*"))
    jobs = folder.path / _JOBS / f"{number:03d}"
    # Noted before: of a process that is killed in between, a job that was submitted is found.
    folder.jobs.update({entry.key: f"{_JOBS}/{number:03d}/{index}" for index, entry in enumerate(new)})
    folder.write()
    options = {"folder": jobs, "wait": False, "name": platform.name or experiment.name}
    place = place_of(experiment)
    calls = [(_SubmittedRun(place, entry.member.params, entry.folder),) for entry in new]
    for entry in new:
        entry.folder.mkdir(parents=True, exist_ok=True)
    submitted = launch_array(_call, calls, platform=platform.model_copy(update=options))
    return handles | {entry.key: handle for entry, handle in zip(new, submitted, strict=True)}


def wait_for(handles: Mapping[str, "JobHandle[Any]"], *, is_shown: bool) -> dict[str, str]:
    """Wait for the end of jobs.

    Args:
        handles: the jobs, by the run's key.
        is_shown: whether a line tells how they are.

    Returns:
        The error of each that has one.

    Raises:
        KeyboardInterrupt: Ctrl-C; jobs of SLURM go on.
    """
    from rich.console import Console

    from trainlab.launch.waiting import wait_visibly

    wait_visibly(list(handles.values()), Console(stderr=True, quiet=not is_shown))
    errors = {}
    for key, handle in handles.items():
        try:
            handle.result()
        except RankFailedError as error:
            errors[key] = error.traceback or str(error)
        except LaunchError as error:
            errors[key] = str(error)
    return errors


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


def _call(run: _SubmittedRun) -> Any:
    return run()


def _living(folder: SweepFolder, entry: Entry) -> "JobHandle[Any] | None":
    """The job that was submitted for a run and has not ended; None if there is none."""
    job = folder.jobs.get(entry.key)
    if job is None or not (folder.path / job / "job.json").exists():
        return None
    handle = JobHandle.load(folder.path / job)
    return None if handle.done else handle
