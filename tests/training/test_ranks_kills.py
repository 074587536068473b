"""A run of several ranks that is killed, all of them at once, and resumed on as many ends as one that never was."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks, start_ranks
from tests.training import jobs
from tests.training.exactness import SIGKILL, check_recorded
from tests.training.marks import REMOVING, WRITING
from trainlab import Batch

BATCHES = 18
FIT: dict[str, Any] = {
    "checkpoint_period": Batch(4),
    "validation_period": Batch(5),
    "reporting_period": Batch(3),
    "metric": "loss",
}
RANDOM: dict[str, Any] = {"dropout": 0.3, "augmented": True, "clip": True, "scheduler": True}
# Each: ranks, way, batches summed up, workers, how checkpoints are written. Those of four ranks are slow.
FAST = [
    (2, "ddp", 1, 2, "async"),
    (3, "fsdp", 1, 0, "async"),
]
SLOW = [
    (ranks, way, summed, workers, mode)
    for ranks in (2, 3, 4)
    for way in ("ddp", "fsdp")
    for summed, workers, mode in ((3, 2, "async"), (3, 0, "sync"), (1, 0, "async"))
    if (ranks, way, summed, workers, mode) not in FAST
]
SLOW += [(3, "ddp", 3, 0, "async"), (4, "fsdp", 3, 0, "async")]
POINTS = [point for point in (*WRITING, *REMOVING) if point not in ("rubbish removed",)]


def options_of(way: str, summed: int, workers: int) -> dict[str, Any]:
    """What the Trial does."""
    init = {"parallel": way, "aggregation_frequency": summed}
    return {**RANDOM, "norm": way == "ddp", "records": 104, "workers": workers, "init": init}


def run(size: int, run_dir: Path, options: dict[str, Any], mode: str, **fit: Any) -> list[dict[str, Any]]:
    """Train to the end."""
    call = (str(run_dir), BATCHES, options, {**FIT, "checkpoint_mode": mode, **fit})
    return [rank["run"] for rank in run_ranks(jobs.train_all, size, {"run": call})]


def killed(size: int, run_dir: Path, options: dict[str, Any], mode: str, order: tuple[int, str]) -> bool:
    """Train until all ranks are killed; False if they came to the end before."""
    call = (str(run_dir), BATCHES, {**options, "kill": order}, {**FIT, "checkpoint_mode": mode})
    with start_ranks(jobs.train_all, size, {"run": call}) as ranks:
        statuses = ranks.wait()
        assert statuses in ([SIGKILL] * size, [0] * size), ranks.outputs()
        return statuses[0] == SIGKILL


def check_same(found: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    """Whether the ranks of a resumed run ended with all that those of an uninterrupted one did, to the bit."""
    for rank, expected in zip(found, whole, strict=True):
        first = min(rank["seen"], default=BATCHES)
        assert rank["seen"] == {batch: seen for batch, seen in expected["seen"].items() if batch >= first}
        # A rank without a record of its own drew, too, and its draws do not count.
        assert rank["drawn"] == expected["drawn"][len(expected["drawn"]) - len(rank["drawn"]) :]
        parts = ("digest", "optimizers", "schedulers", "gradients", "generators", "metrics", "progress")
        differing = [part for part in parts if rank[part] != expected[part]]
        assert not differing, f"rank {rank['rank']} has other {differing}, resumed at batch {first}"


def places(random_: random.Random, size: int) -> list[tuple[int, str]]:
    """A batch, and then a writer's instant, at which all are killed, and on which rank that is found."""
    batch = f"{random_.choice(('train', 'stepped', 'evaluate'))}:{random_.randint(2, 12)}"
    instant = f"point:{random_.choice(WRITING[:8])}:{random_.randint(1, 2)}"
    return [(random_.randrange(size), batch), (random_.randrange(size), instant)]


@pytest.mark.parametrize(
    ("size", "way", "summed", "workers", "mode"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_killed_twice_the_ranks_end_as_if_they_never_were(
    tmp_path: Path, size: int, way: str, summed: int, workers: int, mode: str
) -> None:
    """Killed at a batch and while a checkpoint is written, ranks end with the same weights, states, draws and lines."""
    options = options_of(way, summed, workers)
    whole = run(size, tmp_path / "whole", options, mode)
    for order in places(random.Random(f"{size} {way} {summed} {workers} {mode}"), size):
        assert killed(size, tmp_path / "run", options, mode, order), order
    check_same(run(size, tmp_path / "run", options, mode), whole)
    check_recorded(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_while_a_batch_was_fetched_ahead(tmp_path: Path, size: int) -> None:
    """A stream, of which a batch is fetched ahead to find its end, goes on exactly, random numbers included."""
    options = {**options_of("ddp", 1, 0), "flow": True}
    whole = run(size, tmp_path / "whole", options, "async")
    assert killed(size, tmp_path / "run", options, "async", (1, "train:11"))
    check_same(run(size, tmp_path / "run", options, "async"), whole)
    check_recorded(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "way"), [(2, "fsdp"), (3, "ddp")])
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_killed_at_each_instant_of_a_write(tmp_path: Path, size: int, way: str, mode: str) -> None:
    """Wherever in the writing of a checkpoint all ranks are killed, again and again, the run ends exactly."""
    options = options_of(way, 3, 0)
    whole = run(size, tmp_path / "whole", options, mode)
    kills = 0
    for number, point in enumerate(POINTS):
        kills += killed(size, tmp_path / "run", options, mode, (0, f"point:{point}:{1 + number % 2}"))
    assert kills >= len(POINTS) // 2
    check_same(run(size, tmp_path / "run", options, mode), whole)
    check_recorded(tmp_path / "run", tmp_path / "whole")
