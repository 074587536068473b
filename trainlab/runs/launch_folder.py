"""Which folder a run gets that nobody named: a new one, or that of an earlier attempt of the same launch."""

import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trainlab.runs.folder_lock import FolderLock, lock_or_holder, take_lock, unusable
from trainlab.runs.names import RECORD
from trainlab.runs.run_record import read_record
from trainlab.runs.yaml_text import mask_command

__all__ = ["begun_before", "folder_to_continue", "new_folder"]

logger = logging.getLogger("trainlab.runs")

# How long the process of an earlier attempt may take to die.
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1


def new_folder(above: Path, launch_id: str | None) -> tuple[Path, FolderLock]:
    """Make a folder for a run, ``<date>_<time>_<launch's id or six letters or digits>``, and lock it.

    Args:
        above: Where it is made.
        launch_id: The launch's id; from its second run of that name on with a number, ``-2``. None for no launch.

    Returns:
        The folder, and its lock.

    Raises:
        RunFolderError: It cannot be made.
    """
    while True:
        path = above / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{_ending(above, launch_id)}"
        try:
            above.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError as error:
            if not path.is_dir():
                raise unusable(path, "made", error) from error
        except OSError as error:
            raise unusable(path, "made", error) from error
        else:
            return path, take_lock(path, path)


def folder_to_continue(above: Path, launch_id: str, attempt: int) -> tuple[Path, FolderLock] | None:
    """Find the first run that an earlier attempt of this launch began and this one has not gone on with, and lock it.

    In a job of SLURM only a run that the same command began is one: of several programs of a batch script none goes on
    with another's. Any other launch is of one program.

    Args:
        above: Where the runs' folders are.
        launch_id: The launch's id.
        attempt: The number of this attempt.

    Returns:
        The folder, and its lock; None if there is none.

    Raises:
        RunFolderError: Another process holds it, and does not let it go; or its record cannot be read.
    """
    command, others, has_begun = mask_command(sys.argv), [], False
    for _, path in _folders(above, launch_id):
        record = _record(path)
        if not begun_before(record, launch_id, attempt):
            has_begun = has_begun or _last_start(record, launch_id).get("attempt") == attempt
            continue
        begun_by = _last_start(record, launch_id).get("command")
        if begun_by != command and launch_id.startswith("slurm-"):
            others.append((path, begun_by))
        elif (lock := _lock_of(path, launch_id, attempt)) is not None:
            return path, lock
    for path, begun_by in others:
        logger.warning(
            "A new run begins, although an earlier attempt of this launch began the one in %s: that was by another "
            "command, %s, and this is %s. If it is that run's, pass the same arguments, or its folder as run_dir.",
            path,
            begun_by,
            command,
        )
    if not others and not has_begun:
        logger.warning(
            "A new run begins in attempt %d of launch %s: no earlier attempt has left one in %s.",
            attempt,
            launch_id,
            above,
        )
    return None


def begun_before(record: Mapping[str, Any], launch_id: str, attempt: int) -> bool:
    """Tell whether a run is one of this launch that the current attempt has not gone on with yet.

    Args:
        record: The run's record.
        launch_id: The launch's id.
        attempt: The number of the current attempt.
    """
    before = _last_start(record, launch_id).get("attempt")
    return isinstance(before, int) and before < attempt


def _lock_of(path: Path, launch_id: str, attempt: int) -> FolderLock | None:
    """Lock a folder, which a process that is being killed may hold still; None if another one of this attempt does."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while begun_before(_record(path), launch_id, attempt):
        lock = take_lock(path, path) if time.monotonic() > end else lock_or_holder(path)
        if not isinstance(lock, FolderLock):
            time.sleep(_POLL_SECONDS)
        elif begun_before(_record(path), launch_id, attempt):
            return lock
        else:
            lock.release()
    return None


def _ending(above: Path, launch_id: str | None) -> str:
    if launch_id is None:
        return secrets.token_hex(3)
    number = max((number for number, _ in _folders(above, launch_id)), default=0) + 1
    return launch_id if number == 1 else f"{launch_id}-{number}"


def _folders(above: Path, launch_id: str) -> list[tuple[int, Path]]:
    """The folders of a launch with their numbers, in the order of their making; also those of a launch "<id>-2"."""
    name = re.compile(rf"\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d_{re.escape(launch_id)}(?:-(\d+))?")
    try:
        found = [(match, path) for path in above.iterdir() if (match := name.fullmatch(path.name))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(above, "read", error) from error
    return sorted((int(match[1] or 1), path) for match, path in found)


def _record(path: Path) -> dict[str, Any]:
    """The record of a run; empty where a process was killed before it wrote one."""
    file = path / RECORD
    return read_record(file, file) if file.exists() else {}


def _last_start(record: Mapping[str, Any], launch_id: str) -> Mapping[str, Any]:
    return next((start for start in reversed(record.get("starts", [])) if start.get("launch_id") == launch_id), {})
