"""A sweep as jobs: ``python slurm_script.py OUTPUT_DIR EXECUTOR COUNT [OPTION=VALUE ...]``."""

import os
import sys
from pathlib import Path

from pydantic import BaseModel, SecretStr

import trainlab
from trainlab.launch import Platform
from trainlab.sweeps import run_parameter_sweep


class Task(BaseModel):
    """The parameters of ``work``."""

    number: int
    token: SecretStr = SecretStr("nothing")


@trainlab.experiment
def work(task: Task) -> dict[str, float]:
    """Fail at number 1 until somebody has mended it, and say where it runs."""
    if task.number == 1 and not Path("mended").exists():
        raise ArithmeticError("number 1 is not mended")
    if str(task.number) == os.environ.get("EXITS"):
        sys.exit(3)
    return {"score": task.number / 2, "job": float(os.environ.get("SLURM_JOB_ID", "0"))}


if __name__ == "__main__":
    output_dir, executor, count, *rest = sys.argv[1:]
    options = dict(option.split("=") for option in rest)
    wait = options.pop("wait", "1") == "1"
    platform = Platform(device="slurm", executor=executor, time=10, wait=wait, **options)
    token = os.environ.get("TOKEN", "nothing")
    tasks = [{"number": number, "token": token} for number in range(int(count))]
    result = run_parameter_sweep(work, tasks, name="jobs", output_dir=output_dir, platform=platform)
    for run in result:
        print(run.status, run.is_skipped, run.metrics.get("score"))
