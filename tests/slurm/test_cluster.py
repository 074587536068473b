"""The SLURM that the tests run on."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm import cluster
from tests.slurm.cluster import Slurm

# A shell as the first process: it reaps what others leave.
APART = [
    "unshare",
    *(f"--{one}" for one in ("mount", "net", "ipc", "pid", "fork", "mount-proc")),
    "sh",
    "-c",
    '"$@"; exit $?',
    "sh",
]


def test_a_job_runs(slurm: Slurm) -> None:
    """A batch job runs on both nodes, and its output is there."""
    job = slurm.submit("srun hostname; echo done $SLURM_JOB_ID", "--nodes=2", "--ntasks-per-node=2")
    assert slurm.wait(job) == "COMPLETED"
    assert f"done {job}" in slurm.output(job)


@pytest.mark.slow
def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    """After a job was cancelled and its SLURM stopped, no process, port, shared memory or temporary file is left."""
    if (reason := cluster.missing()) is not None:
        pytest.skip(reason)
    if subprocess.run([*APART, "true"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("this container may make no namespaces")
    # Torch keeps a cache of its own, for the next program.
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [*APART, sys.executable, "-m", "tests.slurm.leftovers"],
            env={**os.environ, "TMPDIR": place, **variables},
            stdout=subprocess.PIPE,
            text=True,
            timeout=280,
            check=True,
        )
    told = json.loads(done.stdout)
    assert told["ended"] == "CANCELLED" and told["left"] == {}
    assert set(told["during"]) == {"processes", "ports", "temporary files"}
