"""Run the command line as a person does: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def trainlab(*arguments: str, before: str = "", **env: str | None) -> "subprocess.CompletedProcess[str]":
    """Run ``trainlab`` with arguments.

    Args:
        arguments: what follows ``trainlab``.
        before: a line of shell that is run first in the same process, such as "ulimit -n 64".
        env: further variables of the environment; None removes one.

    Returns:
        The finished process, with what it wrote.
    """
    variables: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env}
    command = [sys.executable, "-m", "trainlab", *arguments]
    if before:
        command = ["/bin/bash", "-c", f'{before}; exec "$@"', "bash", *command]
    return subprocess.run(
        command,
        env={name: value for name, value in variables.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
