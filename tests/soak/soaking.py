"""Soak: runs that are killed, and checkpoints that are corrupted, until there were enough."""

import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.checkpoint.corruptions import corrupt
from tests.training.exactness import Interrupted, Whole, check_series
from tests.training.processes import Process, Server, serving
from tests.training.scenarios import random_features, random_place
from trainlab.checkpoint import Checkpoint, list_checkpoints
from trainlab.errors import CheckpointError
from trainlab.storage import open_store

__all__ = ["Soak", "Totals"]

_KILLS_OF_A_RUN = 8
_PROGRESS_SECONDS = 10
_ENOUGH_FAILURES = 20
# Quick ones: what was damaged, and not what it is of, matters here.
_CORRUPTED = (
    "shuffle,dropout,augment,adam,accumulate,best",
    "gan,adamw,buffers,stateful,ema,lucky,keep",
    "lbfgs,batches,bf16,fork,best",
)


@dataclass
class Totals:
    """What was done, and what went wrong.

    Attributes:
        kills: processes that were killed.
        resumes: processes that went on after a kill or a corruption.
        lost: runs that did not end as an uninterrupted one, or had to do too much again.
        corruptions: checkpoints that were damaged.
        undetected: damaged ones that were opened, or resumed from.
        begun: when all began, in seconds.
    """

    kills: int = 0
    resumes: int = 0
    lost: int = 0
    corruptions: int = 0
    undetected: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def is_bad(self) -> bool:
        """Whether anything went wrong."""
        return self.lost > 0 or self.undetected > 0

    def text(self) -> str:
        """All in one line."""
        return (
            f"{self.kills} kills, {self.resumes} resumes, {self.lost} lost; {self.corruptions} corruptions, "
            f"{self.undetected} undetected; {time.monotonic() - self.begun:.0f} seconds"
        )


class UndetectedError(AssertionError):
    """A damaged checkpoint was taken for a whole one."""


class Soak:
    """The work, which any number of threads share.

    Args:
        folder: where the runs are made.
        kills: how many processes to kill.
        corruptions: how many checkpoints to damage.
        seed: of all choices.
        only: "kill" or "corruption", and its number, to do just that one again. Default None.

    Attributes:
        totals: what was done so far.
    """

    def __init__(
        self, folder: Path, kills: int, corruptions: int, seed: int, *, only: tuple[str, int] | None = None
    ) -> None:
        self._folder, self._seed = folder, seed
        self._wanted = {"kill": kills, "corruption": corruptions}
        self._only = None if only is None else [only]
        self._next = {"kill": 0, "corruption": 0}
        self._lock = threading.Lock()
        self._told_at = time.monotonic()
        self.totals = Totals()

    def work(self) -> None:
        """Take one run after the other until there is no more to do."""
        name = f"worker-{threading.get_ident()}"
        folder = self._folder / name
        folder.mkdir()
        with serving("tests.training.exact_program", folder) as server:
            ways = {
                "kill": partial(self._killed, server),
                "corruption": partial(self._corrupted, Corruptions(server, folder)),
            }
            while (chosen := self._choose()) is not None:
                kind, number = chosen
                here = folder / f"{kind}-{number}"
                self._attempt(kind, number, partial(ways[kind], here, random.Random(f"{self._seed}:{kind}:{number}")))
                shutil.rmtree(here, ignore_errors=True)

    def _choose(self) -> tuple[str, int] | None:
        """What to do next: the two kinds in turn, as long as more of them are wanted."""
        with self._lock:
            if self._only is not None:
                return self._only.pop() if self._only else None
            done = {"kill": self.totals.kills, "corruption": self._next["corruption"]}
            left = {kind: self._wanted[kind] - done[kind] for kind in done if done[kind] < self._wanted[kind]}
            if not left or self.totals.lost + self.totals.undetected >= _ENOUGH_FAILURES:
                return None
            kind = max(left, key=lambda kind: left[kind] / self._wanted[kind])
            self._next[kind] += 1
            return kind, self._next[kind] - 1

    def _attempt(self, kind: str, number: int, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:
            with self._lock:
                if isinstance(error, UndetectedError):
                    self.totals.undetected += 1
                else:
                    self.totals.lost += 1
                traceback.print_exc()
                print(f"again: python -m tests.soak --seed {self._seed} --only {kind}:{number}", flush=True)
        with self._lock:
            if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
                self._told_at = time.monotonic()
                print(self.totals.text(), flush=True)

    def _killed(self, server: Server, folder: Path, random_: random.Random) -> None:
        """A run of any features, killed several times anywhere."""
        features = random_features(random_)
        folder.mkdir()
        whole = Whole(server, folder / "whole", features)
        run = Interrupted(server, folder / "run", whole)
        kills: list[str] = []
        for _ in range(_KILLS_OF_A_RUN):
            if random_.random() < 0.5:
                kills.append(place := random_place(random_))
                killed = run.kill_at(place)
            else:
                seconds = random_.random() * whole.seconds
                kills.append(f"after {seconds:.3f} seconds")
                killed = run.kill_after(seconds)
            with self._lock:
                self.totals.kills += killed
                self.totals.resumes += killed
            if not killed:
                break
        try:
            run.finish()
        except AssertionError as error:
            raise AssertionError(f"{features}, killed at {kills}: {error}") from error

    def _corrupted(self, corruptions: "Corruptions", folder: Path, random_: random.Random) -> None:
        """A finished run whose newest checkpoint is damaged."""
        with self._lock:
            self.totals.corruptions += 1
        corruptions.check(folder, random_)
        with self._lock:
            self.totals.resumes += 1


class Corruptions:
    """Damages the newest checkpoint of a copy of a finished run, and sees what becomes of it.

    Args:
        server: where the processes come from.
        folder: where the finished runs are made.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._finished: dict[str, Whole] = {}

    def check(self, run_dir: Path, random_: random.Random) -> None:
        """Do one damage.

        Args:
            run_dir: where to copy a run to.
            random_: Where chance comes from.

        Raises:
            UndetectedError: the checkpoint was opened, or the run went on from it.
            AssertionError: the run did not go on from the one before, or not exactly.
        """
        features = random_.choice(_CORRUPTED)
        if features not in self._finished:
            place = self._folder / f"finished-{len(self._finished)}"
            self._finished[features] = Whole(self._server, place, features)
        whole = self._finished[features]
        shutil.copytree(whole.run_dir, run_dir)
        store = open_store(run_dir / "checkpoints")
        *_, before, newest = list_checkpoints(store)
        damaged = run_dir / "checkpoints" / newest
        done = f"{features}, {corrupt(damaged, random_)}"
        try:
            Checkpoint.open_in(store, newest).close()
        except CheckpointError:
            pass
        else:
            raise UndetectedError(f"{done}: it was opened")
        process, status = self._server.run(run_dir, "--features", features, "--leave-at-once")
        assert status == 0, f"{done}: {process.stderr}"
        check_fallback(process, whole, damaged, before, done=done)
        check_series(run_dir, whole.run_dir)


def check_fallback(process: Process, whole: Whole, damaged: Path, before: str, *, done: str) -> None:
    """Whether a run named the damaged checkpoint, went on from the one before, and ended as it had before.

    Args:
        process: that of the run.
        whole: the run before the damage.
        damaged: the damaged checkpoint.
        before: the name of the one before.
        done: what was done to it.
    """
    first = int(before[len("batch-") :])
    trained = process.trained()
    if not trained:
        raise UndetectedError(f"{done}: the run took it for whole")
    assert trained == whole.batches[first:], f"{done}: the run went on from batch {trained[0]['batch']}, not {first}"
    told = [line for line in process.stderr.splitlines() if "is passed over" in line and str(damaged) in line]
    assert told and before in told[0], f"{done}: {process.stderr}"
    found, expected = process.result, whole.process.result
    # Where the damaged one still lies, the new one of its batch has another name.
    named = ("best", "last", "progress")
    differing = [part for part in expected if part not in named and found[part] != expected[part]]
    assert not differing, f"{done}: other {differing}"
    assert found["best"][0] == expected["best"][0] and found["last"].startswith(expected["last"]), f"{done}: {found}"
