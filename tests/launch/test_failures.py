"""What is taken for the first cause of an attempt's end, and whether that is a reason to try again."""

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from trainlab.distributed import Failure
from trainlab.errors import LaunchError, RankFailedError
from trainlab.launch.failures import FirstFailure, History
from trainlab.launch.platform import Platform

KILLED, TERMINATED, CRASHED = -signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV


def leave(notes: Path, rank: int, name: str, value: dict[str, Any]) -> None:
    """A note of a rank's, as ``trainlab.distributed.note`` leaves it."""
    (notes / f"rank-{rank}.{name}.json").write_text(json.dumps(value))


def error(rank: int, at: float, message: str = "ValueError: boom") -> dict[str, Any]:
    return {"rank": rank, "message": message, "traceback": f"Traceback\n{message}\n", "at": at}


def agreed(rank: int, kind: Any, batch: int | None = None, message: str = "ValueError: boom") -> dict[str, Any]:
    return asdict(Failure(rank, kind, "train", batch, message, "Traceback\n"))


def test_the_cause_that_the_ranks_agree_on_is_the_first(tmp_path: Path) -> None:
    """What the ranks have told each other is the cause, whoever else ended, and in whatever way."""
    leave(tmp_path, 0, "failure", agreed(1, "error", 7))
    leave(tmp_path, 0, "error", error(0, 1.0, "RuntimeError: connection reset"))
    found = FirstFailure.of(tmp_path, {0: 1, 1: 1}, 2)
    assert (found.rank, found.exitcode, found.is_error) == (1, 1, True)
    assert found.headline == "Rank 1 of 2 failed in train at batch 7: ValueError: boom"


def test_the_earliest_error_is_the_first(tmp_path: Path) -> None:
    """Without a common cause it is the error that was raised first, though another rank's process ended before."""
    leave(tmp_path, 0, "error", error(0, 2.0, "KeyError: 'second'"))
    leave(tmp_path, 1, "error", error(1, 1.0))
    found = FirstFailure.of(tmp_path, {0: 1}, 2)
    assert (found.rank, found.traceback) == (1, "Traceback\nValueError: boom\n")


def test_a_rank_that_was_ended_for_anothers_sake_is_no_cause(tmp_path: Path) -> None:
    """A rank that got SIGTERM from the launcher is not named in place of the one that crashed."""
    found = FirstFailure.of(tmp_path, {0: TERMINATED, 1: CRASHED, 2: TERMINATED}, 3)
    assert (found.rank, found.exitcode) == (1, CRASHED)
    assert found.headline == "Rank 1 of 3 was killed by SIGSEGV."


def test_the_signal_that_the_agent_saw_is_told(tmp_path: Path) -> None:
    """Of a rank that its peers saw vanish, the launcher tells by what it was killed, and what SIGKILL may mean."""
    leave(tmp_path, 0, "failure", agreed(1, "killed", 7, "its process is gone"))
    found = FirstFailure.of(tmp_path, {0: 1, 1: KILLED}, 2)
    assert found.headline.startswith("Rank 1 of 2 died in train at batch 7: was killed by SIGKILL")
    assert "memory" in found.headline and not found.is_error


@pytest.mark.parametrize(
    ("exitcodes", "stopped_by"),
    [
        ({0: 143, 1: 143}, signal.SIGTERM),
        ({0: 143, 1: TERMINATED}, signal.SIGTERM),
        ({0: 130, 1: 130}, signal.SIGINT),
        ({0: 138}, signal.SIGUSR1),
        ({0: 143, 1: 1}, None),
        ({0: 143, 1: KILLED}, None),
        ({0: KILLED, 1: 143}, None),
        ({0: 1}, None),
        ({0: TERMINATED}, None),
    ],
)
def test_an_end_in_good_order_is_no_failure(exitcodes: dict[int, int], stopped_by: int | None, tmp_path: Path) -> None:
    """Ranks that a signal stopped in good order are told from those that were lost, or failed."""
    assert FirstFailure.of(tmp_path, exitcodes, 2).stopped_by == stopped_by


def test_a_torn_note_is_told(tmp_path: Path) -> None:
    """A note that cannot be read is an error that names it."""
    (tmp_path / "rank-0.failure.json").write_text("{")
    with pytest.raises(LaunchError, match=r"note cannot be read: .*rank-0\.failure\.json"):
        FirstFailure.of(tmp_path, {0: 1}, 1)


class Attempts:
    """Attempts of one launch, one after the other."""

    def __init__(self, folder: Path, max_restarts: int = 10) -> None:
        self.history = History(Platform(max_restarts=max_restarts))
        self._folder, self._count = folder, 0

    def end(self, exitcodes: dict[int, int], *, trained: bool = True, resumed: int = 0, **notes: Any) -> None:
        """One ends."""
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        self._count += 1
        leave(folder, 0, "resumed", {"batch": resumed})
        if trained:
            leave(folder, 0, "trained", {"batch": resumed + 1})
        for name, value in notes.items():
            leave(folder, 0, name, value)
        self.history.add(FirstFailure.of(folder, exitcodes, 2), folder)


def test_the_same_error_at_the_same_batch_stops_at_the_third(tmp_path: Path) -> None:
    """Addresses and process ids in a message do not make it another error."""
    attempts = Attempts(tmp_path)
    for number in (0x7F01, 0x7F02):
        attempts.end({0: 1}, failure=agreed(0, "error", 5, f"ValueError: <object at {number:#x}>, pid {number}"))
    with pytest.raises(RankFailedError, match="three times in a row, at the same place"):
        attempts.end({0: 1}, failure=agreed(0, "error", 5, "ValueError: <object at 0x7fff>, pid 23456"))
    assert attempts.history.restarts == 3


@pytest.mark.parametrize("differing", ["batch", "message"])
def test_other_errors_or_batches_are_no_loop(differing: str, tmp_path: Path) -> None:
    """An error that comes at another batch, or another error, is worth another try."""
    attempts = Attempts(tmp_path)
    for number in range(6):
        batch, told = (5 + number % 2, "ValueError: boom") if differing == "batch" else (5, f"KeyError: {number}")
        attempts.end({0: 1}, failure=agreed(0, "error", batch, told))
    assert attempts.history.restarts == 6


def test_a_crash_after_a_newer_checkpoint_is_no_loop(tmp_path: Path) -> None:
    """Crashes stop a launch where no checkpoint was gained between them, and only there."""
    attempts = Attempts(tmp_path)
    for resumed in (0, 4, 8, 8):
        attempts.end({1: CRASHED}, resumed=resumed)
    with pytest.raises(RankFailedError, match=r"SIGSEGV.*three times in a row"):
        attempts.end({1: CRASHED}, resumed=8)


def test_bad_luck_is_counted_by_max_restarts_alone(tmp_path: Path) -> None:
    """Whatever is killed from outside is tried again as often as max_restarts says, also at the same place."""
    attempts = Attempts(tmp_path, max_restarts=5)
    for _ in range(5):
        attempts.end({1: KILLED}, failure=agreed(1, "killed", 5, "gone"))
    with pytest.raises(RankFailedError, match=r"started again 5 times \(max_restarts\)") as caught:
        attempts.end({1: KILLED}, failure=agreed(1, "killed", 5, "gone"))
    assert (caught.value.rank, caught.value.exitcode) == (1, KILLED)


def test_an_error_is_the_end_until_something_was_trained(tmp_path: Path) -> None:
    """An error is tried again only if any attempt has trained a batch; a lost rank always."""
    attempts = Attempts(tmp_path)
    attempts.end({0: KILLED}, trained=False)
    attempts.end({0: 1}, error=error(0, 1.0))
    attempts.end({0: 1}, trained=False, error=error(0, 1.0, "OSError: the disk is full"))
    with pytest.raises(RankFailedError, match=r"Rank 0 of 2 failed: ValueError: boom"):
        Attempts(tmp_path / "again").end({0: 1}, trained=False, error=error(0, 1.0))


def test_an_error_has_the_status_of_an_error(tmp_path: Path) -> None:
    """A rank that raised, and that the launcher ended before it could end itself, has not been stopped by a signal."""
    leave(tmp_path, 1, "error", error(1, 1.0))
    assert FirstFailure.of(tmp_path, {0: 1, 1: -signal.SIGTERM}, 2).exitcode == 1
    leave(tmp_path, 0, "failure", agreed(1, "error", 7))
    assert FirstFailure.of(tmp_path, {0: 1, 1: -signal.SIGTERM}, 2).exitcode == 1


def test_a_status_that_the_agent_saw_is_told(tmp_path: Path) -> None:
    """Of a rank that its peers saw vanish, and that ended with a status, no memory is suspected."""
    leave(tmp_path, 0, "failure", agreed(1, "killed", 7, "its process is gone: killed, perhaps for want of memory"))
    leave(tmp_path, 0, "resumed", {"batch": 5})
    found = FirstFailure.of(tmp_path, {0: 1, 1: 3}, 2)
    assert found.headline == "Rank 1 of 2 died in train at batch 7: ended with status 3"
    assert found.is_error and found.signature == (1, 3, 5)


def test_a_result_that_cannot_be_sent_is_not_tried_again(tmp_path: Path) -> None:
    """A mistake at the end of a training does not cost the training once more."""
    leave(tmp_path, 0, "trained", {})
    leave(tmp_path, 0, "error", {**error(0, 1.0), "is_of_launch": True})
    history = History(Platform(max_restarts=3))
    with pytest.raises(RankFailedError, match="boom"):
        history.add(FirstFailure.of(tmp_path, {0: 1}, 1), tmp_path)
