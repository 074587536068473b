"""Sweeps of trainings: what a killed one leaves, and how it goes on."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("training_script.py")
PATIENCE = 200.0


def start(folder: Path, **environment: str) -> "psutil.Popen":
    """The script, whose runs are in a folder."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
    with (folder / "output.txt").open("ab") as output:
        return psutil.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**given, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def until(happened: Callable[[], object], what: Callable[[], str]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, what()
        threading.Event().wait(0.01)


def records(folder: Path) -> list[dict[str, Any]]:
    """What the runs say of themselves, in order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("fit/sweep_fits/*/run.json"))]


def test_a_killed_sweep_of_trainings_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """kill -9 of a sweep ends loaders' workers, helpers and ranks; again, trainings go on from checkpoints, exactly."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    sweep = start(killed, HOLD="1")
    try:
        until(
            lambda: len(list(killed.rglob("held"))) == 2 or sweep.poll() is not None,
            (killed / "output.txt").read_text,
        )
        processes = sweep.children(recursive=True)
        # A run with a worker and a helper; one that launches two ranks.
        assert len(processes) >= 2 + 2 + 2, (processes, (killed / "output.txt").read_text())
    finally:
        sweep.kill()
        sweep.wait()
    _, left = psutil.wait_procs(processes, PATIENCE)
    assert not left
    sweeps = {folder: start(folder) for folder in (killed, whole)}
    for folder, one in sweeps.items():
        assert one.wait(PATIENCE) == 0, (folder / "output.txt").read_text()
    first, second = records(killed), records(whole)
    assert [record["result"] for record in first] == [record["result"] for record in second]
    assert [[start["status"] for start in record["starts"]] for record in first] == [["crashed", "finished"]] * 2
    # The checkpoints at 12, 18 and 24 batches, after those at 6 and 12 of the first start.
    assert {len(path.read_text()) for path in killed.rglob("checkpoints-written")} <= {4, 5}
