"""Any number of ranks train the same records in the same steps, to the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.distributed.ranks import run_ranks
from tests.training import jobs

SIZES = (pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow))
TOLERANCE = 1e-12
ADAMW: dict[str, Any] = {"clip": True, "scheduler": True}
# Name: batches, options. Of 101 records the last batch of an epoch has 5; of 50 it has 2, fewer than there are ranks.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "101": (20, ADAMW),
    "101 summed by 3": (20, {**ADAMW, "init": {"aggregation_frequency": 3}}),
    "50": (14, {**ADAMW, "records": 50}),
    "50 summed by 3": (14, {**ADAMW, "records": 50, "init": {"aggregation_frequency": 3}}),
}
UNEVEN: dict[str, tuple[int, dict[str, Any]]] = {
    "drop": (8, {**ADAMW, "records": 50, "init": {"uneven": "drop"}}),
    "pad": (8, {**ADAMW, "records": 50, "init": {"uneven": "pad"}}),
}


class Results(dict[tuple[int, str, str], list[dict[str, Any]]]):
    """What each rank told, by the number of ranks, the way and the case; so many ranks train once they are asked for.

    Args:
        folder: of their runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, key: tuple[int, str, str]) -> list[dict[str, Any]]:
        size, folder = key[0], self._folder / str(key[0])
        wanted = calls(folder, {**CASES, **UNEVEN}, "ddp" if size > 1 else "auto")
        if size > 1:
            wanted |= calls(folder, CASES, "fsdp")
        ranks = run_ranks(jobs.train_all, size, wanted)
        for name in wanted:
            parallel, _, case = name.partition(" ")
            self[size, parallel, case] = [rank[name] for rank in ranks]
        return self[key]


def calls(folder: Path, cases: dict[str, tuple[int, dict[str, Any]]], parallel: str) -> dict[str, Any]:
    """What the ranks of one launch train."""
    told = {}
    for name, (batches, options) in cases.items():
        chosen = {**options, "init": {"parallel": parallel, **options.get("init", {})}}
        told[f"{parallel} {name}"] = (str(folder / parallel / name), batches, chosen, {})
    return told


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank told."""
    return Results(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_the_same_records_and_the_same_weights(trained: Results, case: str, size: int, parallel: str) -> None:
    """Whatever the number of ranks, each step has the records of one process, and the weights end as its own."""
    (alone,) = trained[1, "auto", case]
    ranks = trained[size, parallel, case]
    assert jobs.seen_by_all(ranks) == alone["seen"]
    for rank in ranks:
        assert jobs.furthest(rank["weights"], alone["weights"]) <= TOLERANCE
        assert rank["digest"] == ranks[0]["digest"]
        assert rank["lr"] == alone["lr"]
        assert counters(rank["progress"]) == counters(alone["progress"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_the_records_of_an_epoch_are_those_of_the_data_set(trained: Results, case: str, size: int) -> None:
    """On several ranks, each record of the data set is trained once an epoch."""
    _, options = CASES[case]
    records = options.get("records", jobs.RECORDS)
    seen = jobs.seen_by_all(trained[size, "ddp", case])
    batches = -(-records // jobs.BATCH)
    for epoch in range(len(seen) // batches):
        of_epoch = [number for batch in range(batches) for number in seen[epoch * batches + batch]]
        assert sorted(of_epoch) == list(range(records))


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("uneven", ["scale", *UNEVEN])
def test_the_weights_are_those_of_a_plain_loop(trained: Results, uneven: str, size: int) -> None:
    """However an uneven batch is shared, the weights are those of a plain loop over just the records that were seen."""
    ranks = trained[size, "ddp" if size > 1 else "auto", "50" if uneven == "scale" else uneven]
    expected = plain_loop(jobs.seen_by_all(ranks), 50)
    assert jobs.furthest(ranks[0]["weights"], expected) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("uneven", UNEVEN)
def test_what_is_left_out_and_what_is_repeated(trained: Results, uneven: str, size: int) -> None:
    """uneven="drop" leaves out the end of each batch, "pad" repeats its beginning; all ranks train as many records."""
    (alone,) = trained[1, "auto", uneven]
    ranks = trained[size, "ddp", uneven]
    dealt = [dealt_out(numbers, size, uneven) for numbers in alone["seen"].values()]
    expected = [numbers for numbers in dealt if numbers]
    seen = list(jobs.seen_by_all(ranks).values())
    epochs = min(len(expected), len(seen))
    assert epochs >= 6 and seen[:epochs] == expected[:epochs]
    for batch, numbers in enumerate(seen):
        assert {len(rank["seen"][batch]) for rank in ranks} == {len(numbers) // size}
    assert {rank["progress"]["records_trained"] for rank in ranks} == {sum(map(len, seen))}


def dealt_out(numbers: list[int], size: int, uneven: str) -> list[int]:
    """What a batch becomes."""
    return numbers[: len(numbers) // size * size] if uneven == "drop" else numbers + numbers[: -len(numbers) % size]


def counters(progress: dict[str, Any]) -> dict[str, Any]:
    """The counters alone: other tests are about metrics."""
    return {key: value for key, value in progress.items() if isinstance(value, int)}


def plain_loop(seen: dict[int, list[int]], records: int) -> dict[str, torch.Tensor]:
    """The weights after a loop as anybody would write it, over given batches."""
    torch.manual_seed(0)
    model = jobs.Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    x, y, _ = jobs.data(records).tensors
    for numbers in seen.values():
        optimizer.zero_grad()
        F.cross_entropy(model(x[numbers]), y[numbers]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
    return {f"0.{key}": value.detach() for key, value in model.state_dict().items()}
