"""What squeue says of a job that waits, as its handle tells it; tests/slurm asks a real one."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from trainlab.errors import LaunchError
from trainlab.launch.job import JobHandle, JobRecord
from trainlab.launch.waiting import wait_visibly


def waiting_job(folder: Path, monkeypatch: pytest.MonkeyPatch, number: str, *answers: str) -> JobHandle[None]:
    """A job of which squeue gives one answer after another, and then the last."""
    for index, answer in enumerate(answers):
        (folder / str(index)).write_text(f"{number}|{answer}\n")
    squeue = folder / "squeue"
    squeue.write_text(f'#!/bin/sh\ncd {folder}\nset -- [0-9]\ncat "$1"\n[ $# = 1 ] || rm "$1"\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return JobHandle(JobRecord(number, "sums", "slurm", 1, folder, folder / "slurm"))


def test_who_waits_in_vain_hears_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that has not started in time is told with SLURM's reason."""
    handle = waiting_job(tmp_path, monkeypatch, "101", "PENDING|QOSMaxJobsPerUserLimit")
    with pytest.raises(LaunchError, match=r"not ended after 0 s: it is PENDING \(QOSMaxJobsPerUserLimit\)\."):
        handle.wait(0)
    assert handle.reason == "QOSMaxJobsPerUserLimit"


def test_the_line_of_who_waits_has_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of the reason is told while a job is pending, and none where SLURM has none yet, or it has ended."""
    answers = ("PENDING|None", "PENDING|Nodes required for job are DOWN, DRAINED", "FAILED|NonZeroExitCode")
    handle = waiting_job(tmp_path, monkeypatch, "102", *answers)
    told = io.StringIO()
    assert wait_visibly([handle], Console(file=told, width=200)) == ["FAILED"]
    title = "Job 102 (sums): "
    assert told.getvalue().splitlines() == [
        f"{title}PENDING",
        f"{title}PENDING (Nodes required for job are DOWN, DRAINED)",
        f"{title}FAILED",
    ]
