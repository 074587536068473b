"""trainlab.init inside of an experiment's run, alone and on several ranks."""

import pickle
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.distributed.ranks import run_ranks, start_ranks
from tests.experiments.running_programs import only_run, record_of
from tests.experiments.trained_programs import (
    fitted,
    killed_and_resumed,
    line,
    run_line,
    run_line_by_rank,
    run_searched,
    run_still,
    run_unevenly,
)
from trainlab.experiments.searched import SEARCH, SearchedBy


def made(main: Any) -> Any:
    """An experiment of a function of a test."""
    return trainlab.experiment(name="train")(trainlab.parameter("lr", float, default=0.01)(main))


def test_the_first_init_trains_in_the_runs_own_folder(tmp_path: Path) -> None:
    """Without run_dir, init has the experiment's folder, parameters and seed; run.json tells how far it came."""
    told = line.run({"output_dir": tmp_path, "random_seed": 12, "lr": 0.02})
    folder = only_run(tmp_path, "line")
    record = record_of(folder)
    assert told["run_dir"] == str(folder) and told["seed"] == 12
    assert told["hparams"] == {"lr": 0.02, "ends_at": None, "stamp": told["stamp"]}
    assert record["status"] == "finished" and [start["status"] for start in record["starts"]] == ["finished"]
    assert record["batches_trained"] == 6 and record["stop_reason"] == "max_length"
    assert record["metrics"]["loss"] >= record["best_metric"] > 0 and record["params"]["lr"] == 0.02
    assert {"metrics.jsonl", "checkpoints", "params.yaml", "packages.txt"} <= {path.name for path in folder.iterdir()}
    assert "lr: 0.02" in (folder / "params.yaml").read_text() and "Trained up to" in (folder / "log.txt").read_text()
    assert not [path for path in folder.rglob("*") if path.is_file() and b"hidden-away" in path.read_bytes()]


def test_a_second_init_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """What the main function opens after that lies in `runs` of the run's folder; run_dir still names one exactly."""

    def main(values: dict[str, Any]) -> list[Path]:
        with trainlab.init(progress=False) as first, trainlab.init(progress=False, name="more") as second:
            fitted(second)
        with trainlab.init(progress=False, run_dir=tmp_path / "exact", hparams={"lr": 0.5}) as third:
            return [Path(context.run_dir) for context in (first, second, third)]

    first, second, third = made(main).run({"output_dir": tmp_path})
    assert second.parent == first / "runs/more" and third == tmp_path / "exact"
    assert record_of(second)["status"] == record_of(third)["status"] == record_of(first)["status"] == "finished"
    assert record_of(third)["params"] == {"lr": 0.5} and "batches_trained" not in record_of(first)


def test_the_experiment_decides_how_the_run_ended(tmp_path: Path) -> None:
    """A failed training that the main function gets over leaves a finished run, and not a failed one."""

    def main(values: dict[str, Any]) -> None:
        with pytest.raises(KeyError), trainlab.init(progress=False):
            raise KeyError("got over")
        assert record_of(trainlab.output_dir)["status"] == "running"
        if values["lr"] > 1:
            raise ValueError("not this one")

    experiment = made(main)
    experiment.run({"output_dir": tmp_path / "a"})
    with pytest.raises(ValueError, match="not this one"):
        experiment.run({"output_dir": tmp_path / "b", "lr": 3})
    assert record_of(only_run(tmp_path / "a", "train"))["status"] == "finished"
    assert record_of(only_run(tmp_path / "b", "train"))["error"] == "ValueError: not this one"


def test_a_context_that_nobody_closes_is_closed_with_the_run(tmp_path: Path) -> None:
    """A plain call of init in a main function leaves nothing open behind the run, and the next run begins."""
    contexts = []

    def main(values: dict[str, Any]) -> None:
        contexts.append(trainlab.init(progress=False))
        fitted(contexts[-1])

    experiment = made(main)
    for _ in range(2):
        experiment.run({"output_dir": tmp_path})
        assert not contexts[-1].session.is_open
    assert {record_of(folder)["status"] for folder in (tmp_path / "train").iterdir()} == {"finished"}


def test_no_cuda_is_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--no-cuda trains on the CPU, whatever the environment says; every init of the run has its seed."""
    monkeypatch.setenv("TRAINLAB_DEVICE", "nonsense")

    def main(values: dict[str, Any]) -> list[Any]:
        with trainlab.init(progress=False) as first, trainlab.init(progress=False) as second:
            return [first.device.type, second.device.type, first.get_trial_seed(), second.get_trial_seed()]

    assert made(main).run({"output_dir": tmp_path, "cuda": False, "random_seed": 4}) == ["cpu", "cpu", 4, 4]


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """SIGTERM in a fit saves and interrupts; with TRAINLAB_RESUME=1 the run ends like one that ran through."""
    (content,) = run_ranks(killed_and_resumed, 1, str(tmp_path), str(tmp_path / "one"))
    status, told = pickle.loads(content)
    whole = line.run({"output_dir": tmp_path / "whole", "random_seed": 5})
    record = record_of(tmp_path / "one")
    assert status == 143 and [start["status"] for start in record["starts"]] == ["interrupted", "finished"]
    assert told["batches"] == 6 and told["weights"] == whole["weights"] and record["metrics"]


def test_a_plain_script_is_resumed_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAINLAB_RUN_DIR and TRAINLAB_RESUME=1 let a script without an experiment go on; its record has its numbers."""
    monkeypatch.setenv("TRAINLAB_RUN_DIR", str(tmp_path / "one"))
    for batches in (4, 6):
        with trainlab.init(progress=False, hparams={"lr": 0.01, "api_key": "mine"}) as context:
            assert fitted(context, batches).progress.batches_trained == batches
        monkeypatch.setenv("TRAINLAB_RESUME", "1")
    record = record_of(tmp_path / "one")
    assert record["batches_trained"] == 6 and record["epochs_trained"] == 1 and record["metrics"]["loss"] > 0
    assert record["params"] == {"lr": 0.01, "api_key": "***"} and record["stop_reason"] == "max_length"


def test_ranks_have_one_folder_and_the_chiefs_values(tmp_path: Path) -> None:
    """Two ranks share a folder, the drawn seed and what a default makes up on the chief; each has a log of its own."""
    chief, other = run_ranks(run_line, 2, str(tmp_path), {})
    folder = only_run(tmp_path, "line")
    assert chief["run_dir"] == other["run_dir"] == str(folder) and (chief["rank"], other["rank"]) == (0, 1)
    assert chief["stamp"] == other["stamp"] and chief["seed"] == other["seed"] and chief["weights"] == other["weights"]
    assert record_of(folder)["status"] == "finished" and record_of(folder)["ranks"] == 2
    assert (folder / "log.rank-1.txt").exists()


def test_ranks_that_are_given_different_values_are_refused(tmp_path: Path) -> None:
    """If rank 1 is given another lr than the chief, all end with an error that names it, and the run has failed."""
    with start_ranks(run_line_by_rank, 2, str(tmp_path), [{"lr": 0.1}, {"lr": 0.2}]) as ranks:
        assert all(ranks.wait())
        assert "They differ in: lr. Received: 0.2 on rank 1, 0.1 on rank 0" in ranks[1].output()
    record = record_of(only_run(tmp_path, "line"))
    assert record["status"] == "failed" and "DisagreementError" in record["error"]


@pytest.mark.parametrize(("fails", "said"), [(None, "new_seed() calls by rank: [1, 2]"), (1, "rank 1 breaks")])
def test_a_rank_that_differs_or_fails_is_named(tmp_path: Path, fails: int | None, said: str) -> None:
    """A rank that draws a seed more than another, or fails, fails the run: its record says which, and why."""
    with start_ranks(run_unevenly, 2, str(tmp_path), fails) as ranks:
        assert all(ranks.wait())
        assert said in ranks.outputs()
    record = record_of(only_run(tmp_path, "draws-unevenly"))
    assert record["status"] == "failed" and said in record["error"]


@pytest.mark.slow
def test_a_failure_is_recorded_also_where_the_chief_cannot_end(tmp_path: Path) -> None:
    """If rank 1 fails while the chief hangs and is ended by force, the record says why all the same."""
    with start_ranks(run_still, 2, str(tmp_path)) as ranks:
        assert all(ranks.wait())
    record = record_of(only_run(tmp_path, "stands-still"))
    assert record["status"] == "failed" and "rank 1" in record["error"].lower() and "breaks" in record["error"]


def test_no_rank_of_a_trial_hands_its_search_on(tmp_path: Path) -> None:
    """What the ranks of a search's trial start themselves is no trial: none leaves the search in its environment."""
    search = SearchedBy("sqlite://", "study", 0, "loss", True, None, "").to_text()
    assert run_ranks(run_searched, 2, str(tmp_path), env={SEARCH: search}) == [None, None]
