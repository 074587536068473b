"""Ranks that fail, die, freeze or stay away: the others end with the first cause, and nobody hangs."""

import functools
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.distributed import watched
from tests.distributed.ranks import Ranks, stand_still, start_ranks

KILLED = -signal.SIGKILL


class Outcome:
    """How the ranks of a job ended, and what they printed."""

    def __init__(self, ranks: Ranks) -> None:
        self.statuses, self.outputs = ranks.wait(), [rank.output() for rank in ranks]

    def failures(self) -> list[list[str]]:
        """Which failures each rank was told of."""
        return [re.findall(r"^FAILURE (rank=\d \w+ \w+ \w+)", output, re.MULTILINE) for output in self.outputs]

    def error(self, rank: int) -> str:
        """The last error that a rank printed."""
        return [line for line in self.outputs[rank].splitlines() if re.match(r"(\w+\.)*\w*Error: ", line)][-1]


def outcome(function: Callable[..., Any] | list[str], *args: Any, size: int = 3) -> Outcome:
    with start_ranks(function, size, *args) as ranks:
        return Outcome(ranks)


@functools.cache
def outcomes(function: Callable[..., Any]) -> list[Outcome]:
    """What comes of it if the chief is the victim, and if rank 1 is: two jobs, which mostly wait, at the same time."""
    with start_ranks(function, 3, 0) as one, start_ranks(function, 3, 1) as other:
        return [Outcome(one), Outcome(other)]


@functools.cache
def outcomes_of_freezing() -> list[Outcome]:
    """The same where the victim is stopped by SIGSTOP, and goes on once the others have ended."""
    with start_ranks(watched.frozen, 3, 0) as one, start_ranks(watched.frozen, 3, 1) as other:
        for victim, ranks in enumerate((one, other)):
            for rank in ranks:
                if rank.rank != victim:
                    rank.wait()
            ranks[victim].send_signal(signal.SIGCONT)
        return [Outcome(one), Outcome(other)]


def outcome_of_pause(victim: int) -> Outcome:
    """Stop a rank by SIGSTOP, and let it go on as soon as it stands."""
    with start_ranks(watched.paused_shortly, 3, victim) as ranks:
        ranks[victim].wait_for("stopping")
        stand_still(ranks[victim].pid)  # or the signal would come before the stop, which then had no end
        ranks[victim].send_signal(signal.SIGCONT)
        return Outcome(ranks)


@pytest.mark.parametrize("victim", [0, 1], ids=["the chief", "another"])
def test_an_error_ends_ranks_that_wait_in_a_collective(victim: int) -> None:
    """An error on one rank comes out there as it is, and on all others as the first cause, each told once."""
    found = outcome(watched.raises_while_others_reduce, victim)
    assert found.statuses == [1, 1, 1]
    assert found.failures() == [[f"rank={victim} error train 2"]] * 3
    assert found.error(victim) == "ValueError: boom"
    for rank in {0, 1, 2} - {victim}:
        expected = f"trainlab.errors.PeerFailedError: Rank {victim} of 3 failed in train at batch 2: ValueError: boom"
        assert found.error(rank) == expected


@pytest.mark.parametrize("victim", [0, 1], ids=["the chief", "another"])
def test_an_error_ends_ranks_that_compute(victim: int) -> None:
    """Ranks that wait for nobody are ended too, after the grace, with the first cause on standard error."""
    found = outcomes(watched.raises_while_others_compute)[victim]
    assert found.statuses == [1, 1, 1]
    assert found.failures() == [[f"rank={victim} error train 2"]] * 3
    for rank in {0, 1, 2} - {victim}:
        assert f"trainlab: Rank {victim} of 3 failed in train at batch 2: ValueError: boom" in found.outputs[rank]
    assert "is ended" not in found.outputs[victim]


def test_the_first_of_two_errors_counts() -> None:
    """Two ranks that fail at once agree which was first, keep their own errors, and say which was the other's."""
    found = outcome(watched.two_raise)
    assert found.statuses == [1, 1, 1]
    (first,) = {failure for told in found.failures() for failure in told}
    assert [len(told) for told in found.failures()] == [1, 1, 1]
    assert (found.error(0), found.error(1)) == ("ValueError: boom 0", "ValueError: boom 1")
    number = int(first[len("rank=")])
    assert f"It was not the first: Rank {number} of 3 failed" in found.outputs[1 - number]
    assert found.error(2).endswith(f"Rank {number} of 3 failed in train at batch 2: ValueError: boom {number}")


@pytest.mark.parametrize("victim", [0, 1], ids=["the chief", "another"])
def test_a_killed_rank_is_named(victim: int) -> None:
    """After a SIGKILL the others end with an error that names the rank and the phase it was in, the chief's too."""
    found = outcome(watched.killed, victim)
    assert found.statuses == [KILLED if rank == victim else 1 for rank in range(3)]
    for rank in {0, 1, 2} - {victim}:
        assert found.failures()[rank] == [f"rank={victim} killed validate 2"]
        assert f"PeerFailedError: Rank {victim} of 3 died in validate at batch 2: its process" in found.error(rank)


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["the chief", "another"])
def test_a_killed_rank_ends_those_that_compute(victim: int) -> None:
    """Ranks that wait for nobody learn of a SIGKILL too, by the process being gone."""
    found = outcome(watched.killed_while_others_compute, victim)
    assert found.statuses == [KILLED if rank == victim else 1 for rank in range(3)]
    for rank in {0, 1, 2} - {victim}:
        assert f"trainlab: Rank {victim} of 3 died in checkpoint: its process (id " in found.outputs[rank]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["the chief", "another"])
def test_a_frozen_rank_is_named(victim: int) -> None:
    """A rank stopped for longer than the limit ends the others, which name it and its phase, and then itself."""
    found = outcomes_of_freezing()[victim]
    assert found.statuses == [1, 1, 1]
    assert found.failures() == [[f"rank={victim} frozen checkpoint 5"]] * 3
    for rank in {0, 1, 2} - {victim}:
        assert (
            f"Rank {victim} of 3 froze in checkpoint at batch 5: it gave no sign of life for 6 s" in found.outputs[rank]
        )
    assert "it stood still for" in found.outputs[victim]


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["the chief", "another"])
def test_a_short_stop_is_no_failure(victim: int) -> None:
    """A rank stopped for less than the limit goes on, and so do all."""
    assert outcome_of_pause(victim).statuses == [0, 0, 0]


@pytest.mark.slow
def test_a_call_that_others_do_not_make_is_told() -> None:
    """Ranks that wait in vain say what each rank was doing and for how long, and the one that stayed away ends too."""
    found = outcome(watched.absent)
    assert found.statuses == [1, 1, 1]
    (message,) = {re.findall(r"Rank [02] of 3 waited in vain.*", output)[-1] for output in found.outputs}
    assert re.match(r"Rank [02] of 3 waited in vain in train at batch 7: Timed out waiting 5000ms", message)
    for rank in (0, 2):
        expected = rf"rank {rank}: in train at batch 7 for \d+ s, waiting in allgather \(my.py:12\) for \d+ s"
        assert re.search(expected, message)
    assert re.search(r"rank 1: in validate for \d+ s($|;)", message)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["the chief", "another"])
def test_an_early_end_is_no_failure(victim: int) -> None:
    """A rank that has closed its watchdog may end, and the others go on, even without the chief and its store."""
    found = outcomes(watched.ends_early)[victim]
    assert (found.statuses, found.failures()) == ([0, 0, 0], [[], [], []])


def test_an_early_end_that_others_wait_for_is_named() -> None:
    """Who waits in a collective for a rank that has ended is told that it has."""
    found = outcome(watched.ends_early_and_is_missed)
    assert found.statuses == [1, 0, 1]
    for rank in (0, 2):
        assert "PeerFailedError: Rank 1 of 3 ended in train at batch 2: it had nothing more to do" in found.error(rank)


@pytest.mark.slow
def test_a_main_thread_that_stands_still_is_no_failure() -> None:
    """A rank under a debugger holds the others up, and nobody ends it."""
    found = outcome(watched.main_thread_stands_still)
    assert (found.statuses, found.failures()) == ([0, 0, 0], [[], [], []])


@pytest.mark.slow
def test_closing_does_not_wait_for_a_stopped_chief() -> None:
    """A rank can end while the chief stands still, and leaves no thread and no connection behind."""
    with start_ranks(watched.closes_while_the_chief_is_stopped, 2) as ranks:
        ranks[0].wait_for("stopping")
        assert ranks[1].wait() == 0
        assert ranks[1].result() == []
        ranks[0].send_signal(signal.SIGCONT)
        assert ranks[0].wait() == 0


def test_an_end_without_a_word_is_a_failure() -> None:
    """A process that ends by itself, past all handlers of Python's, ends the others."""
    found = outcome(watched.ends_without_leaving, "_exit")
    assert found.statuses == [1, 0, 1]
    for rank in (0, 2):
        assert "trainlab: Rank 1 of 3 died in train at batch 3: its process (id " in found.outputs[rank]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "status", "expected"),
    [
        ("exit", 3, "Rank 1 of 2 ended in train at batch 3: its script ended, or called sys.exit, without closing"),
        ("error", 1, "Rank 1 of 2 failed in train at batch 3: KeyError: 'lost'"),
        ("_exit", 0, "Rank 1 of 2 died in train at batch 3: its process (id "),
    ],
)
def test_the_end_of_a_script_is_a_failure(way: str, status: int, expected: str) -> None:
    """A script that ends on one rank, by sys.exit, an error outside of training or os._exit, ends the others."""
    found = outcome(["-m", "tests.distributed.watched", "ends_without_leaving", way], size=2)
    assert found.statuses == [1, status]
    assert f"trainlab: {expected}" in found.outputs[0]
