"""Submitting jobs: to SLURM, or to what stands for it on this machine, by submitit."""

import os
import pickle
import re
import secrets
import shutil
import socket
import string
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainlab.errors import InvalidValueError, LaunchError, MissingDependencyError
from trainlab.launch.call import Call
from trainlab.launch.job import NOTES, JobHandle, JobRecord
from trainlab.launch.job_task import RankTask
from trainlab.launch.platform import Platform
from trainlab.launch.ports import free_port
from trainlab.launch.slurm_options import local_parameters, python_after, slurm_parameters, tasks_per_node
from trainlab.launch.slurm_queue import LocalProcess, SlurmQueue, Source, jobs_of
from trainlab.launch.worker import environment

if TYPE_CHECKING:
    from submitit.core.core import Executor, Job

__all__ = ["find_lost", "submit", "submit_array"]

T = TypeVar("T")
# In a job's folder, that of submitit's files.
_FILES = "slurm"
# How submitit calls what it has not given to a job yet: a call, and a batch script.
_CALL, _SCRIPT = re.compile(r"[0-9a-f]{32}\.pkl"), ".submission_file_*.sh"
# In effect no limit: max_requeues is watched by the task itself.
_ALWAYS = 10**6
# What tells the submitting process its own place in a job, and its run's; the new job is another one.
_PLACE = re.compile(
    r"(TRAINLAB_)?((LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT))"
    r"|TRAINLAB_(NODE_RANK|NODES|LAUNCH_(ID|DIR|RUN)|RUN_DIR|ATTEMPT|LOG|CONSOLE_COPY|IMPORTING)"
)
_SETTINGS_OF_SLURM = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"}


def submit(call: Call[T], platform: Platform) -> JobHandle[T]:
    """Submit a job that makes a call on each of its ranks.

    Args:
        call: the function with its arguments.
        platform: with ``device="slurm"``.

    Returns:
        A handle. With ``executor="debug"`` the call has been made already, in this process.

    Raises:
        MissingDependencyError: submitit is not installed.
        InvalidValueError: an option cannot be used.
        LaunchError: SLURM refuses the job, or there is none here.
    """
    folder = _new_folder(call.name, platform)
    return _submitted([call], [folder], folder / _FILES, platform)[0]


def submit_array(calls: Sequence[Call[T]], platform: Platform) -> list[JobHandle[T]]:
    """Submit an array of jobs, each of which makes a call on each of its ranks.

    Args:
        calls: one for each job.
        platform: with ``device="slurm"``; ``array_parallelism`` of them run at once.

    Returns:
        Handles, in the order of the calls; the jobs' folders are numbered.

    Raises:
        MissingDependencyError: submitit is not installed.
        InvalidValueError: an option cannot be used.
        LaunchError: SLURM refuses the jobs, or there is none here.
    """
    if not calls:
        raise InvalidValueError("An array has at least one job. Received: none.")
    folder = _new_folder(calls[0].name, platform)
    return _submitted(calls, [folder / str(index) for index in range(len(calls))], folder / _FILES, platform)


def find_lost(folder: Path, platform: Platform, name: str) -> None:
    """Find the jobs of an array whose submitter was killed before it had noted them.

    Those that have what they are to call get their records. The others would wait for it in vain, and are cancelled.

    Args:
        folder: the array's; whoever calls this has made sure that nobody submits it now.
        platform: SLURM's.
        name: the jobs'.

    Raises:
        LaunchError: SLURM does not answer.
    """
    files = folder / _FILES
    scripts = {path.name for path in files.glob(_SCRIPT)}
    ranks = platform.node_range[1] * tasks_per_node(platform)
    for job_id in jobs_of(scripts) if scripts else ():
        record = JobRecord(
            job_id, name, "slurm", ranks, folder / (job_id.partition("_")[2] or "0"), files, socket.gethostname()
        )
        if not any((files / f"{job_id}_{what}").exists() for what in ("submitted.pkl", NOTES, "0_result.pkl")):
            SlurmQueue(job_id).cancel()
        elif not record.path.exists():
            record.write()
    for path in files.glob("*.pkl"):
        if _CALL.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _submitted(
    calls: Sequence[Call[T]], folders: Sequence[Path], files: Path, platform: Platform
) -> list[JobHandle[T]]:
    is_new = not files.parent.exists()
    executor = _executor(files, platform, platform.name or calls[0].name)
    tasks = [_task(call, platform, folder) for call, folder in zip(calls, folders, strict=True)]
    # For this user alone: among the arguments, and in what is said of errors, there may be secrets.
    files.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.chmod(0o700)
    try:
        with _own_environment():
            jobs = executor.submit_array(tasks)
    except (RuntimeError, ValueError, OSError) as error:  # submitit's own errors are RuntimeErrors
        if is_new:
            shutil.rmtree(files.parent, ignore_errors=True)
        raise LaunchError(f"The job is refused: {_words(error)}") from error
    for job in jobs:
        with suppress(FileNotFoundError):  # the job may have ended, and removed it
            job.paths.submitted_pickle.chmod(0o600)
    return [_handle(job, call, folder, files, platform) for job, call, folder in zip(jobs, calls, folders, strict=True)]


def _handle(job: "Job[Any]", call: Call[T], folder: Path, files: Path, platform: Platform) -> JobHandle[T]:
    name = platform.name or call.name
    ranks = platform.node_range[1] * tasks_per_node(platform)
    record = JobRecord(job.job_id, name, platform.executor, ranks, folder, files, socket.gethostname())
    record.write()
    source: Source | None = None
    if platform.executor == "local":
        process: Any = getattr(job, "_process", None)
        source = LocalProcess(int(job.job_id), record.host, files, process)
    elif platform.executor == "debug":
        _run_here(job, record)
    return JobHandle(record, source)


def _run_here(job: "Job[Any]", record: JobRecord) -> None:
    """Make the call of the debug executor now, and leave of it what a job would leave."""
    notes = record.files / f"{record.job_id}_{NOTES}" / "0"
    notes.mkdir(parents=True)
    with environment({"TRAINLAB_LAUNCH_DIR": str(notes)}):
        if sys.stdin is not None and sys.stdin.isatty():
            try:  # submitit opens the debugger where it fails
                outcome = "success", job.results()[0]
            except Exception as error:
                outcome = "error", str(error)
        else:
            problem = job.exception()
            outcome = ("success", job.submission().result()) if problem is None else ("error", str(problem))
    (record.files / f"{record.job_id}_0_result.pkl").write_bytes(pickle.dumps(outcome))


def _executor(files: Path, platform: Platform, name: str) -> "Executor":
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError(
            f"Jobs are submitted by the package submitit. Received: {error}. "
            "Install it with: pip install 'trainlab[slurm]'."
        ) from error
    if platform.executor == "debug":
        if tasks_per_node(platform) > 1:
            raise InvalidValueError(
                f"The debug executor has one rank, this process. Received: {tasks_per_node(platform)} ranks. "
                "Pass processes=1, or executor='local'."
            )
        return submitit.DebugExecutor(files)
    if platform.executor == "local":
        executor: Executor = submitit.LocalExecutor(files, max_num_timeout=_ALWAYS, python=python_after(platform.setup))
        executor.update_parameters(**local_parameters(platform))
        return executor
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise LaunchError(
                f"There is no SLURM here. Received: no {command} on the PATH. Submit from a node of the cluster that "
                "has it, or try the job out with executor='local' or 'debug'."
            )
    executor = submitit.SlurmExecutor(files, max_num_timeout=_ALWAYS)
    executor.update_parameters(**slurm_parameters(platform, name))
    return executor


def _task(call: Call[Any], platform: Platform, folder: Path) -> RankTask:
    import cloudpickle

    # By value where it is of the script itself, whose place is submitit's program in the job; a decorated function is
    # found by its name otherwise.
    function = getattr(call.function, "outer", call).function
    path = tuple(os.path.abspath(entry) for entry in sys.path)
    try:
        content = bytes(cloudpickle.dumps(Call(function, call.args, call.kwargs)))
    except Exception as error:
        raise LaunchError(
            f"{call.name} cannot be sent to a job: {type(error).__name__}: {error}. Pass what can be pickled, and open "
            "files, locks and connections inside the function."
        ) from error
    port = free_port() if platform.executor == "local" else None
    launch_id = f"{platform.executor}-{secrets.token_hex(4)}"
    return RankTask(content, platform, folder, path, launch_id, port, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _new_folder(name: str, platform: Platform) -> Path:
    if platform.folder is None:
        plain = re.sub(r"[^\w.+-]", "_", platform.name or name)
        letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(6))
        folder = Path("runs", plain, f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{letters}").absolute()
    else:
        folder = platform.folder.expanduser().absolute()
    if "%" in str(folder):
        raise InvalidValueError(f"SLURM reads a % in a job's folder as a pattern. Received: {str(folder)!r}.")
    for record in [folder / "job.json", *folder.glob("*/job.json")]:
        if record.exists() and not (before := JobHandle.load(record.parent)).done:
            raise LaunchError(
                f"The folder belongs to a job that has not ended. Received: {str(folder)!r}, of job {before.job_id}, "
                f"which is {before.state}. Cancel it, or pass another folder."
            )
    return folder


@contextmanager
def _own_environment() -> Iterator[None]:
    """What says where this process stands in a job of its own is not handed on, for the time of a block."""
    in_job = "SLURM_JOB_ID" in os.environ
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    taken = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if _PLACE.fullmatch(name) or (in_job and name.startswith(prefixes) and name not in _SETTINGS_OF_SLURM)
    }
    try:
        yield
    finally:
        os.environ.update(taken)


def _words(error: Exception) -> str:
    lines = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line) or type(error).__name__
