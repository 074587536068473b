"""What a Platform asks for, in the words of submitit and sbatch."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from trainlab.errors import InvalidValueError
from trainlab.launch.platform import Platform

__all__ = ["local_parameters", "python_after", "slurm_parameters", "tasks_per_node"]

# For a process of this machine that has no limit.
_YEAR_MINUTES = 365 * 24 * 60
# Options of sbatch that Platform has under another name, or that are settled already.
_OWN_OPTIONS = {
    "array": "launch_array",
    "error": "JobHandle.logs",
    "export": "setup",
    "job-name": "name",
    "no-requeue": "requeue",
    "ntasks": "nodes and processes",
    "ntasks-per-core": "processes",
    "ntasks-per-gpu": "processes",
    "ntasks-per-node": "processes",
    "ntasks-per-socket": "processes",
    "open-mode": "JobHandle.logs",
    "output": "JobHandle.logs",
    "parsable": "JobHandle.job_id",
    "quiet": "JobHandle.job_id",
    "signal": "signal_lead",
    "tasks-per-node": "processes",
    "test-only": "executor='debug'",
    "wrap": "the function that is launched",
}


def slurm_parameters(platform: Platform, name: str) -> dict[str, Any]:
    """The job as submitit's executor for SLURM wants it told.

    Args:
        platform: what is asked for.
        name: the job's.

    Returns:
        Its parameters.

    Raises:
        InvalidValueError: two options contradict each other.
    """
    same = "cpus_per_task gpus_per_node partition account qos constraint mem gres nodelist exclude"
    # A requeued job goes on in the files of its ranks; a rank that fails takes those with it that wait for it.
    srun = ["--open-mode=append", "--kill-on-bad-exit=1"]
    if platform.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={platform.cpus_per_task}")  # which srun does not take over, since SLURM 22.05
    found: dict[str, Any] = {
        **{option: getattr(platform, option) for option in same.split()},
        "job_name": name,
        "time": _minutes(platform),
        "nodes": platform.node_range[1],
        "ntasks_per_node": tasks_per_node(platform),
        "signal_delay_s": platform.signal_lead,
        "setup": list(platform.setup) or None,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own; not every cluster knows it
        "srun_args": srun,
        "additional_parameters": {"requeue" if platform.requeue else "no-requeue": True, **_extra(platform.extra)},
    }
    if platform.array_parallelism is not None:
        found["array_parallelism"] = platform.array_parallelism
    return found


def local_parameters(platform: Platform) -> dict[str, Any]:
    """The job as submitit's local executor wants it told; what only a cluster has is left out.

    Args:
        platform: what is asked for.

    Returns:
        Its parameters.

    Raises:
        InvalidValueError: two options contradict each other.
    """
    found: dict[str, Any] = {
        "timeout_min": _minutes(platform) or _YEAR_MINUTES,
        "tasks_per_node": tasks_per_node(platform),
        "signal_delay_s": platform.signal_lead,
        "stderr_to_stdout": True,
    }
    return found if platform.gpus_per_node is None else {**found, "gpus_per_node": platform.gpus_per_node}


def tasks_per_node(platform: Platform) -> int:
    """How many ranks a node has.

    Args:
        platform: what is asked for.

    Returns:
        At least 1.
    """
    return platform.processes or platform.gpus_per_node or 1


def python_after(setup: Sequence[str]) -> str | None:
    """The command for Python on this machine, after the set-up that a job of SLURM makes in its script.

    Args:
        setup: lines of shell.

    Returns:
        A command line; None for this Python as it is.
    """
    if not setup:
        return None
    script = " && ".join([*setup, f'exec {shlex.quote(sys.executable)} "$@"'])
    return f"bash -c {shlex.quote(script)} bash"


def _extra(extra: Mapping[str, str | int | bool]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in extra.items():
        plain = name.lstrip("-").replace("_", "-")
        own = _OWN_OPTIONS.get(plain) or plain.replace("-", "_")
        if plain in _OWN_OPTIONS or own in Platform.model_fields:
            raise InvalidValueError(
                f"Platform sees to this option of sbatch itself. Received: extra={{{name!r}: {value!r}}}. Use {own}."
            )
        if value is not False:
            found[plain] = True if value is True or value == "" else value
    return found


def _minutes(platform: Platform) -> int | None:
    """The time limit. Source: sbatch's manual, --time."""
    if platform.time is None or isinstance(platform.time, int):
        minutes = platform.time
    else:
        days, _, rest = platform.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if not days and len(parts) < 3:  # hours come first only after days, or before both of the others
            parts = [0, *parts]
        hours, more, seconds = (*parts, 0, 0)[:3]
        minutes = (int(days or 0) * 24 + hours) * 60 + more + (seconds > 0)
    if minutes is not None and minutes * 60 <= platform.signal_lead:
        raise InvalidValueError(
            "The signal that comes before the time limit would come at the start. Received: "
            f"time={platform.time!r} ({minutes} minutes), signal_lead={platform.signal_lead} seconds."
        )
    return minutes
