"""Where the output of ranks goes, in the end."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from trainlab.errors import LaunchError
from trainlab.launch.platform import Platform

__all__ = ["keep_logs"]

logger = logging.getLogger("trainlab.launch")


@contextmanager
def keep_logs(folder: Path, name: str, platform: Platform, run_id: str) -> Iterator[None]:
    """Keep what the ranks said during a block: in the folder of their run, else in one of their own.

    Args:
        folder: of the launch. Its ``logs`` has a folder for each attempt, with what is not in a run's folder already.
        name: of what was launched.
        platform: whose ``log_dir`` may say where to keep it.
        run_id: of the launch.

    Yields:
        None.

    Raises:
        LaunchError: ``log_dir`` cannot be made.
    """
    if platform.log_dir is not None:
        try:
            platform.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"log_dir cannot be made: {error}. Pass a folder that can be written.") from error
    level = logging.WARNING
    try:
        yield
        level = logging.INFO
    finally:
        try:
            _keep(folder, name, platform, run_id, level)
        except OSError as error:  # what the ranks returned, or why they failed, matters more
            logger.error("What each rank said cannot be kept: %s. Pass a log_dir that can be written.", error)


def _keep(folder: Path, name: str, platform: Platform, run_id: str, level: int) -> None:
    attempts = sorted((folder / "logs").iterdir(), key=lambda attempt: int(attempt.name))
    said = [path for attempt in attempts for path in sorted(attempt.iterdir()) if path.stat().st_size]
    kept = platform.log_dir or _folder_of_run(folder)
    # What the chief alone said was on the console.
    if kept is None and any(path.name != "log.rank-0.txt" for path in said):
        kept = Path("runs") / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{run_id}"
    if kept is None or not said:
        return
    kept.mkdir(parents=True, exist_ok=True)
    for path in said:
        with path.open("rb") as source, (kept / path.name).open("ab") as target:
            shutil.copyfileobj(source, target)
    logger.log(level, "What each rank said is in %s.", kept)


def _folder_of_run(folder: Path) -> Path | None:
    """The folder of the last run that the ranks of this node opened, if it is on this machine."""
    for path in folder.glob("notes/*.run.json"):
        found = Path(json.loads(path.read_text(encoding="utf-8"))["folder"])
        if found.is_dir():
            return found
    return None
