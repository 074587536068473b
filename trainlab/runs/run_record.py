"""What ``run.json`` says of a run: read, written, and how a start is described in it."""

import contextlib
import json
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

from trainlab.errors import RunFolderError
from trainlab.runs.folder_lock import now, unusable
from trainlab.runs.yaml_text import mask_command

__all__ = [
    "describe_start",
    "ended",
    "folder_of_program",
    "module_of_program",
    "read_record",
    "replace_text",
    "rewrite",
]


def replace_text(path: Path, text: str) -> None:
    """Write a file of a run's folder anew, as ``rewrite`` does.

    Args:
        path: The file.
        text: What is to be in it.

    Raises:
        RunFolderError: It cannot be written.
    """
    try:
        rewrite(path, text)
    except OSError as error:
        raise unusable(path, "written", error) from error


def rewrite(path: Path, text: str) -> None:
    """Write a file of a locked folder anew; whoever reads it meanwhile sees the old one, or the new.

    Args:
        path: The file.
        text: What is to be in it.

    Raises:
        OSError: It cannot be written; the old one is as it was.
    """
    # Always the same name: the folder is locked, and what a killed process left is written over.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # A path in it may hold bytes that are no text.
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_record(path: Path, shown: Path | str) -> dict[str, Any]:
    """Read a run's record.

    Args:
        path: The file.
        shown: What to call it in errors.

    Returns:
        What it holds; "starts", if it is there, is a list of mappings.

    Raises:
        RunFolderError: It cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        starts = record.get("starts", []) if isinstance(record, dict) else None
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise ValueError("it does not hold what a run's record holds")
    except OSError as error:
        raise unusable(path, "read", error) from error
    except ValueError as error:
        raise RunFolderError(
            f"The run's record cannot be read: {error}. Received: {shown}. "
            "Repair the file; or, if the run is to go on without its history, put {} into it."
        ) from error
    return record


def ended(status: str) -> dict[str, str]:
    """Return what a start that ends now gets: its status and the time."""
    return {"status": status, "ended": now()}


def describe_start() -> dict[str, Any]:
    """Return who runs what here, and since when."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    has_script = script is not None and script.is_file()
    return {
        "started": now(),
        "command": mask_command(sys.argv),
        "executable": sys.executable,
        "script": os.path.relpath(script) if script is not None and has_script else None,
        "module": module_of_program(),
        "cwd": os.getcwd(),
        "versions": {"python": platform.python_version(), "platform": platform.platform()},
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def folder_of_program() -> Path:
    """Return the folder of the program's file; for a prompt, or a notebook, the current one."""
    file = getattr(sys.modules.get("__main__"), "__file__", None) or (sys.argv[0] if sys.argv else None)
    return Path(file).resolve().parent if file and Path(file).is_file() else Path.cwd()


def module_of_program() -> str | None:
    """Return the module that ``python -m`` was given; None for a script."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return None if spec is None else str(spec.name).removesuffix(".__main__")
