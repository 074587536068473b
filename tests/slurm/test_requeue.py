"""Training in a SLURM job that is told of its end, preempted, cancelled, or that fails."""

import json
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import PATIENCE, Slurm, wait_for
from tests.training import jobs

PYTHON = f"{shlex.quote(sys.executable)} -m tests.slurm.training"
FOUR = ("--nodes=2", "--ntasks-per-node=2")
BATCHES = list(range(1, 13))


@dataclass
class Story:
    """A job and its run."""

    job: str
    run: Path

    def told(self, rank: int = 0) -> Any:
        return pickle.loads(self.run.with_name(f"{self.run.name}.rank-{rank}").read_bytes())

    def status(self) -> str:
        return str(json.loads((self.run / "run.json").read_text())["status"])

    def reported(self) -> list[int]:
        records = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [record["batch"] for record in records if record["kind"] == "training"]

    def log(self) -> str:
        return (self.run / "log.txt").read_text()

    def beside(self) -> "Story":
        return Story(self.job, self.run.with_name(f"{self.run.name}-plain"))

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run / "checkpoints").iterdir())


def begin(
    slurm: Slurm,
    run: Path,
    *program: str,
    options: tuple[str, ...] = (),
    start: str = "srun",
    **variables: str,
) -> Story:
    """Submit a training."""
    command = f"{start} {PYTHON} {run} {shlex.join(program)}"
    return Story(slurm.submit(command, *options, env={**slurm.env, "OMP_NUM_THREADS": "1", **variables}), run)


def while_it_pauses(slurm: Slurm, story: Story, number: str, ranks: int = 1) -> None:
    """Send a signal while no rank is in fit, and let it go on when all have heard of it."""
    for rank in range(ranks):
        slurm.wait_for_output(story.job, f"rank {rank} pauses")
    slurm.cancel(story.job, f"--signal={number}")
    wait_for(lambda: slurm.output(story.job).count(": noted") == ranks, PATIENCE, lambda: slurm.output(story.job))
    story.run.with_name(f"{story.run.name}.go").touch()


def signal_it(slurm: Slurm, story: Story, number: str, *options: str, attempt: int = 0, rank: int = 0) -> None:
    """Send a signal where a job has come to its waiting."""
    slurm.wait_for_output(story.job, f"rank {rank} waits at")
    slurm.wait_for_output(story.job, f"in attempt {attempt}")
    slurm.cancel(story.job, f"--signal={number}", *options)


@pytest.fixture(scope="module")
def alone(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One process, outside of SLURM and undisturbed; beside it a run without random numbers, of the name + "-plain"."""
    run = tmp_path_factory.mktemp("alone") / "run"
    command = [*shlex.split(PYTHON), str(run), "--random", "--twice"]
    slurm.run(*command, check=True, env={**slurm.env, "OMP_NUM_THREADS": "1"})
    return Story("", run)


@pytest.fixture(scope="module")
def stories(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Story]:
    """Jobs all submitted at once: SLURM lets a job that is requeued wait for some seconds."""
    folder = tmp_path_factory.mktemp("stories")
    apart = ("--partition=apart", "--ntasks=1")
    begun = {
        # SLURM may signal up to a minute earlier than it is asked to.
        "limit-told": begin(slurm, folder / "lt", "--waits", "5", options=(*apart, "--time=3", "--signal=USR1@90")),
        "limit-batch": begin(
            slurm, folder / "lb", "--waits", "5", options=(*apart, "--time=3", "--signal=B:USR2@90"), start="exec"
        ),
        "limit-late": begin(slurm, folder / "ll", "--waits", "5", options=(*apart, "--time=1")),
        "found": begin(slurm, folder / "found", "--found", "--random", "--waits", "5"),
        "cancelled": begin(slurm, folder / "cancelled", "--waits", "5"),
        "often": begin(slurm, folder / "often", "--waits", "3", "6", "9", start="exec", TRAINLAB_MAX_REQUEUES="1"),
        "handlers": begin(slurm, folder / "handlers", "--waits", "5", "--handler", "--caught"),
        "off": begin(slurm, folder / "off", "--waits", "5", "--faulthandler", TRAINLAB_REQUEUE="0"),
        "broken": begin(slurm, folder / "broken", "--pauses", "early", "--breaks"),
        "late": begin(slurm, folder / "late", "--pauses", "late"),
        "no-requeue": begin(
            slurm, folder / "no", "--pauses", "early", options=("--no-requeue", "--nodes=2", "--ntasks=2")
        ),
    }
    signal_it(slurm, begun["found"], "USR1")
    slurm.wait_for_output(begun["cancelled"].job, "rank 0 waits at 5")
    slurm.cancel(begun["cancelled"].job)
    signal_it(slurm, begun["often"], "USR1", "--batch")
    signal_it(slurm, begun["handlers"], "USR2")
    signal_it(slurm, begun["off"], "USR1")
    slurm.wait_for_output(begun["off"].job, "most recent call first")
    signal_it(slurm, begun["off"], "USR2")
    while_it_pauses(slurm, begun["broken"], "USR1")
    while_it_pauses(slurm, begun["late"], "USR1")
    while_it_pauses(slurm, begun["no-requeue"], "TERM", ranks=2)
    signal_it(slurm, begun["often"], "USR1", "--batch", attempt=1)
    return begun


def ended_as_if_nothing_was(slurm: Slurm, story: Story, run: Path, whole: Story) -> None:
    assert slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    output = slurm.output(story.job)
    assert "rank 0 ends with 138" in output and "starts attempt 1" in output
    assert story.told()["digest"] == whole.told()["digest"]
    there = Story(story.job, run)
    assert there.reported() == whole.reported() == BATCHES
    assert there.status() == "finished" and slurm.show(story.job)["Restarts"] == "1"


@pytest.mark.slow
def test_a_signal_before_fit_requeues_the_job(slurm: Slurm, alone: Story, tmp_path: Path) -> None:
    """A job that gets SIGUSR1 while it builds its model is requeued, and ends as if nothing was."""
    story = begin(slurm, tmp_path / "run", "--random", "--pauses", "early")
    while_it_pauses(slurm, story, "USR1")
    ended_as_if_nothing_was(slurm, story, story.run, alone)
    assert min(story.told()["seen"]) == 1


@pytest.mark.slow
def test_a_job_that_fails_by_the_signal_is_requeued(slurm: Slurm, stories: dict[str, Story]) -> None:
    """What raises an error after SIGUSR1, which goes to all subprocesses, is requeued; by itself it would fail."""
    story = stories["broken"]
    assert slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    assert "ZeroDivisionError: what a signal does" in slurm.output(story.job)
    assert slurm.show(story.job)["Restarts"] == "1" and story.reported() == BATCHES


@pytest.mark.slow
def test_a_signal_after_the_last_fit_changes_nothing(slurm: Slurm, stories: dict[str, Story]) -> None:
    """A job that is told of its end when it has trained to its own completes, and is not started again."""
    story = stories["late"]
    assert slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    assert slurm.show(story.job)["Restarts"] == "0" and story.status() == "finished"


@pytest.mark.slow
def test_a_signal_before_the_end_requeues_the_job(slurm: Slurm, alone: Story, stories: dict[str, Story]) -> None:
    """A script that names neither a folder nor a checkpoint goes on with its run when SIGUSR1 has requeued its job."""
    story = stories["found"]
    assert slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    (run,) = (story.run / "runs" / "found").glob("*_slurm-*")
    ended_as_if_nothing_was(slurm, story, run, alone)
    assert min(story.told()["seen"]) == 6 and "Training from batch 6" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_scancel_ends_a_job_for_good(slurm: Slurm, stories: dict[str, Story]) -> None:
    """What scancel ends is saved and noted as interrupted, and is not requeued."""
    story = stories["cancelled"]
    assert slurm.wait(story.job) == "CANCELLED"
    assert slurm.show(story.job)["Restarts"] == "0"
    assert story.status() == "interrupted" and story.checkpoints() == ["batch-0000006"]
    assert "is not requeued: SLURM ends it" in story.log()


@pytest.mark.slow
def test_requeues_can_be_limited(slurm: Slurm, stories: dict[str, Story]) -> None:
    """A batch script that itself becomes the training is requeued, but with TRAINLAB_MAX_REQUEUES=1 only once."""
    story = stories["often"]
    assert slurm.wait(story.job) == "FAILED"
    assert slurm.show(story.job)["Restarts"] == "1" and slurm.show(story.job)["ExitCode"] == "138:0"
    assert story.checkpoints()[-1] == "batch-0000007"
    assert "it has been 1 times already" in story.log()


@pytest.mark.slow
def test_the_users_handlers_survive(slurm: Slurm, stories: dict[str, Story]) -> None:
    """A handler of the user's is called after the checkpoint, once, and is there again when fit has ended."""
    story = stories["handlers"]
    assert slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    output = slurm.output(story.job)
    assert output.count("the user's handler got 12, True") == 1
    assert "rank 0 has its handlers: True" in output
    assert story.log().index("batch-0000006") < story.log().index("calling the handler")
    assert slurm.show(story.job)["Restarts"] == "1"


@pytest.mark.slow
def test_requeueing_can_be_switched_off(slurm: Slurm, stories: dict[str, Story]) -> None:
    """With TRAINLAB_REQUEUE=0 a job only saves and ends; a SIGUSR1 that faulthandler has is left to it."""
    story = stories["off"]
    assert slurm.wait(story.job) == "FAILED"
    output = slurm.output(story.job)
    assert "SIGUSR1: finishing" not in output and "SIGUSR2: finishing" in output
    assert slurm.show(story.job)["Restarts"] == "0" and story.checkpoints() == ["batch-0000006"]


@pytest.mark.slow
def test_a_job_that_may_not_be_requeued_is_not(slurm: Slurm, stories: dict[str, Story]) -> None:
    """A job submitted with --no-requeue, here of two ranks told before fit, saves and ends; the log says why."""
    story = stories["no-requeue"]
    assert slurm.wait(story.job) == "FAILED"
    assert slurm.show(story.job)["Restarts"] == "0" and "--no-requeue" in story.log()
    assert story.checkpoints() == ["batch-0000001"]


@pytest.mark.slow
def test_tasks_of_an_array_are_requeued_one_by_one(slurm: Slurm, tmp_path: Path) -> None:
    """A task of an array is requeued alone, also the last one, whose number is that of the whole array."""
    place = tmp_path / "run-$SLURM_ARRAY_TASK_ID"
    array = begin(slurm, place, "--waits", "5", options=("--array=0-1",)).job
    tasks = [Story(f"{array}_{number}", tmp_path / f"run-{number}") for number in range(2)]
    for task in tasks:
        slurm.wait_for_output(task.job, "rank 0 waits at 5")
    assert slurm.show(tasks[1].job)["JobId"] == array
    signal_it(slurm, tasks[1], "USR1")
    slurm.wait_for_output(tasks[1].job, "ends with 138")
    assert slurm.state(tasks[0].job) == "RUNNING"
    signal_it(slurm, tasks[0], "USR1")
    assert [slurm.wait(task.job) for task in tasks] == ["COMPLETED"] * 2
    assert [slurm.show(task.job)["Restarts"] for task in tasks] == ["1", "1"]
    assert tasks[0].reported() == tasks[1].reported() == BATCHES


@pytest.mark.slow
def test_submitits_handler_is_called_after_the_checkpoint(slurm: Slurm, tmp_path: Path) -> None:
    """Of a job that submitit has submitted, submitit's own handler requeues, and does so once all ranks have saved."""
    pytest.importorskip("submitit")
    run = tmp_path / "run"
    program = (
        "import submitit; from tests.slurm.training import Task; "
        f"executor = submitit.SlurmExecutor({str(tmp_path / 'jobs')!r}, max_num_timeout=1000); "
        "executor.update_parameters(partition='low', time=1000, nodes=1, ntasks_per_node=2, setup=['cd $PWD']); "
        f"print(executor.submit(Task({str(run)!r}, '--waits', '5')).job_id)"
    )
    done = slurm.run(sys.executable, "-c", program, check=True)
    story = Story(done.stdout.split()[-1], run)
    files = [tmp_path / "jobs" / f"{story.job}_{rank}_log" for rank in range(2)]

    def output() -> str:
        return "".join(path.read_text() for file in files for path in file.parent.glob(f"{file.name}.*"))

    wait_for(lambda: output().count("waits at 5") == 2, PATIENCE, output)
    slurm.cancel(story.job, "--signal=USR2")
    assert slurm.wait(story.job) == "COMPLETED", output()
    told = output()
    assert told.count("submitit asks for a checkpoint") == 1 and told.count("Requeued job") == 1
    assert story.log().index("batch-0000006") < story.log().index("calling the handler")
    assert "back in the queue" not in story.log() and slurm.show(story.job)["Restarts"] == "1"
    assert story.reported() == BATCHES and story.status() == "finished"


@pytest.mark.slow
def test_an_interactive_job_is_not_requeued(slurm: Slurm, tmp_path: Path) -> None:
    """What srun runs outside of a batch job saves and ends at SIGUSR1, and nobody tries to requeue it."""
    story = Story("", tmp_path / "run")
    command = ["srun", "--job-name=by-hand", *shlex.split(PYTHON), str(story.run), "--waits", "5"]
    process = subprocess.Popen(command, env=slurm.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        assert process.stdout is not None
        while "rank 0 waits" not in process.stdout.readline():
            assert process.poll() is None
        slurm.run("scancel", "--signal=USR1", "--name=by-hand", check=True)
        output = process.communicate(timeout=PATIENCE)[0]
    assert "rank 0 ends with 138" in output and process.returncode == 138
    assert "it is interactive" in story.log() and story.status() == "interrupted"


@pytest.mark.slow
def test_a_failing_rank_fails_the_job(slurm: Slurm, tmp_path: Path) -> None:
    """The first error of any rank is in the job's output, with its rank; the job fails, and is not requeued."""
    story = begin(slurm, tmp_path / "run", "--raises", "1:5", options=("--nodes=2", "--ntasks=2"))
    assert slurm.wait(story.job) == "FAILED"
    output = slurm.output(story.job)
    assert "ZeroDivisionError: a mistake of the user's" in output and re.search(r"[Rr]ank 1", output)
    assert slurm.show(story.job)["Restarts"] == "0" and story.status() == "failed"


@pytest.mark.slow
def test_a_lost_rank_fails_the_job(slurm: Slurm, tmp_path: Path) -> None:
    """Where srun ends the other ranks by SIGTERM because one is lost, the job fails, and is not requeued."""
    program = ("--waits", "5", "--killed", "1:5")
    story = begin(slurm, tmp_path / "run", *program, options=("--nodes=2", "--ntasks=2"), start="srun -K1")
    assert slurm.wait(story.job) == "FAILED"
    output = slurm.output(story.job)
    assert "SIGTERM: finishing the batch" in output and "starts attempt 1" not in output
    assert slurm.show(story.job)["Restarts"] == "0" and story.status() == "failed"


@pytest.fixture(scope="module")
def four(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Two nodes with two tasks each, which find each other over gloo, undisturbed; what they train is as alone's."""
    story = begin(slurm, tmp_path_factory.mktemp("four") / "run", "--random", "--twice", options=FOUR)
    assert slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    return story


@pytest.mark.slow
def test_two_nodes_train_as_one_process(alone: Story, four: Story) -> None:
    """Two nodes with two tasks each train the records of one process in the same steps, to the same weights."""
    one, ranks = alone.beside().told(), [four.beside().told(rank) for rank in range(4)]
    assert jobs.seen_by_all(ranks) == one["seen"]
    for rank in ranks:
        assert jobs.furthest(rank["weights"], one["weights"]) <= 1e-12
        assert rank["digest"] == ranks[0]["digest"]


@pytest.mark.slow
def test_a_preempted_job_ends_as_if_nothing_was(slurm: Slurm, four: Story, tmp_path: Path) -> None:
    """Four ranks on two nodes that another job displaces are requeued, and end bit-identical, each step once."""
    story = begin(slurm, tmp_path / "run", "--random", "--waits", "5", options=FOUR)
    for rank in range(4):
        slurm.wait_for_output(story.job, f"rank {rank} waits at 5")
    other = slurm.submit("true", "--partition=high", *FOUR, "--exclusive")
    assert slurm.wait(other) == "COMPLETED"
    assert slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    for rank in range(4):
        assert story.told(rank)["digest"] == four.told(rank)["digest"]
        assert min(story.told(rank)["seen"]) == 6
    assert story.reported() == four.reported() == BATCHES
    assert story.status() == "finished" and slurm.show(story.job)["Restarts"] == "1"


@pytest.mark.slow
def test_a_job_that_slurm_requeues_is_requeued_once(slurm: Slurm, tmp_path: Path) -> None:
    """Where a partition gives no time of grace, SLURM requeues a preempted job itself; training only saves."""
    story = begin(slurm, tmp_path / "run", "--waits", "5", options=("--partition=short",))
    slurm.wait_for_output(story.job, "rank 0 waits at 5")
    other = slurm.submit("true", "--partition=high", *FOUR, "--exclusive")
    assert slurm.wait(other) == slurm.wait(story.job) == "COMPLETED", slurm.output(story.job)
    assert slurm.show(story.job)["Restarts"] == "1" and "SLURM does that already" in story.log()
    assert story.reported() == BATCHES


@pytest.mark.slow
def test_a_time_limit(slurm: Slurm, stories: dict[str, Story]) -> None:
    """A job told by --signal of its time limit, and one that is told by the limit itself, are requeued and finish."""
    for name, number in (("told", 138), ("batch", 140), ("late", 143)):
        story = stories[f"limit-{name}"]
        assert slurm.wait(story.job, timeout=280) == "COMPLETED", slurm.output(story.job)
        assert f"rank 0 ends with {number}" in slurm.output(story.job)
        assert slurm.show(story.job)["Restarts"] == "1" and story.reported() == BATCHES
