"""What several ranks leave behind, and what each draws of its own."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.training import jobs
from trainlab import Batch

SIZE = 3
WAYS = ("ddp", "fsdp")
Run = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Run]]:
    """Folder and results of two equal runs a way, one after the other."""
    folder = tmp_path_factory.mktemp("runs")
    calls = {
        f"{way} {number}": (
            str(folder / way / str(number)),
            8,
            {"dropout": 0.2, "augmented": True, "init": {"parallel": way, "hparams": {"lr": 0.01}}},
            {"checkpoint_period": Batch(4)},
        )
        for way in WAYS
        for number in (1, 2)
    }
    ranks = run_ranks(jobs.train_all, SIZE, calls)
    return {name: (Path(call[0]), [rank[name] for rank in ranks]) for name, call in calls.items()}


@pytest.mark.parametrize("way", WAYS)
def test_one_set_of_files(runs: dict[str, tuple[Path, Run]], way: str) -> None:
    """There is one metrics.jsonl, one file of events, one of each other kind, and a log of each rank."""
    folder, _ = runs[f"{way} 1"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    top = {file for file in files if "/" not in file}
    logs = {"log.txt", *(f"log.rank-{rank}.txt" for rank in range(1, SIZE))}
    assert {file for file in top if file.startswith("log")} == logs
    assert {"metrics.jsonl", "params.yaml", "run.json"} <= top
    assert len([file for file in files if "events.out" in file]) == 1
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"batch-0000004", "batch-0000008"}
    record = json.loads((folder / "run.json").read_text())
    assert record["ranks"] == SIZE and record["status"] == "finished"


@pytest.mark.parametrize("way", WAYS)
def test_each_line_is_recorded_once(runs: dict[str, tuple[Path, Run]], way: str) -> None:
    """Each report and each validation is one line of metrics.jsonl, and one event."""
    from tests.training.exactness import lines, scalars

    folder, _ = runs[f"{way} 1"]
    assert [(line["kind"], line["batch"]) for line in lines(folder)] == [
        ("training", 4),
        ("training", 5),
        ("training", 8),
        ("validation", 8),
    ]
    assert {step for tag, step in scalars(folder) if tag == "validation/loss"} == {8}


@pytest.mark.parametrize("way", WAYS)
def test_each_rank_has_a_log_of_its_own(runs: dict[str, tuple[Path, Run]], way: str) -> None:
    """The log of the run tells how it went, and another rank's that it took part."""
    folder, _ = runs[f"{way} 1"]
    assert "Trained up to batch 8." in (folder / "log.txt").read_text()
    for rank in range(1, SIZE):
        assert "Training from batch 0." in (folder / f"log.rank-{rank}.txt").read_text()


@pytest.mark.parametrize("way", WAYS)
def test_each_rank_draws_its_own_numbers(runs: dict[str, tuple[Path, Run]], way: str) -> None:
    """No two ranks draw the same number from any of the three generators."""
    _, ranks = runs[f"{way} 1"]
    for one, other in itertools.combinations(ranks, 2):
        for generator in range(3):
            drawn = [{draws[generator] for draws in rank["drawn"]} for rank in (one, other)]
            assert len(drawn[0]) == len(drawn[1]) == 8 and not drawn[0] & drawn[1]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_run_draws_the_same_numbers(runs: dict[str, tuple[Path, Run]], way: str) -> None:
    """A second run of the same seed draws the same numbers on each rank, and ends with the same bits."""
    (_, first), (_, second) = runs[f"{way} 1"], runs[f"{way} 2"]
    for one, other in zip(first, second, strict=True):
        for part in ("drawn", "digest", "generators", "optimizers", "metrics"):
            assert one[part] == other[part]
