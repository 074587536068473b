"""A launch whose processes are killed and started again: the same folder, the same end, each step once."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks, start_ranks
from tests.training import continued, jobs
from tests.training.exactness import SIGKILL, check_recorded, check_series
from trainlab import Batch, Trainer
from trainlab.training.rules import TrainingRules

OPTIONS: dict[str, Any] = {"dropout": 0.3, "augmented": True, "scheduler": True, "records": 104}
FIT: dict[str, Any] = {"checkpoint_period": Batch(4), "checkpoint_mode": "sync"}
STATE = ("weights", "optimizers", "generators", "metrics", "progress")


def variables(attempt: int, **more: object) -> dict[str, str]:
    """What the launcher sets."""
    return {
        "TRAINLAB_LAUNCH_ID": "abc",
        "TRAINLAB_ATTEMPT": str(attempt),
        **{f"TRAINLAB_{name}": str(value) for name, value in more.items()},
    }


def launch(folder: Path, size: int, attempt: int, *options: dict[str, Any], **more: object) -> list[Any]:
    """An attempt that comes to its end: how the runs ended, by rank."""
    folder.mkdir(exist_ok=True)
    return run_ranks(continued.train, size, str(folder), list(options), FIT, env=variables(attempt, **more))


def killed(folder: Path, size: int, attempt: int, *options: dict[str, Any], **more: object) -> str:
    """An attempt whose ranks all get SIGKILL: what they printed."""
    folder.mkdir(exist_ok=True)
    env = variables(attempt, **more)
    with start_ranks(continued.train, size, str(folder), list(options), FIT, env=env) as ranks:
        assert ranks.wait() == [SIGKILL] * size, ranks.outputs()
        return ranks.outputs()


def kill_at(batch: int, rank: int = 0, **options: Any) -> dict[str, Any]:
    """The options of a run whose ranks are killed in the middle of a batch."""
    return {**OPTIONS, **options, "kill": (rank, f"train:{batch}")}


def runs(folder: Path) -> list[Path]:
    """The folders of the runs."""
    return sorted((folder / "runs" / "night").iterdir())


def check_same(found: list[Any], whole: list[Any], number: int = 0) -> None:
    """Whether all ranks of a launch ended a run as those of one that was never killed, to the bit."""
    for rank, (runs_of_rank, expected) in enumerate(zip(found, whole, strict=True)):
        differing = [part for part in STATE if runs_of_rank[number][part] != expected[number][part]]
        assert not differing, f"rank {rank} ended with other {differing}"


def status(run_dir: Path) -> list[tuple[Any, ...]]:
    """The attempt and the status of each start that the record tells of."""
    record = json.loads((run_dir / "run.json").read_text())
    return [(start["attempt"], start["status"]) for start in record["starts"]]


@pytest.mark.parametrize("resume", [False, True], ids=["told nothing", "told to resume"])
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_started_again_a_launch_ends_as_if_it_never_was(tmp_path: Path, size: int, resume: bool) -> None:
    """Killed before its first checkpoint and twice after it, a launch ends in one folder, exact, each step once."""
    options = {**OPTIONS, "resume": resume}
    whole = launch(tmp_path / "whole", size, 0, options)
    for attempt, batch in enumerate((2, 7, 11)):
        killed(tmp_path / "again", size, attempt, kill_at(batch, size - 1, resume=resume))
    found = launch(tmp_path / "again", size, 3, options)
    check_same(found, whole)
    (run_dir,) = runs(tmp_path / "again")
    assert min(found[0][0]["seen"]) == 8
    assert status(run_dir) == [(0, "crashed"), (1, "crashed"), (2, "crashed"), (3, "finished")]
    check_recorded(run_dir, *runs(tmp_path / "whole"))
    log = (run_dir / "log.txt").read_text()
    assert ("goes on from its newest checkpoint" in log) == (not resume)


def test_a_launch_that_is_ended_has_nothing_left_to_train(tmp_path: Path) -> None:
    """Started again after the last batch, a run is found as it ended."""
    (first,) = launch(tmp_path, 1, 0, OPTIONS)
    (again,) = launch(tmp_path, 1, 1, OPTIONS)
    assert again[0]["seen"] == {}
    assert [again[0][part] for part in STATE if part != "metrics"] == [first[0][p] for p in STATE if p != "metrics"]


def test_damaged_checkpoints_let_the_run_begin_anew(tmp_path: Path) -> None:
    """A launch whose checkpoints are all damaged starts from the beginning, says so, and has each step once."""
    whole = launch(tmp_path / "whole", 1, 0, OPTIONS)
    killed(tmp_path / "again", 1, 0, kill_at(11))
    (run_dir,) = runs(tmp_path / "again")
    for manifest in (run_dir / "checkpoints").glob("*/manifest.json"):
        manifest.write_bytes(manifest.read_bytes()[:-40])
    found = launch(tmp_path / "again", 1, 1, OPTIONS)
    check_same(found, whole)
    check_series(run_dir, *runs(tmp_path / "whole"))
    assert min(found[0][0]["seen"]) == 0
    assert "begins anew: of its 2 checkpoints none is valid" in (run_dir / "log.txt").read_text()


def test_a_program_of_several_runs_finds_each_again(tmp_path: Path) -> None:
    """Killed in its second run, a program goes through its first one again, and on with its second."""
    other = {**OPTIONS, "init": {"seed": 5}}
    whole = launch(tmp_path / "whole", 1, 0, OPTIONS, other)
    killed(tmp_path / "again", 1, 0, OPTIONS, kill_at(7, init={"seed": 5}))
    found = launch(tmp_path / "again", 1, 1, OPTIONS, other)
    for number in (0, 1):
        if number:
            check_same(found, whole, number)
        check_recorded(runs(tmp_path / "again")[number], runs(tmp_path / "whole")[number])
    assert found[0][0]["seen"] == {} and min(found[0][1]["seen"]) == 4
    assert len(runs(tmp_path / "again")) == 2


def test_the_launchers_folder_is_that_of_the_first_run(tmp_path: Path) -> None:
    """The folder of a launch's choice is that of its first run, in each attempt; the next run gets another one."""
    job = tmp_path / "job"
    (job / "slurm").mkdir(parents=True)
    killed(tmp_path, 1, 0, kill_at(7), OPTIONS, LAUNCH_RUN=job)
    ((first, second),) = launch(tmp_path, 1, 1, OPTIONS, OPTIONS, LAUNCH_RUN=job)
    assert first["folder"] == str(job) and min(first["seen"]) == 4
    assert runs(tmp_path) == [Path(second["folder"])] and min(second["seen"]) == 0
    assert status(job) == [(0, "crashed"), (1, "finished")]


def test_a_users_own_folder_is_gone_on_with_in_the_same_launch(tmp_path: Path) -> None:
    """With TRAINLAB_RUN_DIR a later attempt resumes by itself; another launch is told that there are checkpoints."""
    killed(tmp_path, 1, 0, kill_at(7), RUN_DIR=tmp_path / "mine")
    other = {**variables(1, RUN_DIR=tmp_path / "mine"), "TRAINLAB_LAUNCH_ID": "another"}
    with start_ranks(continued.train, 1, str(tmp_path), [OPTIONS], FIT, env=other) as ranks:
        assert ranks.wait() == [1]
        assert "fit was told to start from the beginning" in ranks.outputs()
    ((run,),) = launch(tmp_path, 1, 2, OPTIONS, RUN_DIR=tmp_path / "mine")
    assert min(run["seen"]) == 4
    assert not (tmp_path / "runs").exists()


def test_a_fresh_launch_in_a_run_that_is_there_must_be_told(tmp_path: Path) -> None:
    """Only what the launch itself began goes on unasked: another launch in the same folder is told that it is a run."""
    job = tmp_path / "job"
    killed(tmp_path, 1, 0, kill_at(7), LAUNCH_RUN=job)
    env = {**variables(0, LAUNCH_RUN=job), "TRAINLAB_LAUNCH_ID": "other"}
    with start_ranks(continued.train, 1, str(tmp_path), [OPTIONS], FIT, env=env) as ranks:
        assert ranks.wait() == [1]
        assert "fit was told to start from the beginning" in ranks.outputs()


@pytest.mark.parametrize("size", [1, 2])
def test_the_launcher_is_told_how_far_its_ranks_are(tmp_path: Path, size: int) -> None:
    """Each rank leaves the run's folder, the batch it resumed at and the one it trained first, and only these."""
    notes = tmp_path / "notes"
    notes.mkdir()
    killed(tmp_path, size, 0, kill_at(0), LAUNCH_DIR=notes)
    (run_dir,) = runs(tmp_path)
    told = {
        f"rank-{rank}.{name}.json": value
        for rank in range(size)
        for name, value in (("run", {"folder": str(run_dir)}), ("resumed", {"batch": 0}))
    }
    found = noted(notes)
    found.setdefault("rank-1.resumed.json", {"batch": 0})  # killed by rank 0, it may not have come so far
    assert {name: found[name] for name in told} == told and "rank-0.trained.json" not in found
    killed(tmp_path, size, 1, kill_at(7), LAUNCH_DIR=notes)
    launch(tmp_path, size, 2, OPTIONS, LAUNCH_DIR=notes)
    for rank in range(size):
        told[f"rank-{rank}.resumed.json"] = {"batch": 4}
        told[f"rank-{rank}.trained.json"] = {"batch": 5}
    assert noted(notes) == told


def noted(folder: Path) -> dict[str, Any]:
    """The notes in a folder by name, without the unfinished file of a note at which a rank was killed."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("rank-*")}


class Unhurried(TrainingRules):
    """Rules by which the loop need not look around before its first boundary."""

    tries_checkpoint = False


def test_the_launcher_is_told_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_run: Any) -> None:
    """The first batch is told once it is trained, however far away the first report is."""
    monkeypatch.setenv("TRAINLAB_LAUNCH_DIR", str(tmp_path))
    told: list[bool] = []

    class Watching(jobs.Noted):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            told.append((tmp_path / "rank-0.trained.json").exists())
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run()
    context.rules = Unhurried()
    Trainer(Watching(context, {}), context).fit(max_length=Batch(3), reporting_period=Batch(3))
    assert told == [False, True, True]


def test_each_rank_has_its_output_in_the_runs_folder(tmp_path: Path) -> None:
    """What captured ranks print is in the run's folder, what was printed before it was open too, attempt by attempt."""
    for attempt, options in enumerate((kill_at(7), OPTIONS)):
        with start_ranks(continued.train_captured, 2, str(tmp_path), [options], FIT, env=variables(attempt)) as ranks:
            assert ranks.wait() == [SIGKILL if attempt == 0 else 0] * 2, ranks.outputs()
    (run_dir,) = runs(tmp_path)
    checkpoint = run_dir / "checkpoints" / "batch-0000004"
    for rank in (0, 1):
        lines = (run_dir / f"log.rank-{rank}.txt").read_text().splitlines()
        printed = [line for line in lines if line.split()[0] in ("before", "latest", "trained")]
        assert printed == ["before 0", "latest None", "before 1", f"latest {checkpoint}", "trained"]
        assert (tmp_path / f"captured-{rank}-1").read_text().splitlines() == ["after 1"]


def test_a_chief_on_the_console_has_its_output_in_the_runs_folder_too(tmp_path: Path) -> None:
    """What the chief shows is kept as well, and is shown as ever."""
    with start_ranks(continued.train, 1, str(tmp_path), [OPTIONS], FIT, env=variables(0, CONSOLE_COPY=1)) as ranks:
        assert ranks.wait() == [0], ranks.outputs()
        (run_dir,) = runs(tmp_path)
        assert ranks[0].output().endswith((run_dir / "log.rank-0.txt").read_text())
        assert "latest None\ntrained\n" in ranks[0].output()
