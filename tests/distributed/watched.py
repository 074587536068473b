"""What the ranks do in the tests of store, channel and watchdog: a job of several processes that fail in many ways."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from trainlab.distributed.activity import Beat
from trainlab.distributed.failure import Failure
from trainlab.distributed.store import JobStore
from trainlab.distributed.watchdog import Watchdog

RANK = int(os.environ.get("RANK", "0"))
SIZE = int(os.environ.get("WORLD_SIZE", "1"))
# Seconds without a sign of life, longer than a busy machine leaves a living process without a turn.
FROZEN = 6.0


class Job:
    """One rank of a job, with a gloo group, a store and a watchdog.

    Args:
        heartbeat_timeout: Of the watchdog.
        grace: Of the watchdog. By default long: what comes out by itself may take its time.
    """

    def __init__(self, heartbeat_timeout: float = 60.0, grace: float = 60.0) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        place = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), self.size, self.rank == 0)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("group", place),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=60),
        )
        self.store = JobStore(self.rank, "127.0.0.1", dist.PrefixStore("job", place))
        self.watchdog = Watchdog(self.store, self.rank, self.size, heartbeat_timeout=heartbeat_timeout, grace=grace)
        self.watchdog.on_failure(_print_failure)
        self.all_reduce()

    def all_reduce(self) -> None:
        """A collective of all ranks, as a user or DDP makes it."""
        dist.all_reduce(torch.ones(1))

    def seen(self, phase: str, batch: int | None = None) -> None:
        """Enter a phase, and wait until all ranks have seen all others in it."""
        store = self.store.client()
        # The chief first: a round reads its beat before it writes the own one, so whose beat tells the phase knows it.
        while self.rank != 0 and self._phases(store).get(0) != phase:
            pause()
        self.watchdog.phase(phase, batch)
        while list(self._phases(store).values()) != [phase] * self.size:
            pause()
        store.close()
        self.all_reduce()

    def chief_pid(self) -> int:
        """The process id of rank 0."""
        return self._beats(self.store)[0].process.pid

    def _phases(self, store: JobStore) -> dict[int, str]:
        return {rank: beat.phase for rank, beat in self._beats(store).items()}

    def await_beats(self, count: int) -> None:
        """Wait until this rank has given so many more signs of life."""
        store = self.store.client()
        end = self._beats(store)[self.rank].count + count
        while self._beats(store)[self.rank].count < end:
            pause()
        store.close()

    def _beats(self, store: JobStore) -> dict[int, Beat]:
        entries = store.entries("beat/")
        return {int(key.removeprefix("beat/")): Beat.from_json(content) for key, content in entries.items()}

    def close(self) -> None:
        """End as a rank should."""
        self.watchdog.close()
        self.store.close()
        dist.destroy_process_group()


def _print_failure(failure: Failure) -> None:
    fields = (f"rank={failure.rank}", failure.kind, failure.phase, failure.batch, failure.message)
    say("FAILURE " + " ".join(map(str, fields)))


def say(text: str) -> None:
    """Print a line at once."""
    os.write(1, f"{text}\n".encode())


def pause() -> None:
    """Let others compute, between two looks."""
    threading.Event().wait(0.005)


def compute() -> None:
    """Compute in Python until somebody ends the process."""
    while True:
        sum(range(1000))


def wait_forever() -> None:
    """Wait, in Python, for something that never comes."""
    threading.Event().wait()


@contextmanager
def guarded(**limits: float) -> Iterator[Job]:
    """A job in its guard, closed when all went well."""
    job = Job(**limits)
    with job.watchdog.guard():
        yield job
    job.close()


def raises_while_others_reduce(victim: int) -> None:
    with guarded() as job:
        job.seen("train", 2)
        if job.rank == victim:
            raise ValueError("boom")
        job.all_reduce()


def raises_while_others_compute(victim: int) -> None:
    with guarded(grace=1.0) as job:
        job.seen("train", 2)
        if job.rank == victim:
            raise ValueError("boom")
        compute()


def two_raise() -> None:
    with guarded() as job:
        job.seen("train", 2)
        if job.rank < 2:
            raise ValueError(f"boom {job.rank}")
        job.all_reduce()


def killed(victim: int) -> None:
    with guarded() as job:
        job.seen("validate", 2)
        if job.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        job.all_reduce()


def killed_while_others_compute(victim: int) -> None:
    with guarded(grace=1.0) as job:
        job.seen("checkpoint")
        if job.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        compute()


def frozen(victim: int) -> None:
    with guarded(heartbeat_timeout=FROZEN, grace=1.0) as job:
        job.seen("checkpoint", 5)
        if job.rank == victim:
            say("stopping")
            os.kill(os.getpid(), signal.SIGSTOP)
        job.all_reduce()


def paused_shortly(victim: int) -> str:
    with guarded() as job:
        job.seen("train", 2)
        if job.rank == victim:
            say("stopping")
            os.kill(os.getpid(), signal.SIGSTOP)
        job.all_reduce()
    return "went on"


def absent() -> None:
    with guarded(grace=1.0) as job:
        job.seen("train", 7)
        # A group of its own: to find each other the ranks may need longer.
        group = dist.new_group(timeout=timedelta(seconds=5))
        if job.rank == 1:
            job.watchdog.phase("validate")
            wait_forever()
        with job.watchdog.doing("allgather", "my.py:12"):
            dist.all_reduce(torch.ones(1), group=group)


def main_thread_stands_still() -> Failure | None:
    """As under a debugger: rank 1's main thread does nothing for longer than the limit, and its heart beats."""
    with guarded(heartbeat_timeout=FROZEN) as job:
        job.seen("train", 2)
        if job.rank == 1:
            job.await_beats(11)  # one each second, but for the first few
        job.all_reduce()
        failure = job.watchdog.failure
    return failure


def ends_early(victim: int) -> Failure | None:
    job = Job()
    job.seen("train", 2)
    if job.rank == victim:
        job.close()
        return None
    while victim not in job.watchdog.left_ranks:
        pause()
    failed = threading.Event()
    job.watchdog.on_failure(lambda failure: failed.set())
    failed.wait(4.0)  # several rounds of the heartbeat, without the store if it was the chief's
    failure = job.watchdog.failure
    job.close()
    return failure


def ends_early_and_is_missed() -> None:
    with guarded(grace=2.0) as job:
        job.seen("train", 2)
        if job.rank == 1:
            job.close()
            os._exit(0)
        job.all_reduce()


def closes_while_the_chief_is_stopped() -> list[str] | None:
    job = Job()
    job.seen("train", 2)
    pid = job.chief_pid()
    job.all_reduce()
    if job.rank == 0:
        say("stopping")
        os.kill(os.getpid(), signal.SIGSTOP)
        job.close()
        return None
    while b") T " not in Path(f"/proc/{pid}/stat").read_bytes():
        pause()
    job.watchdog.close()
    job.store.close()
    port = job.store._place[1]
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("trainlab")]
    left += [str(link) for link in psutil.Process().net_connections("tcp") if link.raddr and link.raddr.port == port]
    say("closed")
    return left


def ends_without_leaving(way: str) -> None:
    """It ends outside of a guard. At the end of a function no exit handlers run, so as a script it is another case."""
    job = Job(grace=1.0)
    job.seen("train", 3)
    if job.rank == 1:
        if way == "exit":
            sys.exit(3)
        if way == "_exit":
            os._exit(0)
        raise KeyError("lost")
    compute()


def run(name: str, *arguments: str) -> None:
    """Call a function of this file as a script's main program does."""
    function: Callable[..., Any] = globals()[name]
    function(*(int(argument) if argument.isdigit() else argument for argument in arguments))


if __name__ == "__main__":
    run(*sys.argv[1:])
