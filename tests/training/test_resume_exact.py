"""A run that is killed by a real SIGKILL and resumed ends as one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.exactness import SIGKILL, Interrupted, Whole, check_recorded, lines, saved
from tests.training.marks import PLACES
from tests.training.processes import ROOT, Process, Server, serving
from tests.training.scenarios import QUICK, SCENARIOS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where the processes come from."""
    with serving("tests.training.exact_program", tmp_path_factory.mktemp("processes")) as started:
        yield started


def random_kills(random_: random.Random, features: str) -> list[str]:
    """Two places at which to die, the second one later in the run."""
    kills = []
    places = [place for place in PLACES if place != "write" or "write_end" in features]
    for first, last in ((1, 9), (10, 16)):
        place = random_.choice(places)
        reads = (3, 10) if "workers2" in features else (5, 25)
        kills.append(f"{place}:{random_.randint(*(reads if place == 'read' else (first, last)))}")
    return kills


def interrupted(server: Server, run_dir: Path, features: str, kills: list[str]) -> tuple[Process, int]:
    """Run, be killed at each place, run to the end; return the last process and its first batch."""
    whole = Whole(server, run_dir.with_name(f"{run_dir.name}-whole"), features)
    run = Interrupted(server, run_dir, whole)
    for place in kills:
        assert run.kill_at(place)
    first = run.first
    return run.finish(), first


def test_each_feature_is_in_a_plain_run() -> None:
    """No feature of the scenarios is tried in a long run of the tests alone."""
    assert set(",".join(QUICK).split(",")) == set(",".join(SCENARIOS).split(","))
    assert set(QUICK) < set(SCENARIOS)


@pytest.mark.parametrize(
    "features", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in SCENARIOS]
)
def test_killed_twice_it_ends_as_an_uninterrupted_run(server: Server, tmp_path: Path, features: str) -> None:
    """Killed at two random places, a run ends with the same weights, states, random numbers and recorded lines."""
    interrupted(server, tmp_path / "run", features, random_kills(random.Random(features), features))


def test_tensorboard_shows_each_step_once(server: Server, tmp_path: Path) -> None:
    """TensorBoard's own reader finds each step once, in order, after two kills."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(server, tmp_path / "run", "shuffle,best", ["counted:7", "committed:14"])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for tag, kind in (("train/loss", "training"), ("validation/loss", "validation")):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        told = [(r["batch"], pytest.approx(r["metrics"]["loss"])) for r in lines(tmp_path / "run") if r["kind"] == kind]
        assert found == told


@pytest.mark.parametrize(
    ("kills", "first"),
    [
        (["train:2"], 0),
        pytest.param(["write:4"], 0, marks=pytest.mark.slow),
        (["committed:4"], 4),
        pytest.param(["save:8"], 5, marks=pytest.mark.slow),
        (["evaluate:5"], 4),
        pytest.param(["stepped:7", "counted:7"], 5, marks=pytest.mark.slow),
        (["committed:8", "committed:10", "committed:12", "committed:15", "committed:16"], 16),
        (["committed:24"], 24),
    ],
)
def test_it_goes_on_from_the_last_checkpoint_that_was_committed(
    server: Server, tmp_path: Path, kills: list[str], first: int
) -> None:
    """Wherever it is killed, the next process trains on from the last committed checkpoint; without one, from 0."""
    _, found = interrupted(server, tmp_path / "run", "shuffle,augment,dropout,accumulate,best,write_end", kills)
    assert found == first


@pytest.mark.slow
def test_killed_from_outside_with_workers_alive(server: Server, tmp_path: Path) -> None:
    """Killed from outside in the middle of a batch, a run leaves no worker, and is resumed exactly."""
    features = "shuffle,augment,dropout,workers2,best"
    process = server.start(tmp_path / "run", "--features", features, pause_at="train:11")
    assert process.told() == "train 11 False"
    process.signal(signal.SIGKILL)
    assert process.gone()
    assert process.wait() == SIGKILL
    run = Interrupted(server, tmp_path / "run", Whole(server, tmp_path / "whole", features))
    assert run.first in (8, 10)  # that of 10 was being written
    run.finish()


@pytest.mark.slow
def test_another_number_of_workers(server: Server, tmp_path: Path) -> None:
    """A run killed with two workers and resumed with three ends as one that had two all the time."""
    features = "shuffle,augment,dropout,accumulate,ahead"
    whole = Whole(server, tmp_path / "whole", f"{features},workers2")
    _, status = server.run(tmp_path / "run", "--features", f"{features},workers2", "--kill-at", "stepped:13")
    assert status == SIGKILL
    first = max(saved(tmp_path / "run"))
    last, status = server.run(tmp_path / "run", "--features", f"{features},workers3", "--leave-at-once")
    assert status == 0 and last.trained() == whole.batches[first:]
    assert last.result == whole.process.result
    check_recorded(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_fresh_interpreter(server: Server, tmp_path: Path) -> None:
    """Exactness hangs on nothing that a process inherits: an interpreter with a hash seed of its own goes on alike."""
    features = "shuffle,augment,dropout,accumulate,gan,batches,stateful,workers2"
    whole, status = server.run(tmp_path / "whole", "--features", features)
    assert status == 0, whole.stderr
    cut, status = server.run(tmp_path / "cut", "--features", features, "--kill-at", "stepped:13")
    assert status == SIGKILL, cut.stderr
    out = server.folder()
    command = [sys.executable, "-m", "tests.training.exact_program", "--run-dir", str(tmp_path / "cut")]
    command += ["--out", str(out), "--features", features]
    environment = {**os.environ, "PYTHONHASHSEED": "3"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_text()) == whole.result
    check_recorded(tmp_path / "cut", tmp_path / "whole")
    assert json.loads((out / "trained").read_text().splitlines()[0])["batch"] in (8, 12)
