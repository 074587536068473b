"""The digits example on every platform that this machine has: the platform changes, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.examples.test_distributed_examples import EXAMPLES, TOLERANCE, alone

PYTHON = [sys.executable, "-W", "error::UserWarning:__main__"]
DIGITS = str(EXAMPLES / "digits.py")
TWO = ["--processes", "2"]
# What a shell would run, and where the result is printed.
WAYS = [
    pytest.param([*PYTHON, DIGITS, "--quick", "--platform", "cpu", *TWO], "console", id="launch"),
    pytest.param(
        [sys.executable, "-m", "trainlab", "launch", "--device", "cpu", *TWO, DIGITS, "--quick"],
        "console",
        id="command",
    ),
    pytest.param(
        [*PYTHON, DIGITS, "--quick", "--platform", "slurm", "--executor", "local", "--wait", *TWO],
        "slurm/*_0_log.out",
        id="slurm-local",
    ),
]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run recorded."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "console"), WAYS)
def test_only_the_platform_changes(command: list[str], console: str, tmp_path: Path) -> None:
    """On every platform the digits example leaves one run with the metrics of one process, and shows one result."""
    taken = ("TRAINLAB_", "SLURM", "SUBMITIT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").glob("*/*")
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert {path.name for path in run.glob("log.rank-?.txt")} >= {"log.rank-1.txt"}, "there was one rank"
    said = done.stdout if console == "console" else next(run.glob(console)).read_text()
    assert said.count("Test accuracy: ") == 1, said
    for found, expected in zip(metrics(run), alone("digits.py").records, strict=True):
        assert (found["batch"], found["records"]) == (expected["batch"], expected["records"])
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=TOLERANCE)
