"""What the launcher of the tests promises to the tests."""

import os
import signal

import pytest

from tests.distributed.ranks import run_ranks, start_ranks


def numbers(more: int) -> tuple[int, int, int, int]:
    variables = os.environ
    return int(variables["RANK"]), int(variables["WORLD_SIZE"]), int(variables["GROUP_RANK"]), more


def fails_on_one() -> None:
    print("said before")
    if os.environ["RANK"] == "1":
        raise ValueError("boom")


def waits() -> None:
    print("here I am")
    signal.pause()


def test_each_rank_has_its_numbers_and_gives_its_result() -> None:
    """The results come by rank, each from a process that knows who it is."""
    assert run_ranks(numbers, 4, 7, nodes=2) == [(0, 4, 0, 7), (1, 4, 0, 7), (2, 4, 1, 7), (3, 4, 1, 7)]


def test_a_failure_tells_what_every_rank_printed() -> None:
    """A rank that fails makes the test fail, with what all of them said."""
    with pytest.raises(AssertionError, match=r"(?s)rank 0: exit status 0\nsaid before.*rank 1.*ValueError: boom"):
        run_ranks(fails_on_one, 2)


@pytest.mark.slow
def test_a_hang_is_ended_and_tells_where() -> None:
    """A rank that hangs is ended when the time is up, and the failure names the line it hung at."""
    with pytest.raises(AssertionError, match=r'(?s)test_ranks.py", line \d+ in waits'):
        run_ranks(waits, 1, timeout=6.0)  # in which it has to get there


def test_ranks_can_be_stopped_and_killed() -> None:
    """A test can send any signal to a rank and sees how it ended."""
    with start_ranks(waits, 2) as ranks:
        for rank in ranks:
            rank.wait_for("here I am")
        ranks[0].send_signal(signal.SIGSTOP)
        ranks[0].kill()
        ranks[1].send_signal(signal.SIGTERM)
        assert ranks.wait() == [-signal.SIGKILL, -signal.SIGTERM]


def test_a_command_is_a_new_interpreter() -> None:
    """A command runs in an interpreter of its own, with the rank's environment."""
    with start_ranks(["-c", "import os, sys; print(len(sys.argv), os.environ['RANK'])"], 2, env={"A": "1"}) as ranks:
        assert ranks.wait() == [0, 0]
        assert [rank.output() for rank in ranks] == ["1 0\n", "1 1\n"]
