"""What follows on the checkpoint of a run that a signal ended: earlier handlers are called, a SLURM job is requeued."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import FrameType

from trainlab.distributed import DistributedContext
from trainlab.distributed.slurm import scontrol
from trainlab.errors import InvalidValueError
from trainlab.runs.ending import Preempted

__all__ = ["end_by_signal", "requeue", "requeues_wanted"]

logger = logging.getLogger("trainlab.training")

_BY_SLURM = "SLURM does that already"


def end_by_signal(
    distributed: DistributedContext,
    number: int,
    earlier: Callable[[int, FrameType | None], object] | None,
) -> BaseException:
    """Call the handler that the signal had before, and requeue the job; all ranks call this, at the same time.

    A job of SLURM is requeued if what was there before does not end the chief.

    Args:
        distributed: the run's ranks.
        number: of the signal.
        earlier: the handler of this rank; None if it had none of Python's.

    Returns:
        What ends the run: SystemExit(128 + number), or what the handler raised; as Preempted, if the job is in the
        queue again. No rank has it before the job is back in the queue: an end of one may be the end of all.
    """
    ended_by: BaseException = SystemExit(128 + number)
    has_raised = False
    if earlier is not None:
        logger.info("%s: calling the handler that it had before.", signal.Signals(number).name)
        try:
            earlier(number, sys._getframe())
        except BaseException as raised:  # submitit's ends the process here, where it has requeued the job
            ended_by, has_raised = raised, True

    def on_chief() -> bool:
        return requeue(number) if not has_raised else _was_requeued_by_handler(ended_by)

    goes_on = distributed.on_chief(on_chief)
    return Preempted(ended_by.code) if goes_on and isinstance(ended_by, SystemExit) else ended_by


def requeue(number: int, *, failed: bool = False) -> bool:
    """Put the SLURM batch job of this process back into the queue, if that is what the signal asks for.

    Args:
        number: of the signal. SIGINT, ``scancel``, and a SIGTERM by which an agent ends its ranks do not ask for it.
        failed: whether the run fails. Then a SIGTERM asks for it only if SLURM says so too: ``srun`` ends by SIGTERM
            the tasks that are left when one is lost. Default False.

    Returns:
        Whether the job is in the queue again. What went wrong is logged, with what to do.

    Raises:
        InvalidValueError: TRAINLAB_REQUEUE or TRAINLAB_MAX_REQUEUES makes no sense.
    """
    environ = os.environ
    job = _job_id(environ)
    if job is None or number == signal.SIGINT:
        return False
    wanted, most = requeues_wanted(environ)
    if not wanted:
        logger.info("SLURM job %s is not requeued: TRAINLAB_REQUEUE=0.", job)
        return False
    try:
        told = _scontrol("--oneliner", "show", "job", job)
        reason = _why_not(_fields(told), environ, number, most, failed)
        if reason:
            logger.info("SLURM job %s is not requeued: %s.", job, reason)
            return reason == _BY_SLURM
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None)
        logger.error(
            "SLURM job %s cannot be requeued: %s `scontrol requeue %s` goes on from its last checkpoint.",
            job,
            f"{error}. {detail or ''}".strip(),
            job,
        )
        return False
    logger.info("SLURM job %s is back in the queue, to go on from the last checkpoint.", job)
    return True


def requeues_wanted(environ: Mapping[str, str]) -> tuple[bool, int | None]:
    """Read whether jobs are requeued, and how often.

    Args:
        environ: the environment: TRAINLAB_REQUEUE is "0" or "1" (default), TRAINLAB_MAX_REQUEUES an int of at least 0.

    Returns:
        Whether they are, and at most how often; None if as often as it takes.

    Raises:
        InvalidValueError: a variable is something else.
    """
    switch, most = environ.get("TRAINLAB_REQUEUE") or "1", environ.get("TRAINLAB_MAX_REQUEUES") or None
    if switch not in ("0", "1"):
        raise InvalidValueError(f"TRAINLAB_REQUEUE is 0 or 1. Received: {switch!r}.")
    if most is not None and not most.isdecimal():
        raise InvalidValueError(f"TRAINLAB_MAX_REQUEUES is an int of at least 0. Received: {most!r}.")
    return switch == "1", None if most is None else int(most)


def _was_requeued_by_handler(ended_by: BaseException) -> bool:
    """Tell whether submitit's handler has put the job back. Source: its ``SignalHandler``, which then exits."""
    return "SUBMITIT_EXECUTOR" in os.environ and isinstance(ended_by, SystemExit)


def _why_not(job: Mapping[str, str], environ: Mapping[str, str], number: int, most: int | None, failed: bool) -> str:
    """Why a job is not to be requeued, as SLURM sees it; empty if it is.

    A job that is preempted runs on for its partition's GraceTime, and has a PreemptTime; one that is cancelled, or has
    reached its time limit, completes, and tells only the latter by its Reason.
    """
    restarts = int(environ.get("SLURM_RESTART_COUNT") or 0)
    is_over_time = job.get("Reason") == "TimeLimit"
    is_preempted = job.get("PreemptTime", "None") != "None"
    if job.get("BatchFlag") != "1":
        return "it is interactive"
    if int(job.get("Restarts", 0)) > restarts:
        return _BY_SLURM
    if job.get("JobState") not in ("RUNNING", "SIGNALING") and not is_over_time:
        return f"SLURM ends it, and it has neither been preempted nor run out of time ({job.get('JobState')})"
    if number == signal.SIGTERM and not (is_preempted or is_over_time):
        if "TORCHELASTIC_RUN_ID" in environ:
            return "the SIGTERM came from the agent that started this process"
        if failed:
            return "it has failed, and has neither been preempted nor run out of time"
    if job.get("Requeue") != "1":
        return "it was submitted with --no-requeue"
    if most is not None and restarts >= most:
        return f"it has been {restarts} times already, and TRAINLAB_MAX_REQUEUES={most}"
    return ""


def _job_id(environ: Mapping[str, str]) -> str | None:
    """The job's id; for a task of an array that of the task alone: the last task's own number is the whole array's."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID") or None


def _fields(told: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in told.split():
        name, _, value = word.partition("=")
        found.setdefault(name, value)
    return found


def _scontrol(*arguments: str) -> str:
    done = scontrol(*arguments)
    done.check_returncode()
    return done.stdout
