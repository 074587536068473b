"""Jobs that launch submits to a real SLURM."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.slurm import submitted
from tests.slurm.cluster import PATIENCE, Slurm
from trainlab.errors import LaunchError, RankFailedError
from trainlab.launch import Platform, launch, launch_array
from trainlab.launch.job import JobHandle
from trainlab.launch.waiting import wait_visibly

# That of jobs is made of their numbers, which another cluster on this machine may have given out, too.
OWN_PORT = "export MASTER_PORT=$((20000 + RANDOM % 10000))"


@pytest.fixture(autouse=True)
def _in_its_cluster(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch finds the cluster, and jobs without a folder of their own lie in this one."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SUBMITIT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def on_slurm(**options: object) -> Platform:
    return Platform(device="slurm", **options)


def run(function: object, *args: object, platform: Platform) -> JobHandle:
    return launch(function, *args, platform=platform)


@pytest.mark.slow
def test_a_job_runs_on_two_nodes(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function called on two nodes with two ranks each gives four results, also for a rank of another job."""
    monkeypatch.setenv("RANK", "7")
    platform = on_slurm(
        nodes=2, processes=2, cpus_per_task=1, setup=["echo set up", OWN_PORT], extra={"comment": "hello"}
    )
    handle = run(submitted.whole_sum, 10, platform=platform)
    assert handle.result(PATIENCE) == [(0, 4, 46.0, "0"), (1, 4, 46.0, "0"), (2, 4, 46.0, "1"), (3, 4, 46.0, "1")]
    assert handle.state == "COMPLETED" and handle.done
    assert "set up" in handle.logs() and "rank 3 is here" in handle.logs(rank=3)
    assert handle.folder.parent == Path("runs/whole_sum").absolute()
    shown = slurm.show(handle.job_id)
    assert shown["JobName"] == "whole_sum" and shown["Comment"] == "hello"
    assert shown["TimeLimit"] != "00:05:00", "submitit's default stands in for the partition's"


@pytest.mark.slow
def test_a_preempted_training_ends_as_if_nothing_was(slurm: Slurm, tmp_path: Path) -> None:
    """A training that another job preempts is requeued, goes on in the job's folder, and ends bit for bit the same."""
    folder = tmp_path / "job"
    handle = run(submitted.train, 12, 5, platform=on_slurm(partition="low", folder=folder, nodelist="n2"))
    undisturbed = run(submitted.train, 12, platform=on_slurm(executor="local"))
    wait_for_log(handle, "waits at 5")
    before = slurm.submit("true", "--partition=high", "--nodelist=n2", "--exclusive")
    (trained,) = handle.result(PATIENCE)
    assert slurm.state(before) == "COMPLETED"
    assert trained["attempt"] == 1 and min(trained["seen"]) == 6
    assert trained["digest"] == undisturbed.result(PATIENCE)[0]["digest"]
    assert trained["folder"] == str(folder)
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [record["batch"] for record in records if record["kind"] == "training"] == list(range(1, 13))
    assert "this job is" in handle.logs(), "submitit's own handler was not called"


@pytest.mark.slow
def test_a_training_outlives_its_time_limit(tmp_path: Path) -> None:
    """A training that SLURM tells of its time limit is requeued before it, and ends in a second attempt."""
    handle = run(submitted.train, 12, 5, platform=on_slurm(folder=tmp_path / "job", time="2:00", signal_lead=60))
    (trained,) = handle.result(240)
    assert trained["attempt"] == 1 and min(trained["seen"]) == 6


@pytest.mark.slow
def test_a_function_that_is_no_training_is_called_again(slurm: Slurm) -> None:
    """The signal that announces the end requeues any function, which is called again, unless requeue=False."""
    once = run(submitted.signal_itself, signal.SIGUSR2, 1, platform=on_slurm(max_requeues=1))
    never = run(submitted.signal_itself, signal.SIGUSR2, 1, platform=on_slurm(requeue=False))
    assert once.result(PATIENCE) == [1]
    assert slurm.show(once.job_id)["Restarts"] == "1"
    assert "attempt 0" in once.logs() and "attempt 1" in once.logs()
    with pytest.raises(RankFailedError, match="not requeued"):
        never.result(PATIENCE)


@pytest.mark.slow
def test_the_first_error_reaches_the_submitter(slurm: Slurm) -> None:
    """A job that fails tells which rank failed first, with its traceback, and is not requeued."""
    handle = run(submitted.fail_on, 1, platform=on_slurm(processes=2, setup=[OWN_PORT]))
    with pytest.raises(RankFailedError, match="Rank 1 of 2 failed.*a mistake on rank 1") as caught:
        handle.result(PATIENCE)
    assert caught.value.rank == 1 and "fail_on" in caught.value.traceback
    assert handle.state == "FAILED" and slurm.show(handle.job_id)["Restarts"] == "0"
    assert str(handle.log(1)) in str(caught.value)


@pytest.mark.slow
def test_an_array_runs_some_jobs_at_once(slurm: Slurm, tmp_path: Path) -> None:
    """Jobs of an array have folders and results of their own, and one that fails leaves the others alone."""
    platform = on_slurm(folder=tmp_path / "sweep", array_parallelism=2)
    handles = launch_array(submitted.square, [(number,) for number in range(6)], platform=platform)
    told = io.StringIO()
    assert wait_visibly(handles, Console(file=told, width=200)) == ["COMPLETED"] * 3 + ["FAILED"] + ["COMPLETED"] * 2
    main = handles[0].job_id.partition("_")[0]
    assert slurm.show(f"{main}_5")["ArrayTaskThrottle"] == "2"
    assert [handle.folder.name for handle in handles] == list("012345")
    assert [handles[number].result() for number in (0, 1, 2, 4, 5)] == [[0], [1], [4], [16], [25]]
    with pytest.raises(RankFailedError, match="three is not liked"):
        handles[3].result()
    assert f"Jobs {main}_0 to {main}_5 (square): 5 COMPLETED, 1 FAILED" in told.getvalue()
    with pytest.raises(LaunchError, match="an array's: load one of"):
        JobHandle.load(tmp_path / "sweep")
    assert JobHandle.load(tmp_path / "sweep" / "4").result() == [16]


@pytest.mark.slow
def test_a_job_outlives_who_waits_for_it(tmp_path: Path) -> None:
    """Ctrl-C of who waits leaves the job, says how to reach it, and what is reached can be cancelled."""
    folder = tmp_path / "job"
    program = [sys.executable, "-m", "tests.slurm.submitted", str(folder), "follow"]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ) as waiting:
        try:
            assert waiting.stderr is not None
            said = [waiting.stderr.readline()]
            while said[-1] and "RUNNING" not in said[-1]:  # it may be pending before, or not
                said.append(waiting.stderr.readline())
            handle = JobHandle.load(folder)
            wait_for_log(handle, "waiting")
            waiting.send_signal(signal.SIGINT)
            text = waiting.stderr.read()
        finally:
            waiting.kill()  # nothing, unless the test has failed
    title = f"Job {handle.job_id} (wait_for_ever): "
    assert said[-1] == f"{title}RUNNING\n" and all(line.startswith(f"{title}PENDING") for line in said[:-1])
    assert f"cancel it with `scancel {handle.job_id}`" in text and str(folder) in text
    assert handle.state == "RUNNING"
    with pytest.raises(LaunchError, match="job that has not ended"):
        run(submitted.square, 1, platform=on_slurm(folder=folder))
    with pytest.raises(LaunchError, match="has not ended after 0.1 s: it is RUNNING"):
        handle.result(0.1)
    handle.cancel()
    assert handle.wait(PATIENCE) == "CANCELLED"
    with pytest.raises(LaunchError, match=r"was cancelled\.\nThe last lines") as caught:
        handle.result()
    assert "waiting" in str(caught.value) and "CANCELLED AT" in str(caught.value)
    handle.cancel()  # once more does no harm


@pytest.mark.slow
def test_a_job_outlives_its_submitter(tmp_path: Path) -> None:
    """A job whose submitter is killed runs on, and its folder is enough to get its result."""
    folder = tmp_path / "job"
    program = [sys.executable, "-m", "tests.slurm.submitted", str(folder), "leave"]
    assert subprocess.run(program, cwd=ROOT, env=os.environ, check=False).returncode == -signal.SIGKILL
    assert JobHandle.load(folder).result(PATIENCE) == [(0, 1, 1.0, "0")]


def test_a_refused_job_is_told_in_slurms_words(tmp_path: Path) -> None:
    """What sbatch refuses is an error with its words, and leaves no folder."""
    with pytest.raises(LaunchError, match="refused: invalid partition specified: nonsense"):
        run(submitted.square, 1, platform=on_slurm(partition="nonsense", folder=tmp_path / "job"))
    with pytest.raises(LaunchError, match="[Mm]emory"):
        run(submitted.square, 1, platform=on_slurm(mem="100T", folder=tmp_path / "job"))
    assert not (tmp_path / "job").exists()


def test_a_forgotten_job_is_told_by_its_files(tmp_path: Path) -> None:
    """A job that SLURM does not know any more is known by its record; without a result it is said to be unknown."""
    record = {"format": 1, "job_id": "999", "name": "old", "executor": "slurm", "ranks": 1, "host": "", "folder": ""}
    record["files"] = "slurm"
    (tmp_path / "job.json").write_text(json.dumps(record))
    handle = JobHandle.load(tmp_path)
    assert handle.wait(PATIENCE) == "UNKNOWN"
    with pytest.raises(LaunchError, match="not known to SLURM any more, and left no result"):
        handle.result()
    (tmp_path / "job.json").write_text(json.dumps({**record, "state": "TIMEOUT"}))
    assert JobHandle.load(tmp_path).state == "TIMEOUT"


@pytest.mark.slow
def test_a_silent_slurm_is_waited_for(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A controller that does not answer for a while is asked again, and what it said before still holds."""
    handle = run(submitted.wait_for_ever, platform=on_slurm())
    watch = handle.watch()
    said = next(watch)
    assert said in {"PENDING", "RUNNING"}
    silent = tmp_path / "slurm.conf"
    silent.write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1", slurm.conf.read_text()))
    monkeypatch.setenv("SLURM_CONF", str(silent))
    assert next(watch) == said
    assert "does not say how job" in caplog.text
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    handle.cancel()
    assert handle.wait(PATIENCE) == "CANCELLED"


ROOT = Path(__file__).parents[2]


def wait_for_log(handle: JobHandle, text: str) -> None:
    """Wait until a job has written a text."""
    if not any(text in handle.logs() for _ in handle.watch(PATIENCE)):
        raise TimeoutError(f"{text!r} is not in what {handle} wrote: {handle.logs()}")
