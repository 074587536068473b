"""Bytes among the ranks, for threads that must not use a collective."""

import threading
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.distributed.watched import Job, guarded
from trainlab.distributed.channel import Channel
from trainlab.errors import DistributedError, InvalidStateError, PeerFailedError


def exchanges() -> dict[str, Any]:
    """All calls, on two channels that two threads use at the same time."""
    found: dict[str, Any] = {}
    with guarded() as job:
        channels = [Channel(name, job.store, job.watchdog, job.rank, job.size) for name in ("one", "two")]
        own = b"%d" % job.rank

        def use(number: int) -> None:
            channel = channels[number]
            found[f"gather {number}"] = channel.gather(own * (number + 1))
            found[f"allgather {number}"] = channel.allgather(own + b"x" * 100_000 * job.rank)
            found[f"broadcast {number}"] = [channel.broadcast(b"%d" % n if job.rank == 0 else None) for n in range(20)]

        threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        job.all_reduce()
        found["left behind"] = list(job.store.entries("channel/"))
        job.all_reduce()
        for channel in channels:
            channel.close()
        with pytest.raises(DistributedError, match="is closed"):
            channels[0].gather(own)
        found["threads"] = [thread.name for thread in threading.enumerate() if "channel" in thread.name]
    return found


@pytest.fixture(scope="module")
def exchanged() -> list[dict[str, Any]]:
    return run_ranks(exchanges, 3)


def test_the_chief_gathers(exchanged: list[dict[str, Any]]) -> None:
    """The chief gets every rank's value in the order of the ranks, and the others get None."""
    assert [found["gather 0"] for found in exchanged] == [[b"0", b"1", b"2"], None, None]
    assert exchanged[0]["gather 1"] == [b"00", b"11", b"22"]


def test_all_gather(exchanged: list[dict[str, Any]]) -> None:
    """Every rank gets every rank's value, of whatever length."""
    expected = [b"%d" % rank + b"x" * 100_000 * rank for rank in range(3)]
    assert all(found[f"allgather {number}"] == expected for found in exchanged for number in range(2))


def test_the_chief_broadcasts(exchanged: list[dict[str, Any]]) -> None:
    """Every rank gets the chief's values in the order in which they were sent."""
    assert all(found["broadcast 1"] == [b"%d" % n for n in range(20)] for found in exchanged)


def test_nothing_stays_in_the_store(exchanged: list[dict[str, Any]]) -> None:
    """A long run's exchanges do not fill the chief's memory."""
    assert all(found["left behind"] == [] for found in exchanged)


def waits_for_who_fails() -> str:
    """Rank 1 fails while the threads of the others wait for it."""
    job = Job(grace=60.0)
    channel = Channel("writer", job.store, job.watchdog, job.rank, job.size)
    job.seen("checkpoint", 3)
    message = "Rank 1 of 3 failed in checkpoint at batch 3: ValueError: boom"
    with pytest.raises(PeerFailedError, match=message) as caught, job.watchdog.guard():
        if job.rank == 1:
            job.watchdog.report(ValueError("boom"))
        channel.allgather(b"")
    channel.close()
    job.watchdog.close()
    return str(caught.value)


def test_a_failure_ends_a_wait() -> None:
    """A background thread that waits for a failed rank gets the first cause and does not wait any longer."""
    assert len(set(run_ranks(waits_for_who_fails, 3))) == 1


def waits_for_who_left() -> str:
    """Rank 1 ends as it should while the chief's thread waits for it."""
    job = Job()
    channel = Channel("writer", job.store, job.watchdog, job.rank, job.size)
    if job.rank == 1:
        job.watchdog.close()
        return ""
    with pytest.raises(DistributedError, match="Rank 1 has ended; rank 0 waited for it in 'writer'") as caught:
        channel.gather(b"")
    assert job.watchdog.failure is None
    aborted = Channel("aborted", job.store, job.watchdog, job.rank, job.size, is_aborted=lambda: True)
    with pytest.raises(DistributedError, match="'aborted' was given up on rank 0"):
        aborted.gather(b"")
    channel.close()
    job.watchdog.close()
    return str(caught.value)


def test_a_rank_that_left_ends_a_wait() -> None:
    """A wait for a rank that has ended is told, since it would have no end, and so is one that the caller aborts."""
    assert "has ended" in run_ranks(waits_for_who_left, 2)[0]


def test_one_process_exchanges_with_itself() -> None:
    """In one process all calls give the own value back, without a store."""
    channel = Channel("alone")
    assert (channel.gather(b"a"), channel.broadcast(b"b"), channel.allgather(b"c")) == ([b"a"], b"b", [b"c"])
    channel.close()


def test_wrong_use_is_told() -> None:
    """Several ranks without a store, and a chief that broadcasts nothing, are errors and no waits."""
    with pytest.raises(InvalidStateError, match="needs a store and a watchdog"):
        Channel("writer", size=2)
    with pytest.raises(InvalidStateError, match="The chief broadcasts a value"):
        Channel("writer").broadcast()
