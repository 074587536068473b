"""A run that several ranks began goes on with another number of them, or with another way of sharing the model."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import trainlab
from tests.distributed.ranks import run_ranks, start_ranks
from tests.training import jobs
from tests.training.exactness import SIGKILL, lines
from trainlab import Batch

BATCHES = 20
TOLERANCE = 1e-12
FIT: dict[str, Any] = {"reporting_period": Batch(2), "validation_period": Batch(5), "checkpoint_period": Batch(6)}
Stage = tuple[int, str, int]  # ranks, way, and the batch up to which they train
# Batch 8 ends a group of none but one batch, and is the second of a group of three. Epochs have seven batches.
CHAINS: dict[str, tuple[int, list[Stage]]] = {
    "4 ddp, 1, 3 ddp": (1, [(4, "ddp", 8), (1, "auto", 15), (3, "ddp", BATCHES)]),
    "4 fsdp, 2 fsdp, 1": (1, [(4, "fsdp", 8), (2, "fsdp", 15), (1, "auto", BATCHES)]),
    "1, 4 fsdp, 3 ddp": (1, [(1, "auto", 8), (4, "fsdp", 15), (3, "ddp", BATCHES)]),
    "3 ddp, 4 fsdp": (1, [(3, "ddp", 8), (4, "fsdp", BATCHES)]),
    "2 ddp, 2 fsdp, 2 ddp": (1, [(2, "ddp", 8), (2, "fsdp", 15), (2, "ddp", BATCHES)]),
    "by 3: 4 ddp, 1, 2 ddp": (3, [(4, "ddp", 8), (1, "auto", 13), (2, "ddp", BATCHES)]),
    "by 3: 4 ddp, 3 fsdp": (3, [(4, "ddp", 8), (3, "fsdp", BATCHES)]),
    "by 3: 1, 4 ddp, 3 ddp": (3, [(1, "auto", 8), (4, "ddp", 13), (3, "ddp", BATCHES)]),
    "by 3: 2 ddp, 2 fsdp": (3, [(2, "ddp", 8), (2, "fsdp", BATCHES)]),
    "by 3: 4 fsdp, 2 fsdp, 1": (3, [(4, "fsdp", 8), (2, "fsdp", 13), (1, "auto", BATCHES)]),
    "by 3: 2 fsdp, 2 ddp": (3, [(2, "fsdp", 7), (2, "ddp", BATCHES)]),
}
QUICK = [
    "4 ddp, 1, 3 ddp",
    "1, 4 fsdp, 3 ddp",
    "2 ddp, 2 fsdp, 2 ddp",
    "by 3: 4 ddp, 1, 2 ddp",
    "by 3: 2 ddp, 2 fsdp",
    "by 3: 4 fsdp, 2 fsdp, 1",
]
SLOW = {
    f"by {summed}: {a} {first}, {b} {second}": (summed, [(a, first, 8), (b, second, BATCHES)])
    for summed, (a, first), (b, second) in itertools.product(
        (1, 3),
        [(2, "ddp"), (3, "ddp"), (3, "fsdp"), (4, "fsdp")],
        [(1, "auto"), (2, "fsdp"), (3, "ddp"), (4, "ddp"), (4, "fsdp")],
    )
    if (a, first) != (b, second)
}
OPTIONS: dict[str, Any] = {"clip": True, "scheduler": True}


def call(run_dir: Path, batches: int, way: str, summed: int, **options: Any) -> dict[str, Any]:
    """What a launch trains."""
    init = {"parallel": way, "aggregation_frequency": summed}
    return {"run": (str(run_dir), batches, {**OPTIONS, "init": init, **options}, FIT)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What one process told that was never interrupted, by the batches that are summed up."""
    folder = tmp_path_factory.mktemp("alone")
    calls = {str(n): call(folder / str(n), BATCHES, "auto", n)["run"] for n in (1, 3)}
    (told,) = run_ranks(jobs.train_all, 1, calls)
    for summed in (1, 3):
        told[str(summed)]["lines"] = lines(folder / str(summed))
    return {summed: told[str(summed)] for summed in (1, 3)}


@pytest.mark.parametrize(
    "stages", [[(4, "ddp", 7), (2, "fsdp", 12), (1, "auto", BATCHES)], [(1, "auto", 8), (3, "ddp", BATCHES)]]
)
def test_a_stream_goes_on_where_it_was(tmp_path: Path, stages: list[Stage]) -> None:
    """A data set that is a stream is read on by another number of ranks where the last record was trained."""
    seen: dict[int, list[int]] = {}
    for size, way, until in stages:
        launch = call(tmp_path / "run", until, way, 1, flow=True)
        seen |= jobs.seen_by_all([rank["run"] for rank in run_ranks(jobs.train_all, size, launch)])
    in_order = [
        list(range(first, min(first + jobs.BATCH, jobs.RECORDS))) for first in range(0, jobs.RECORDS, jobs.BATCH)
    ]
    assert list(seen.values()) == [in_order[batch % 7] for batch in range(BATCHES)]


def check_like(
    ranks: list[dict[str, Any]], seen: dict[int, list[int]], run_dir: Path, expected: dict[str, Any]
) -> None:
    """Whether a run that changed its ranks read, trained and recorded what one process did."""
    assert seen == expected["seen"]
    for rank in ranks:
        assert jobs.furthest(rank["weights"], expected["weights"]) <= TOLERANCE
    recorded = [line for line in lines(run_dir) if line["kind"] == "validation"]
    wanted = {line["batch"]: line["metrics"]["loss"] for line in expected["lines"] if line["kind"] == "validation"}
    for line in recorded:
        if line["batch"] in wanted:
            assert line["metrics"]["loss"] == pytest.approx(wanted[line["batch"]], abs=1e-11)
    steps = Counter((line["kind"], line["batch"]) for line in lines(run_dir))
    assert set(steps.values()) == {1}
    assert set(wanted) <= {line["batch"] for line in recorded}
    assert ranks[0]["progress"]["records_trained"] == expected["progress"]["records_trained"]


@pytest.mark.parametrize(
    "chain", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*CHAINS, *SLOW)]
)
def test_another_number_of_ranks(tmp_path: Path, alone: dict[int, dict[str, Any]], chain: str) -> None:
    """Stopped and resumed on other numbers of ranks, a run reads and trains what one process does, to 1e-12."""
    summed, stages = {**CHAINS, **SLOW}[chain]
    seen: dict[int, list[int]] = {}
    for size, way, until in stages:
        ranks = [rank["run"] for rank in run_ranks(jobs.train_all, size, call(tmp_path / "run", until, way, summed))]
        of_stage = jobs.seen_by_all(ranks)
        assert list(of_stage) == list(range(len(seen), until))
        seen |= of_stage
    check_like(ranks, seen, tmp_path / "run", alone[summed])
    last = ranks[0]["last_checkpoint"]
    assert last is not None
    log = (tmp_path / "run" / "log.txt").read_text()
    # What fsdp has exchanged needs no sum.
    summed_up = [a for a, b in itertools.pairwise(stages) if a[2] % summed and a[1] != "fsdp" and a[:2] != b[:2]]
    assert log.count("Half-accumulated gradients of") == len(summed_up)


@pytest.mark.parametrize(
    ("first", "second"),
    [((3, "ddp"), (2, "fsdp")), pytest.param((3, "fsdp"), (4, "ddp"), marks=pytest.mark.slow)],
)
def test_killed_and_resumed_on_others(
    tmp_path: Path, alone: dict[int, dict[str, Any]], first: tuple[int, str], second: tuple[int, str]
) -> None:
    """Ranks that are all killed are resumed by another number of them, which repeats no record and skips none."""
    size, way = first
    with start_ranks(
        jobs.train_all, size, call(tmp_path / "run", BATCHES, way, 3, kill=(size - 1, "train:15"))
    ) as ranks:
        assert ranks.wait() == [SIGKILL] * size, ranks.outputs()
    size, way = second
    resumed = [rank["run"] for rank in run_ranks(jobs.train_all, size, call(tmp_path / "run", BATCHES, way, 3))]
    seen = jobs.seen_by_all(resumed)
    assert min(seen) in (6, 12)
    before = {batch: numbers for batch, numbers in alone[3]["seen"].items() if batch < min(seen)}
    check_like(resumed, before | seen, tmp_path / "run", alone[3])


def test_a_sharded_checkpoint_is_a_trial_of_one_process(tmp_path: Path) -> None:
    """load_trial_from_checkpoint_path takes what fsdp saved on three ranks, in a process that has no group."""
    ranks = run_ranks(jobs.train_all, 3, call(tmp_path / "run", 7, "fsdp", 1))
    path = ranks[0]["run"]["last_checkpoint"]
    trial = trainlab.load_trial_from_checkpoint_path(path, jobs.Noted, {"options": {}})
    assert not torch.distributed.is_initialized()
    found = {f"0.{key}": value for key, value in trial.model.state_dict().items()}
    assert jobs.digest(found) == ranks[0]["run"]["digest"]
    assert trial.model(torch.ones(2, 8, dtype=torch.float64)).shape == (2, 3)
