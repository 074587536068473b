"""A run that is killed by a real SIGKILL and resumed ends as one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.training.exact_program import PLACES
from tests.training.processes import ROOT, Process, Server, serving
from trainlab.checkpoint import list_checkpoints

SIGKILL = -9

# One by one; those that concern the data come without workers and with two.
MODELS = ("dropout,adam", "buffers,adamw", "lbfgs,dropout", "gan", "gan,accumulate", "accumulate,adam", "stateful")
SCHEDULES = ("epochs", "batches,adam", "steps,accumulate", "manual", "plateau", "gan,steps", "gan,plateau")
PRECISIONS = ("bf16,dropout,adam", "fp16,adamw")
DATA = ("shuffle", "shuffle,augment", "shuffle,ahead,augment", "sampler,augment", "iterable,augment", "flow,augment")
TOGETHER = (
    "shuffle,augment,dropout,buffers,accumulate,gan,adamw,batches,bf16,stateful,ahead",
    "flow,augment,dropout,buffers,accumulate,adam,steps,stateful,ahead",
    "iterable,augment,dropout,accumulate,gan,plateau,bf16,stateful,ahead",
    "sampler,augment,dropout,accumulate,gan,epochs,stateful,ahead",
)
SCENARIOS = [
    *MODELS,
    *SCHEDULES,
    *PRECISIONS,
    *DATA,
    *(f"{features},workers2" for features in DATA),
    "shuffle,augment,ahead,persistent,workers2",
    *TOGETHER,
    *(f"{features},workers2" for features in TOGETHER),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where the processes come from."""
    with serving("tests.training.exact_program", tmp_path_factory.mktemp("processes")) as started:
        yield started


def random_kills(random_: random.Random, features: str) -> list[str]:
    """Two places at which to die, the second one later in the run."""
    kills = []
    for first, last in ((1, 9), (10, 16)):
        place = random_.choice(PLACES)
        reads = (3, 10) if "workers2" in features else (5, 25)
        kills.append(f"{place}:{random_.randint(*(reads if place == 'read' else (first, last)))}")
    return kills


def newest(run_dir: Path) -> int:
    """The batches trained at the newest checkpoint that was committed."""
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    return int(checkpoints[-1].name[len("batch-") :].split(".")[0]) if checkpoints else 0


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what is not to be repeated: times and rates."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in ("time", "perf")} for record in records]


def scalars(run_dir: Path) -> dict[tuple[str, int], float]:
    """All scalars in TensorBoard's files, read as raw events: each (tag, step) must be there once."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: list[tuple[tuple[str, int], float]] = []
    for file in sorted((run_dir / "tensorboard").iterdir()):
        for event in LegacyEventFileLoader(str(file)).Load():
            found += [((value.tag, event.step), value.simple_value) for value in event.summary.value]
    assert len(dict(found)) == len(found)
    return {(tag, step): value for (tag, step), value in found if not tag.startswith("perf/")}


def check_resume(process: Process, batches: list[dict[str, Any]], first: int) -> None:
    """Whether a process trained on from batch ``first``, with the records of an uninterrupted run."""
    trained = process.trained()
    assert trained == batches[first : first + len(trained)]


def check_reads(process: Process, batches: list[dict[str, Any]], first: int, features: str, log: str) -> None:
    """Whether a process that ran to the end read the records of its own batches once, and no others."""
    needed = Counter(number for batch in batches[first:] for number in batch["numbers"])
    read = Counter(process.read())
    begun = [b for b in batches[:first] if first < len(batches) and b["epoch"] == batches[first]["epoch"]]
    has_no_state = "iterable" in features or ("flow" in features and "workers2" in features)
    if has_no_state and begun:
        # It has no position to go on from: the epoch is read again up to it, and that is told once.
        needed.update(number for batch in begun for number in batch["numbers"])
        assert log.count("are read again") == 1
    else:
        assert "read again" not in log
    assert read == needed


def interrupted(server: Server, run_dir: Path, features: str, kills: list[str]) -> tuple[Process, int]:
    """Run, be killed at each place, run to the end; return the last process and its first batch."""
    whole = whole_run(server, run_dir.with_name(f"{run_dir.name}-whole"), features)
    batches = whole.trained()
    first = 0
    for place in kills:
        first = newest(run_dir)
        process, status = server.run(run_dir, "--features", features, "--kill-at", place)
        assert status == SIGKILL, process.stderr
        check_resume(process, batches, first)
    first = newest(run_dir)
    log = run_dir / "log.txt"
    logged_before = log.stat().st_size
    last, status = server.run(run_dir, "--features", features, "--leave-at-once")
    assert status == 0, last.stderr
    check_resume(last, batches, first)
    assert len(last.trained()) == len(batches) - first
    check_reads(last, batches, first, features, log.read_bytes()[logged_before:].decode())
    assert last.result == whole.result
    check_recorded(run_dir, run_dir.with_name(f"{run_dir.name}-whole"))
    return last, first


def check_recorded(run_dir: Path, whole: Path) -> None:
    """Whether each step was recorded once and each checkpoint made once, as in an uninterrupted run."""
    made, expected = (sorted(os.listdir(folder / "checkpoints")) for folder in (run_dir, whole))
    assert made == expected
    assert lines(run_dir) == lines(whole)
    steps = Counter((line["kind"], line["batch"]) for line in lines(run_dir))
    assert set(steps.values()) == {1}
    assert scalars(run_dir) == scalars(whole) != {}


def whole_run(server: Server, run_dir: Path, features: str) -> Process:
    """An uninterrupted run."""
    whole, status = server.run(run_dir, "--features", features, "--leave-at-once")
    assert status == 0, whole.stderr
    check_reads(whole, whole.trained(), 0, features, (run_dir / "log.txt").read_text())
    return whole


@pytest.mark.parametrize("features", SCENARIOS)
def test_killed_twice_it_ends_as_an_uninterrupted_run(server: Server, tmp_path: Path, features: str) -> None:
    """Killed at two random places, a run ends with the same weights, states, random numbers and recorded lines."""
    interrupted(server, tmp_path / "run", features, random_kills(random.Random(features), features))


def test_tensorboard_shows_each_step_once(server: Server, tmp_path: Path) -> None:
    """TensorBoard's own reader finds each step once, in order, after two kills."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(server, tmp_path / "run", "shuffle", ["counted:7", "committed:14"])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for tag, kind in (("train/loss", "training"), ("validation/loss", "validation")):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        told = [(r["batch"], pytest.approx(r["metrics"]["loss"])) for r in lines(tmp_path / "run") if r["kind"] == kind]
        assert found == told


@pytest.mark.parametrize(
    ("kills", "first"),
    [
        (["train:2"], 0),
        (["write:4"], 0),
        (["committed:4"], 4),
        (["save:8"], 5),
        (["evaluate:5"], 4),
        (["stepped:7", "counted:7"], 5),
        (["committed:8", "committed:10", "committed:12", "committed:15", "committed:16"], 16),
        (["committed:24"], 24),
    ],
)
def test_it_goes_on_from_the_last_checkpoint_that_was_committed(
    server: Server, tmp_path: Path, kills: list[str], first: int
) -> None:
    """Wherever it is killed, the next process trains on from the last committed checkpoint; without one, from 0."""
    _, found = interrupted(server, tmp_path / "run", "shuffle,augment,dropout,accumulate", kills)
    assert found == first


def test_killed_from_outside_with_workers_alive(server: Server, tmp_path: Path) -> None:
    """Killed from outside in the middle of a batch, a run leaves no worker, and is resumed exactly."""
    features = "shuffle,augment,dropout,workers2"
    process = server.start(tmp_path / "run", "--features", features, pause_at="train:11")
    assert process.told() == "train 11 False"
    process.signal(signal.SIGKILL)
    assert process.gone()
    assert process.wait() == SIGKILL
    _, first = interrupted(server, tmp_path / "run", features, [])
    assert first == 10


def test_another_number_of_workers(server: Server, tmp_path: Path) -> None:
    """A run killed with two workers and resumed with three ends as one that had two all the time."""
    features = "shuffle,augment,dropout,accumulate,ahead"
    whole = whole_run(server, tmp_path / "whole", f"{features},workers2")
    _, status = server.run(tmp_path / "run", "--features", f"{features},workers2", "--kill-at", "stepped:13")
    assert status == SIGKILL
    last, status = server.run(tmp_path / "run", "--features", f"{features},workers3", "--leave-at-once")
    assert status == 0 and last.trained() == whole.trained()[12:]
    assert last.result == whole.result
    check_recorded(tmp_path / "run", tmp_path / "whole")


def test_fresh_interpreters(tmp_path: Path) -> None:
    """Exactness hangs on nothing that a process inherits: interpreters with hash seeds of their own agree."""
    features = "shuffle,augment,dropout,accumulate,gan,batches,stateful,workers2"
    found = []
    for number, (run, kill) in enumerate((("whole", []), ("cut", ["--kill-at", "stepped:13"]), ("cut", []))):
        out = tmp_path / str(number)
        out.mkdir()
        command = [sys.executable, "-m", "tests.training.exact_program", "--run-dir", str(tmp_path / run)]
        command += ["--out", str(out), "--features", features, *kill]
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 1)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == (SIGKILL if kill else 0), done.stderr
        found.append(out)
    whole, resumed = (json.loads((out / "result.json").read_text()) for out in (found[0], found[2]))
    assert resumed == whole
    check_recorded(tmp_path / "cut", tmp_path / "whole")
    assert json.loads((found[2] / "trained").read_text().splitlines()[0])["batch"] == 12


EXTRAS = ("dropout", "augment", "accumulate", "gan", "stateful", "ahead", "workers2")
CHOICES = (
    ("shuffle", "sampler", "iterable", "flow", "buffers"),
    ("sgd", "adam", "adamw"),
    ("epochs", "batches", "steps", "manual", "plateau", "constant"),
    ("fp32", "bf16", "fp16"),
)


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Any set of features that go together, and two kills."""
    features = draw(st.sets(st.sampled_from(EXTRAS))) | {draw(st.sampled_from(choice)) for choice in CHOICES}
    place = st.sampled_from([place for place in PLACES if place != "read"])
    reads = st.integers(1, 10).map(lambda number: f"read:{number}")
    early = st.builds("{}:{}".format, place, st.integers(0, 9))
    late = st.builds("{}:{}".format, place, st.integers(10, 16))
    return ",".join(sorted(features)), [draw(reads | early), draw(late)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_features_killed_anywhere(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever features go together and wherever the run dies, it is resumed exactly."""

    @settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(scenario=scenarios())
    def check(scenario: tuple[str, list[str]]) -> None:
        features, kills = scenario
        interrupted(server, tmp_path_factory.mktemp("any") / "run", features, kills)

    check()
