"""What launched this process, and the notes that its ranks leave for the launcher. No torch."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidValueError

__all__ = ["Launched", "launched", "note"]

logger = logging.getLogger("trainlab.distributed")

# It is part of a folder's name.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}")


@dataclass(frozen=True)
class Launched:
    """One launch, which may start its processes more than once.

    Attributes:
        id: The same on all ranks, and in all attempts.
        attempt: From 0; it grows whenever the processes are started again.
    """

    id: str
    attempt: int


def launched() -> Launched | None:
    """Return the launch that this process belongs to, which the environment tells.

    Returns:
        That of TRAINLAB_LAUNCH_ID and TRAINLAB_ATTEMPT; else that of SLURM's batch job, an attempt of which is every
        requeue; None for a process that nobody started, or in an interactive allocation.

    Raises:
        InvalidValueError: TRAINLAB_LAUNCH_ID cannot be part of a folder's name, or an attempt is no int of at least 0.
    """
    name = os.environ.get("TRAINLAB_LAUNCH_ID")
    if not name:
        return _launched_by_slurm()
    if _ID.fullmatch(name) is None:
        raise InvalidValueError(
            f"TRAINLAB_LAUNCH_ID is up to 100 letters, digits and any of '._+=-'. Received: {name!r}."
        )
    return Launched(name, _attempt("TRAINLAB_ATTEMPT"))


def note(name: str, value: Mapping[str, Any]) -> None:
    """Leave a note for the launcher of this process; without one (TRAINLAB_LAUNCH_DIR), do nothing.

    Args:
        name: What it is about; a second note of a name takes the place of the first.
        value: What a JSON file can hold.
    """
    folder = os.environ.get("TRAINLAB_LAUNCH_DIR")
    if not folder:
        return
    path = Path(folder) / f"rank-{_rank()}.{name}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(dict(value)), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:  # the training does not need it
        with contextlib.suppress(OSError):
            temporary.unlink()
        logger.warning("The launcher could not be told %r in %s: %s", name, path, error)


def _rank() -> str:
    names = ("TRAINLAB_RANK", "RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if os.environ.get(name)), "0")


def _launched_by_slurm() -> Launched | None:
    environ = os.environ
    job = environ.get("SLURM_JOB_ID")
    # The one variable that a batch script and its steps have, and those of salloc and of srun alone have not.
    # Source: Slurm's env_array_for_batch_job (src/common/env.c).
    if not job or environ.get("ENVIRONMENT") != "BATCH":
        return None
    task = environ.get("SLURM_ARRAY_TASK_ID")
    if task:
        job = f"{environ.get('SLURM_ARRAY_JOB_ID', job)}_{task}"
    # Without the step's number: a requeued script may come to the same step by another number, as it skips others.
    return Launched(f"slurm-{job}", _attempt("SLURM_RESTART_COUNT"))


def _attempt(name: str) -> int:
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise InvalidValueError(f"{name} is a whole number of at least 0. Received: {text!r}.")
    return int(text)
