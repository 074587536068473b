"""Sweeps whose runs are jobs: by submitit's local executor, and on a real SLURM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm import cluster
from tests.sweeps.programs import train
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.launch import Platform
from trainlab.sweeps import run_parameter_sweep

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("slurm_script.py")


def sweep(
    folder: Path, executor: str, count: int, *options: str, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), executor, str(count), *options],
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """What the runs of the sweep say of themselves, in order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("work/sweep_jobs/*/run.json"))]


def check_again(folder: Path, executor: str, count: int, *options: str, env: dict[str, str]) -> None:
    """Make the sweep, of which a run fails; and, once that is mended, again."""
    first = sweep(folder, executor, count, *options, env=env)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "SweepError" in first.stderr and "001_number=1: failed: ArithmeticError: number 1" in first.stderr
    (folder / "mended").touch()
    second = sweep(folder, executor, count, *options, env=env)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.splitlines() == ["finished True 0.0", "finished False 0.5", "finished True 1.0"][:count]
    statuses = [[start["status"] for start in record["starts"]] for record in records(folder)]
    assert statuses == [["finished"], ["failed", "finished"], ["finished"]][:count]


@pytest.mark.slow
def test_jobs_without_slurm(tmp_path: Path) -> None:
    """By the local executor each run is a job, failures are told, and the same sweep repeats them alone."""
    foreign = ("SLURM", "SUBMITIT")
    check_again(tmp_path, "local", 2, env={k: v for k, v in os.environ.items() if not k.startswith(foreign)})


@pytest.mark.slow
def test_jobs_of_a_real_slurm(tmp_path: Path) -> None:
    """On SLURM each run is a job of an array; a sweep that does not wait is gone on with by one that does."""
    if (reason := cluster.missing()) is not None:
        pytest.skip(reason)
    with cluster.running() as slurm:
        submitted = sweep(tmp_path, "slurm", 3, "partition=apart", "wait=0", env=slurm.env)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        assert submitted.stdout.split() == ["submitted", "False", "None"] * 3
        check_again(tmp_path, "slurm", 3, "partition=apart", env=slurm.env)
        jobs = {record["metrics"]["job"] for record in records(tmp_path)}
        assert len(jobs) == 3 and 0.0 not in jobs
        assert len(list((tmp_path / "work" / "sweep_jobs" / "jobs").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"platform": "slurm"}, InvalidTypeError, "trainlab.launch.Platform"),
        ({"platform": Platform(device="cpu")}, InvalidValueError, "device='cpu'"),
        ({"max_num_processes": 2}, InvalidValueError, "array_parallelism"),
        ({"num_gpus_per_process": 1}, InvalidValueError, "gpus_per_node"),
        ({"keep_going": False}, InvalidValueError, "scancel"),
        ({"platform": Platform(device="slurm", folder="jobs")}, InvalidValueError, "name and output_dir"),
    ],
)
def test_what_slurm_decides_is_not_given_twice(
    options: dict[str, Any], error: type[Exception], told: str, tmp_path: Path
) -> None:
    """An option that the platform has is refused in favour of the platform's, before anything is submitted."""
    given = {"platform": Platform(device="slurm"), "output_dir": tmp_path, **options}
    with pytest.raises(error, match=told):
        run_parameter_sweep(train, [{"depth": 1}], **given)
    assert not list(tmp_path.iterdir())
