"""The digits example as a job of a real SLURM."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Slurm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_digits_example_is_a_job(slurm: Slurm, tmp_path: Path) -> None:
    """`digits.py --platform slurm` submits itself to two nodes, waits, and tells what each rank returned."""
    options = ["--platform", "slurm", "--nodes", "2", "--time", "10", "--partition", "low", "--wait"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py"), "--epochs", "1", *options],
        cwd=tmp_path,
        env={**slurm.env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    returned = json.loads(done.stdout)
    assert len(returned) == 2 and len(set(returned)) == 1
    (folder,) = (tmp_path / "runs").glob("*/*")
    job, record = (json.loads((folder / name).read_text()) for name in ("job.json", "run.json"))
    assert slurm.state(job["job_id"]) == "COMPLETED" and record["status"] == "finished"
    assert "Test accuracy: " in (folder / "slurm" / f"{job['job_id']}_0_log.out").read_text()


def test_the_guides_batch_script_trains(slurm: Slurm, tmp_path: Path) -> None:
    """The batch script of docs/slurm.md runs the program of docs/launching.md on all tasks, in one run."""
    script, program = _block("slurm.md", "bash"), _block("launching.md", "python")
    (tmp_path / "train.py").write_text(program)
    # What this cluster has, in place of what the guide asks for.
    asked = "".join(line for line in script.splitlines(True) if "gpus" not in line and "--output" not in line)
    options = ["--ntasks-per-node=1", "--cpus-per-task=1", "--time=10", f"--chdir={tmp_path}"]
    path = f"{Path(sys.executable).parent}:{slurm.env['PATH']}"
    env = {**slurm.env, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    job = slurm.submit(asked, *options, env=env)
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    assert slurm.output(job).count("2 ranks, loss ") == 2
    (run,) = (tmp_path / "runs" / "sums").iterdir()
    assert run.name.endswith(f"_slurm-{job}")


def _block(page: str, language: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]
