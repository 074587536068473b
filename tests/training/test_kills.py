"""More than a hundred kills: at each instant that the writer of checkpoints names, and at any other."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainlab
from tests.training.exactness import SIGKILL, Interrupted, Whole
from tests.training.marks import POINTS
from tests.training.processes import Server, serving
from tests.training.scenarios import EACH_POINT, random_place

# What the issue of exactness names, each with and without what makes it harder.
FEATURES = (
    "shuffle,dropout,augment,best",
    "shuffle,augment,accumulate,adam,lucky,keep",
    "gan,accumulate,adamw,best",
    "epochs,ema,stateful,fork,lucky",
    "batches,adam,dropout,write_end,lucky",
    "steps,accumulate,buffers,sync,best",
    "manual,augment,flow,fork",
    "plateau,iterable,augment,stateful,best",
    "lbfgs,dropout,sampler,augment,keep",
    "bf16,dropout,adam,ema,best,keep",
)
WITH_WORKERS = ("shuffle,augment,dropout,workers2,best", "iterable,augment,accumulate,workers2,fork,lucky")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where the processes come from."""
    with serving("tests.training.exact_program", tmp_path_factory.mktemp("processes")) as started:
        yield started


def test_the_list_of_points_is_complete() -> None:
    """Every instant that the stores and the writer name is among those at which runs are killed, and no other is."""
    package = Path(trainlab.__file__).parent
    sources = [*package.glob("storage/*.py"), *package.glob("checkpoint/*.py")]
    named = {name for source in sources for name in re.findall(r'\breached\("([^"]+)"\)', source.read_text())}
    assert named == set(POINTS)
    assert {point for points in EACH_POINT.values() for point in points} == named


@pytest.mark.slow
@pytest.mark.parametrize("mode", EACH_POINT)
def test_killed_at_each_point_of_a_write(server: Server, tmp_path: Path, mode: str) -> None:
    """Killed at each instant of a write and of retention in turn, a run ends as one that never was."""
    options = ("--epochs", 5)
    whole = Whole(server, tmp_path / "whole", f"shuffle,augment,dropout,accumulate,adam,lucky,keep,{mode}", *options)
    run = Interrupted(server, tmp_path / "run", whole)
    for point in EACH_POINT[mode]:
        assert run.kill_at(f"point:{point}:1"), point
    run.finish()


@pytest.mark.parametrize(
    "mode", ["sync", *(pytest.param(mode, marks=pytest.mark.slow) for mode in EACH_POINT if mode != "sync")]
)
@pytest.mark.parametrize("point", ["published", "committed", "retention chosen", "first removed"])
def test_killed_after_its_last_checkpoint(server: Server, tmp_path: Path, mode: str, point: str) -> None:
    """Killed when its last checkpoint is there and those no longer kept are too, a run still removes them."""
    run = Interrupted(server, tmp_path / "run", Whole(server, tmp_path / "whole", mode))
    assert run.kill_at(f"point:{point}:{6 if point in ('published', 'committed') else 4}")
    assert run.first == 24
    run.finish()


@pytest.mark.parametrize("mode", ["async", "fork"])
def test_training_goes_on_beside_a_write(server: Server, tmp_path: Path, mode: str) -> None:
    """What is trained while a checkpoint is being written is not in it: a run that resumes from it is exact."""
    features = f"shuffle,augment,dropout,buffers,accumulate,adam,batches,stateful,ema,{mode}"
    held = ("--features", features, "--kill-at", "point:folder made:3")
    process = server.start(tmp_path / "run", *held, pause_at="point:folder made:2")
    assert process.told() == "point:folder made 2 False"
    while len(process.trained()) < 12:  # there it waits for the write
        assert not process.gone(seconds=0.01)
    process.go()
    assert process.wait() == SIGKILL
    run = Interrupted(server, tmp_path / "run", Whole(server, tmp_path / "whole", features))
    assert run.first == 8
    run.finish()


@pytest.mark.parametrize(
    ("features", "places", "instants"),
    [
        pytest.param(*case, marks=pytest.mark.slow if number % 6 else ())
        for number, case in enumerate([*((f, 3, 4) for f in FEATURES), *((f, 1, 3) for f in WITH_WORKERS)])
    ],
)
def test_killed_anywhere(server: Server, tmp_path: Path, features: str, places: int, instants: int) -> None:
    """Killed at random places and at random instants from outside, a run ends as one that never was."""
    random_ = random.Random(features)
    whole = Whole(server, tmp_path / "whole", features)
    kills = started = 0
    while kills < places + instants:
        started += 1
        run = Interrupted(server, tmp_path / f"run-{started}", whole)
        while kills < places + instants:
            if random_.random() < instants / (places + instants):
                killed = run.kill_after(random_.random() * whole.seconds)
            else:
                killed = run.kill_at(random_place(random_))
            if not killed:
                break
            kills += 1
        run.finish()
