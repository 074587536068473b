"""When a SLURM job is put back into the queue, by what `scontrol` says; tests/slurm has the same in real jobs."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import trainlab
from tests.training import jobs
from trainlab.distributed import slurm
from trainlab.errors import PeerFailedError
from trainlab.training.requeue import requeue

RUNNING = "JobId=1 BatchFlag=1 Requeue=1 Restarts=0 JobState=RUNNING Reason=None PreemptTime=None"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-01-01T00:00:00")
OVER_TIME = RUNNING.replace("RUNNING Reason=None", "COMPLETING Reason=TimeLimit")

Scontrol = Callable[[str], Path]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scontrol:
    """A batch job whose scontrol runs a line of shell, and keeps its arguments in the file that is given."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TRAINLAB_", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    for name, value in (("SLURM_JOB_ID", "1"), ("ENVIRONMENT", "BATCH")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    calls = tmp_path / "calls"

    def make(line: str) -> Path:
        program = tmp_path / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{line}\n')
        program.chmod(0o755)
        return calls

    return make


@pytest.mark.parametrize(
    ("job", "number", "failed", "expected"),
    [
        (RUNNING, signal.SIGTERM, False, True),
        (RUNNING, signal.SIGTERM, True, False),
        (RUNNING, signal.SIGUSR1, True, True),
        (RUNNING, signal.SIGUSR2, True, True),
        (PREEMPTED, signal.SIGTERM, True, True),
        (OVER_TIME, signal.SIGTERM, True, True),
    ],
)
def test_a_failure_is_requeued_only_if_slurm_ends_the_job(
    scontrol: Scontrol, job: str, number: int, failed: bool, expected: bool
) -> None:
    """After SIGTERM, which srun sends where a rank is lost, a failed run is not requeued unless SLURM ends the job."""
    calls = scontrol(f"echo '{job}'")
    assert requeue(number, failed=failed) is expected
    assert ("requeue 1" in calls.read_text().splitlines()) is expected


@pytest.mark.parametrize(("error", "expected"), [(ValueError("mine"), True), (PeerFailedError("another's"), False)])
def test_what_another_rank_failed_by_is_not_requeued(
    scontrol: Scontrol, tmp_path: Path, error: Exception, expected: bool
) -> None:
    """A run that fails after SIGUSR1 is requeued, but not if another rank's failure ended it."""
    calls = scontrol(f"echo '{RUNNING}'")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with pytest.raises((ValueError, SystemExit)), trainlab.init(run_dir=tmp_path / "run", progress=False):
            os.kill(os.getpid(), signal.SIGUSR1)
            raise error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (calls.exists() and "requeue 1" in calls.read_text()) is expected


@pytest.mark.parametrize(
    ("job", "switch", "status"),
    [
        (RUNNING, "1", "preempted"),
        (RUNNING.replace("Restarts=0", "Restarts=1"), "1", "preempted"),
        (RUNNING, "0", "interrupted"),
    ],
)
def test_a_run_whose_job_goes_on_is_preempted(
    scontrol: Scontrol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, switch: str, status: str
) -> None:
    """Where trainlab or SLURM puts the job back into the queue the run is preempted, otherwise interrupted."""
    scontrol(f"echo '{job}'")
    monkeypatch.setenv("TRAINLAB_REQUEUE", switch)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with pytest.raises(SystemExit) as ended, trainlab.init(run_dir=tmp_path / "run", progress=False) as context:
            os.kill(os.getpid(), signal.SIGUSR1)
            trainlab.Trainer(jobs.Noted(context, {}), context).fit(max_length=trainlab.Batch(5))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 128 + signal.SIGUSR1
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == status


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_signals_to_all_processes_of_the_job_do_not_end_scontrol(scontrol: Scontrol, name: str) -> None:
    """A second signal, which SLURM sends to every process of a job, lets the question to SLURM be answered."""
    calls = scontrol(f"kill -{name} $$\necho yes")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert slurm.scontrol("ping").stdout == "yes\n"
    assert calls.read_text() == "ping\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_an_scontrol_that_is_killed_is_called_once_more(scontrol: Scontrol) -> None:
    """A signal that kills scontrol all the same costs one of two tries; an error of its own costs none."""
    calls = scontrol("kill -KILL $$")
    assert slurm.scontrol("ping").returncode == -signal.SIGKILL
    assert calls.read_text() == "ping\n" * 2
    calls.unlink()
    scontrol("exit 1")
    assert slurm.scontrol("ping").returncode == 1 and calls.read_text() == "ping\n"
