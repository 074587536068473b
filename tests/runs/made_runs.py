"""Runs in folders, made as a program makes them, only faster; and programs that leave one behind."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.runs import RunFolder

ROOT = Path(__file__).parents[2]
_CRASHING = """
import os, sys
from trainlab.runs import RunFolder
RunFolder.open(name="crashed", run_dir=sys.argv[1])
os._exit(9)
"""


def make_run(
    folder: Path,
    *,
    name: str = "digits",
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    status: str = "finished",
    **fields: Any,
) -> Path:
    """Make a run that has ended.

    Args:
        folder: its folder.
        name: its name.
        params: its parameters.
        metrics: its metrics.
        status: how it ended.
        **fields: others of its record.

    Returns:
        The folder.
    """
    with RunFolder.open(name=name, run_dir=folder) as run:
        run.write_params({"hparams": params or {}})
        run.write_record(params=params or {}, metrics=metrics or {}, **fields, status=status)
    return folder


def crash(folder: Path) -> Path:
    """Leave a run as a process does that is killed."""
    done = subprocess.run([sys.executable, "-c", _CRASHING, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == 9
    return folder


def change_record(folder: Path, **fields: Any) -> None:
    """Write fields into a run's record past the run; one that is None goes."""
    file = folder / "run.json"
    record = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
