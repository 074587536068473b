"""Pool: runs in processes of their own, and what becomes of them."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.programs import train, wait
from trainlab.distributed.cpus import cpu_quota
from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.launch import Platform, launch
from trainlab.runs.listing import read_run
from trainlab.sweeps.gpus import Gpus
from trainlab.sweeps.pool import Finished, Job, Pool
from trainlab.sweeps.worker import run_job

PATIENCE = 120.0


def until(happened: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        threading.Event().wait(0.01)


def ended(pool: Pool) -> Finished:
    """What ends next."""
    finished = pool.wait(PATIENCE)
    assert finished is not None, "nothing ended"
    return finished


def job(key: str, folder: Path, experiment: Any = train, **params: Any) -> Job:
    """A job in a folder of its own."""
    return Job(key, experiment, params, folder / key)


def test_gpus_come_back_however_a_run_ends(tmp_path: Path) -> None:
    """Of two GPUs each of four runs sees one alone, also after a failure and a kill -9 had the one before."""
    gpus = Gpus(["3", "GPU-8f2c"], 1)
    ends = {"a": "exit", "b": "killed", "c": "exit", "d": "well"}
    found: dict[str, Finished] = {}
    given: list[str] = []
    with Pool(2, gpus=gpus) as pool:
        for key, end in ends.items():
            if not pool.has_room:
                finished = ended(pool)
                found[finished.job.key] = finished
            running = pool.submit(job(key, tmp_path, end=end))
            assert running is not None
            assert len({one.gpus for one in pool.running}) == len(pool.running) and len(running.gpus) == 1
            given.extend(running.gpus)
        while pool.running:
            finished = ended(pool)
            found[finished.job.key] = finished
    assert [(tmp_path / key / "starts").read_text().split()[1] for key in ends] == given
    assert {key: one.exitcode for key, one in found.items()} == {"a": 3, "b": -signal.SIGKILL, "c": 3, "d": 0}
    assert found["d"].error == "" and found["a"].error == "SystemExit: 3"
    assert gpus.take() != gpus.take()
    statuses = {key: run.status for key in ends if (run := read_run(tmp_path / key)) is not None}
    assert statuses == {"a": "failed", "b": "crashed", "c": "failed", "d": "finished"}


def test_a_stopped_pool_lets_runs_end_and_kills_what_does_not(tmp_path: Path) -> None:
    """After stop nothing starts; who obeys Ctrl-C ends interrupted, who does not is killed when the time is over."""
    with Pool(2) as pool:
        pool.submit(job("obeys", tmp_path, wait, number=1))
        pool.submit(job("does not", tmp_path, wait, number=2, obeys=False))
        until(lambda: len(list(tmp_path.glob("*/begun"))) == 2)
        assert pool.wait(0.0) is None
        pool.stop(PATIENCE)
        assert not pool.has_room
        first = ended(pool)
        assert first.job.key == "obeys" and first.exitcode == 128 + signal.SIGINT and first.is_stopped
        pool.stop()
        assert ended(pool).exitcode == -signal.SIGKILL
        with pytest.raises(InvalidStateError, match="No job runs"):
            pool.wait()
        assert pool.submit(job("late", tmp_path)) is None
    runs = [read_run(tmp_path / key) for key in ("obeys", "does not")]
    assert [run.status for run in runs if run is not None] == ["interrupted", "crashed"]
    # Begun again in the same folders, they come to their end: once each, whoever asks for it again.
    for _ in range(2):
        run_job(wait, {"number": 1}, tmp_path / "obeys")
    run_job(wait, {"number": 1}, tmp_path / "obeys", is_job=True)
    record = read_run(tmp_path / "obeys")
    assert record is not None and [one["status"] for one in record.record["starts"]] == ["interrupted", "finished"]


@pytest.mark.slow
def test_a_job_of_several_ranks_leaves_a_finished_run_alone(tmp_path: Path) -> None:
    """A job that is requeued after its run's last line does not repeat it, on any of its ranks."""
    for _ in range(2):
        launch(
            run_job, train, {}, tmp_path / "run", is_job=True, platform=Platform(device="cpu", processes=2, timeout=60)
        )
    record = read_run(tmp_path / "run")
    assert record is not None and [one["status"] for one in record.record["starts"]] == ["finished"]
    assert len((tmp_path / "run" / "starts").read_text().splitlines()) == 2


def test_an_error_in_the_block_leaves_no_process(tmp_path: Path) -> None:
    """Whatever goes wrong in the program that has a pool, its processes are gone when the block is left."""
    pids: list[int] = []

    def go_wrong() -> None:
        with Pool() as pool:
            pool.submit(job("a", tmp_path, wait, number=1))
            until((tmp_path / "a" / "begun").exists)
            pids.extend(int(text.read_text()) for text in tmp_path.glob("*/begun"))
            raise ArithmeticError("a mistake")

    with pytest.raises(ArithmeticError, match="a mistake"):
        go_wrong()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_processes_share_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at once use half of the CPUs each, unless the user has said how many threads there are."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    cpus = len(os.sched_getaffinity(0))
    half = str(max(1, int(min(cpus, cpu_quota() or cpus)) // 2))
    assert Pool(2)._variables(()).get("OMP_NUM_THREADS") == half
    assert "OMP_NUM_THREADS" not in Pool(1)._variables(())
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in Pool(2)._variables(())


@pytest.mark.parametrize(
    ("number", "error"), [(0, InvalidValueError), (True, InvalidTypeError), ("2", InvalidTypeError)]
)
def test_a_wrong_number_of_processes_is_an_error(number: Any, error: type[Exception]) -> None:
    """max_num_processes is an int of at least 1."""
    with pytest.raises(error, match=f"max_num_processes is .*Received: {number!r}"):
        Pool(number)
