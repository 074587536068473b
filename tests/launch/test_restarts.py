"""Ranks that are lost and come back: the same run, the same end, and no crash loops."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.launch import programs
from tests.launch.launchers import record_of
from tests.training.exactness import check_recorded
from trainlab.errors import RankFailedError
from trainlab.launch import Platform, launch

STATE = ("weights", "optimizers", "generators", "progress", "metrics")
Plan = dict[int, tuple[str, int, str]]


def train(folder: Path, plan: Plan, *, processes: int = 2, max_restarts: int = 3, **options: Any) -> list[Any]:
    """A launch that trains below a folder: how it ended, by rank."""
    folder.mkdir(exist_ok=True)
    platform = Platform(device="cpu", processes=processes, max_restarts=max_restarts, timeout=100)
    return launch(programs.train, str(folder), plan, options, platform=platform)  # type: ignore[return-value]


def run_of(folder: Path) -> Path:
    """The one run's folder."""
    (run_dir,) = (folder / "runs" / "night").iterdir()
    return run_dir


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run that nothing happened to: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("whole")
    return run_of_after(folder, train(folder, {}))


def run_of_after(folder: Path, found: list[Any]) -> tuple[Path, list[Any]]:
    return run_of(folder), found


def check(folder: Path, found: list[Any], whole: tuple[Path, list[Any]], restarts: int) -> None:
    """Whether a run ended as the whole one, to the bit, in one folder, and recorded each step once."""
    for rank, (ended, expected) in enumerate(zip(found, whole[1], strict=True)):
        differing = [part for part in STATE if ended[part] != expected[part]]
        assert not differing, f"rank {rank} ended with other {differing}"
    run_dir = run_of(folder)
    attempts, statuses = zip(*record_of(run_dir), strict=True)
    assert list(attempts) == list(range(restarts + 1))
    # Who survives its peers writes that the run failed, and who is killed does not.
    assert set(statuses[:-1]) <= {"failed", "crashed"} and statuses[-1] == "finished"
    check_recorded(run_dir, whole[0])


@pytest.mark.slow
def test_a_killed_rank_comes_back(tmp_path: Path, whole: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A rank killed in a batch: all go on from the newest checkpoint in the same folder, and end as if nothing was."""
    found = train(tmp_path, {0: ("one", 1, f"train:{random.randint(5, 16)}")})
    check(tmp_path, found, whole, 1)
    assert min(found[0]["seen"]) >= 4
    assert "SIGKILL" in caplog.text and "All ranks are started again (1 of at most 3 times)" in caplog.text
    logs = [(run_of(tmp_path) / f"log.rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert [log.count("training\n") for log in logs] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "begins"),
    [
        ({0: ("one", 0, "train:2")}, 0),
        ({0: ("one", 0, "train:7")}, 4),
        ({0: ("all", 0, "train:9")}, 8),
        ({0: ("all", 0, "point:published:1")}, 4),
        ({0: ("one", 0, "point:file begun:3"), 1: ("one", 1, "train:10"), 2: ("segv", 1, "train:15")}, 12),
        ({0: ("error", 1, "train:6"), 1: ("one", 0, "point:data durable:1")}, 4),
    ],
    ids=["before any checkpoint", "chief", "all at once", "in a checkpoint", "again and again", "error"],
)
def test_whatever_is_lost_comes_back(tmp_path: Path, whole: Any, plan: Plan, begins: int) -> None:
    """Chief, all ranks, before, in and after a checkpoint, again and again: a run ends as if nothing was."""
    found = train(tmp_path, plan)
    check(tmp_path, found, whole, len(plan))
    assert min(found[0]["seen"]) == begins


@pytest.mark.slow
def test_restarts_are_used_up(tmp_path: Path) -> None:
    """Lost more often than max_restarts, a launch ends with what happened last, and says how often it tried."""
    plan: Plan = {0: ("one", 1, "train:5"), 1: ("one", 0, "train:7"), 2: ("one", 1, "train:9")}
    with pytest.raises(
        RankFailedError, match=r"Rank 1 of 2 .*SIGKILL.*started again 2 times \(max_restarts\)"
    ) as caught:
        train(tmp_path, plan, max_restarts=2)
    assert (caught.value.rank, caught.value.exitcode) == (1, -signal.SIGKILL)
    assert [attempt for attempt, _ in record_of(run_of(tmp_path))] == [0, 1, 2]


@pytest.mark.slow
def test_an_error_at_the_same_batch_three_times_is_the_end(tmp_path: Path) -> None:
    """A mistake that comes at the same batch again and again ends the launch the third time, with its traceback."""
    with pytest.raises(RankFailedError, match=r"batch 6: ValueError: a mistake.*three times in a row") as caught:
        train(tmp_path, dict.fromkeys(range(10), ("error", 1, "train:6")), max_restarts=10)
    assert caught.value.rank == 1 and "in blunder" in caught.value.traceback
    assert [attempt for attempt, _ in record_of(run_of(tmp_path))] == [0, 1, 2]


@pytest.mark.slow
def test_a_crash_without_progress_three_times_is_the_end(tmp_path: Path) -> None:
    """A crash in native code three times after the same checkpoint ends the launch, however many tries are left."""
    with pytest.raises(RankFailedError, match=r"Rank 1 of 2 .*SIGSEGV.*three times in a row") as caught:
        train(tmp_path, dict.fromkeys(range(10), ("segv", 1, "train:2")), max_restarts=10)
    assert caught.value.exitcode == -signal.SIGSEGV
    assert [attempt for attempt, _ in record_of(run_of(tmp_path))] == [0, 1, 2]


@pytest.mark.slow
def test_bad_luck_at_the_same_batch_is_no_crash_loop(tmp_path: Path, whole: Any) -> None:
    """Killed from outside at the same batch three times, a run still comes back a fourth time, and ends well."""
    found = train(tmp_path, dict.fromkeys(range(3), ("one", 1, "train:6")))
    check(tmp_path, found, whole, 3)


@pytest.mark.slow
def test_an_error_after_training_in_an_earlier_attempt_is_tried_again(tmp_path: Path, whole: Any) -> None:
    """Once something was trained an error is worth a try: it may have been the machine's."""
    found = train(tmp_path, {0: ("one", 1, "train:6"), 1: ("error", 0, "train:4")})
    check(tmp_path, found, whole, 2)


@pytest.mark.slow
def test_an_error_before_the_first_batch_is_the_end(tmp_path: Path) -> None:
    """An error before anything was trained is not tried again."""
    with pytest.raises(RankFailedError, match=r"batch 0: ValueError: a mistake"):
        train(tmp_path, {0: ("error", 0, "train:0")}, max_restarts=10)
    assert [attempt for attempt, _ in record_of(run_of(tmp_path))] == [0]
