"""Sweeps whose runs are jobs: by submitit's local executor, and on a real SLURM."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm import cluster
from tests.sweeps.programs import train
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.launch import JobHandle, Platform
from trainlab.sweeps import run_parameter_sweep

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("slurm_script.py")
PATIENCE = 120.0


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
def test_what_came_of_a_job_is_told_before_it_is_submitted_again(tmp_path: Path) -> None:
    """Who calls again without waiting is told why a job failed, and the call after that repeats it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SUBMITIT"))}
    jobs = tmp_path / "work" / "sweep_jobs" / "jobs"
    assert sweep(tmp_path, "local", 2, "wait=0", env=env).stdout.split() == ["submitted", "False", "None"] * 2
    handles = [JobHandle.load(jobs / "000" / str(index)) for index in range(2)]
    assert [handle.wait(PATIENCE) for handle in handles] == ["COMPLETED", "FAILED"]
    told = sweep(tmp_path, "local", 2, "wait=0", env=env)
    assert told.returncode == 1 and "001_number=1: failed: ArithmeticError: number 1" in told.stderr
    assert [path.name for path in jobs.iterdir()] == ["000"]
    assert sweep(tmp_path, "local", 2, "wait=0", env=env).stdout.split()[:2] == ["finished", "True"]
    assert sorted(path.name for path in jobs.iterdir()) == ["000", "001"]
    assert JobHandle.load(jobs / "001" / "0").wait(PATIENCE) == "FAILED"


@pytest.mark.slow
def test_secrets_of_jobs_are_for_nobody_else(tmp_path: Path) -> None:
    """A token of a job is in a folder that only its user can enter, and gone when the job has ended."""
    token = secrets.token_hex(8)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SUBMITIT"))}
    sweep(tmp_path, "local", 3, "wait=0", env=env | {"TOKEN": token, "EXITS": "2"})
    jobs = tmp_path / "work" / "sweep_jobs" / "jobs"
    assert [path.stat().st_mode & 0o077 for path in (jobs, jobs / "000" / "slurm")] == [0, 0]
    for index in range(3):
        JobHandle.load(jobs / "000" / str(index)).wait(PATIENCE)
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert not holding


@pytest.mark.slow
def test_a_job_is_not_submitted_twice_though_its_submitter_was_killed(tmp_path: Path) -> None:
    """After kill -9 between sbatch and its note, what cannot begin is cancelled, what runs is waited for: once each."""
    if (reason := cluster.missing()) is not None:
        pytest.skip(reason)
    slow_sbatch = tmp_path / "bin" / "sbatch"
    slow_sbatch.parent.mkdir()
    slow_sbatch.write_text(f'#!/bin/bash\n{shutil.which("sbatch")} "$@"\ntouch submitted\nsleep 60\n')
    slow_sbatch.chmod(0o755)
    (tmp_path / "mended").touch()
    with cluster.running() as slurm:
        slow = slurm.env | {"PATH": f"{slow_sbatch.parent}:{slurm.env['PATH']}", "PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, str(SCRIPT), str(tmp_path), "slurm", "2", "partition=apart", "wait=0"]
        with subprocess.Popen(arguments, cwd=tmp_path, env=slow, start_new_session=True) as submitter:
            cluster.wait_for((tmp_path / "submitted").exists, cluster.PATIENCE, "nothing was submitted")
            os.killpg(submitter.pid, signal.SIGKILL)
        lost = slurm.run("squeue", "-h", "--array", "--format=%i").stdout.split()
        assert len(lost) == 2
        # Again, and killed a little later: what is to be called is there, and the note alone is missing.
        assert sweep(tmp_path, "slurm", 2, "partition=apart", "wait=0", env=slurm.env).returncode == 0
        assert {slurm.state(job) for job in lost} == {"CANCELLED"}
        for note in (tmp_path / "work" / "sweep_jobs" / "jobs").glob("001/*/job.json"):
            note.unlink()
        done = sweep(tmp_path, "slurm", 2, "partition=apart", env=slurm.env)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [[start["status"] for start in record["starts"]] for record in records(tmp_path)] == [["finished"]] * 2
    assert sorted(path.name for path in (tmp_path / "work" / "sweep_jobs" / "jobs").iterdir()) == ["000", "001"]


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
