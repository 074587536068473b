"""The thread of a watchdog: it tells the other ranks that this one is alive, and judges them."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from trainlab.distributed.activity import Activity, Beat
from trainlab.distributed.failure import Failure
from trainlab.distributed.store import JobStore, StoreLostError

__all__ = ["Heartbeat", "Reason"]

Reason = Literal["error", "late", "broken"]

_HURRY = 0.05  # seconds between two rounds at least, and while a thread waits for what they find
_STARTING = 5.0  # seconds in which the ranks are looked for more often
_DYING = 2.0  # seconds from the end of a process's connections to its own, at most


class Heartbeat:
    """Beats and judges until it is closed, or until it knows of a failure and has told so.

    The chief judges all ranks by their beats. The others judge the chief by its store. Each judges the processes of its
    own machine by their ids. Who finds a failure first writes it to the store, and all take it from there.

    Args:
        store: Of the job; a client of its own is made.
        rank: Of this process.
        size: Number of ranks.
        activity: What this rank is doing.
        timeout: Seconds without a sign of life after which a rank is taken for frozen.
        tell: Called once, in this thread, with the job's first failure.

    Attributes:
        failure: The job's first failure, as soon as it is known.
        left: The ranks that have ended as they should.
    """

    def __init__(
        self,
        store: JobStore,
        rank: int,
        size: int,
        activity: Activity,
        *,
        timeout: float,
        tell: Callable[[Failure], None],
    ) -> None:
        self.failure: Failure | None = None
        self.left: frozenset[int] = frozenset()
        self._rank, self._size, self._activity = rank, size, activity
        self._timeout, self._tell = timeout, tell
        self._interval = max(min(1.0, timeout / 5), _HURRY)
        self._beats: dict[int, Beat] = {}
        self._pulse = time.monotonic()
        self._heard = dict.fromkeys(range(size), self._pulse)
        self._report: tuple[Failure, Reason] | None = None
        self._wake, self._known = threading.Event(), threading.Event()
        self._left_told, self._others_know = threading.Event(), threading.Event()
        self._started, self._awaited_until = self._pulse, 0.0
        self._leaving = False
        self._stopped = threading.Event()
        self._client: JobStore | None = store.client(self._while_waiting, timeout=timeout + self._interval)
        self._thread = threading.Thread(target=self._run, name="trainlab-watchdog", daemon=True)
        self._thread.start()

    @property
    def interval(self) -> float:
        """Seconds between two beats."""
        return self._interval

    def beat_now(self) -> None:
        """Beat soon, since what this rank does has changed, and look what the chief does, which mostly changed too."""
        if self._rank != 0:
            self._awaited_until = max(self._awaited_until, time.monotonic() + 4 * _HURRY)
        self._wake.set()

    def submit(self, failure: Failure, reason: Reason = "error") -> None:
        """Report what this rank found, unless it has reported something before.

        Args:
            failure: What it is.
            reason: "late" and "broken" ask the thread to find out whose fault it was, from what the ranks are doing;
                default "error", which is told as it is.
        """
        if self._report is None:
            self._report = (failure, reason)
        self._wake.set()

    def await_failure(self, seconds: float) -> Failure | None:
        """Wait until the job's first failure is known.

        Args:
            seconds: At most.

        Returns:
            The failure; None if there is none so far.
        """
        self._await(self._known, seconds)
        return self.failure

    def await_others(self, seconds: float) -> None:
        """On the chief: wait until all others have heard of the failure, or of the chief's end. Elsewhere: return.

        Args:
            seconds: At most.
        """
        if self._rank == 0:
            self._await(self._others_know, seconds)

    def leave(self, seconds: float) -> None:
        """Tell the others that this rank ends as it should.

        Args:
            seconds: To wait at most until that is said.
        """
        self._leaving = True
        self._await(self._left_told, seconds)

    def close(self) -> None:
        """End the thread and close its connection. A second call does nothing."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _await(self, event: threading.Event, seconds: float) -> None:
        self._awaited_until = time.monotonic() + seconds
        self._wake.set()
        event.wait(seconds if self._thread.is_alive() else 0)
        self._awaited_until = 0.0

    def _is_hurried(self) -> bool:
        now, starting = time.monotonic(), len(self._beats) < self._size
        return now < self._awaited_until or (starting and now < self._started + _STARTING)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._note_pause()
                self._work()
                if self.failure is not None and self._rank != 0:
                    break
                self._stopped.wait(_HURRY)
                if not self._is_hurried():
                    self._wake.wait(self._interval - _HURRY)
                self._wake.clear()
        finally:
            self._left_told.set()
            if self._client is not None:
                self._client.close()

    def _work(self) -> None:
        try:
            failure = self._alone() if self._client is None else self._round(self._client)
        except StoreLostError as error:
            failure = self._lose(error)
        if failure is not None and self.failure is None:
            self.failure = failure
            self._known.set()
            self._tell(failure)

    def _alone(self) -> Failure | None:
        """A round without the store: what this rank says concerns only itself."""
        self._left_told.set()
        self._others_know.set()
        return None if self._report is None else self._answer(None, *self._report)

    def _round(self, client: JobStore) -> Failure | None:
        # Before the state is read: whoever is gone wrote its last words before.
        gone = {rank for rank, beat in self._beats.items() if beat.process.is_gone()}
        all_beats = self._rank == 0 or len(self._beats) < self._size
        entries = client.entries("state/", "beat/" if all_beats else "beat/0")
        self.left = frozenset(int(rank) for rank in entries.get("state/left", b"").split())
        self._hear(entries)
        told = entries.get("state/failure")
        failure = Failure.from_json(told) if told else self._judge(client, gone - self.left)
        if failure is not None and told is None:
            failure = Failure.from_json(client.compare_set("state/failure", failure.to_json()))
        knows = ["failure"] * (failure is not None) + ["end"] * (0 in self.left)
        client.set(f"beat/{self._rank}", self._activity.beat(knows).to_json())
        self._note_leaving(client, gone, failure)
        return failure

    def _hear(self, entries: dict[str, bytes]) -> None:
        now = time.monotonic()
        for key, content in entries.items():
            if key.startswith("beat/"):
                rank, beat = int(key.removeprefix("beat/")), Beat.from_json(content)
                if rank not in self._beats or self._beats[rank].count != beat.count:
                    self._heard[rank] = now
                self._beats[rank] = beat

    def _note_leaving(self, client: JobStore, gone: set[int], failure: Failure | None) -> None:
        if self._leaving and not self._left_told.is_set():
            client.append("state/left", b"%d " % self._rank)
            self._left_told.set()
        deaf = set() if failure is None or failure.kind not in ("killed", "frozen") else {failure.rank}
        others = set(range(self._size)) - {self._rank} - self.left - gone - deaf
        news = "end" if failure is None else "failure"
        if all(rank in self._beats and news in self._beats[rank].knows for rank in others):
            self._others_know.set()
        else:
            self._others_know.clear()

    def _judge(self, client: JobStore, gone: set[int]) -> Failure | None:
        if self._report is not None:
            return self._answer(client, *self._report)
        for rank in sorted(gone):
            content = client.get(f"beat/{rank}")
            if content is not None:
                self._beats[rank] = Beat.from_json(content)
            return self._died(rank)
        if self._rank == 0:
            for rank in sorted(set(range(1, self._size)) - self.left):
                if time.monotonic() - self._heard[rank] > self._timeout:
                    return self._froze(rank)
        return None

    def _answer(self, client: JobStore | None, failure: Failure, reason: Reason) -> Failure:
        """Whose fault was it that this rank waited in vain, or that its connection broke?"""
        if reason == "error":
            return failure
        if client is not None:
            self._hear(client.entries("beat/"))
        self._beats[self._rank] = self._activity.beat([])
        silent = [rank for rank, beat in self._beats.items() if beat.age > 3 * self._interval and rank not in self.left]
        if reason == "broken" and silent and client is not None:
            longest = max(silent, key=lambda rank: self._beats[rank].age)
            age = self._beats[longest].age
            return self._died(longest, f"its connections are closed, and it gave no sign of life for {age:.0f} s")
        if reason == "broken" and self.left:
            rank = min(self.left)
            message = f"it had nothing more to do, and others still waited for it ({self._table()})"
            return replace(self._last_seen(rank), kind="ended", message=message)
        advice = ". All ranks have to make the same calls; timeout and TRAINLAB_TIMEOUT give a slow one more time"
        return replace(failure, message=f"{failure.message}; {self._table()}{advice if reason == 'late' else ''}")

    def _table(self) -> str:
        lines = []
        for rank in range(self._size):
            if rank in self.left:
                lines.append(f"rank {rank}: has ended")
            elif (beat := self._beats.get(rank)) is None:
                lines.append(f"rank {rank}: not heard of yet")
            else:
                late = f", not heard of for {beat.age:.0f} s" if beat.age > 3 * self._interval else ""
                lines.append(f"rank {rank}: {beat.describe()}{late}")
        return "; ".join(lines)

    def _lose(self, error: StoreLostError) -> Failure | None:
        """The store is gone: unless the chief has said why, the chief is."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._stopped.is_set() or 0 in self.left:
            return None
        if self._report is not None:
            return self._report[0]
        if error.silent:
            return self._froze(0)
        end = time.monotonic() + _DYING
        while 0 in self._beats and not self._beats[0].process.is_gone() and time.monotonic() < end:
            if not self._beats[0].process.near:
                break
            self._wake.wait(_HURRY)
        gone = 0 in self._beats and self._beats[0].process.is_gone()
        return self._died(0, "" if gone else f"its store is gone ({error})")

    def _died(self, rank: int, message: str = "") -> Failure:
        if not message:
            message = (
                f"its process (id {self._beats[rank].process.pid}) is gone: killed, by the system perhaps for want of "
                "memory, or ended without a word"
            )
        return replace(self._last_seen(rank), kind="killed", message=message)

    def _froze(self, rank: int) -> Failure:
        message = (
            f"it gave no sign of life for {self._timeout:g} s, so it is frozen, or its host or network is gone "
            "(heartbeat_timeout and TRAINLAB_HEARTBEAT_TIMEOUT set the limit)"
        )
        return replace(self._last_seen(rank), kind="frozen", message=message)

    def _last_seen(self, rank: int) -> Failure:
        beat = self._beats.get(rank)
        phase, batch = (beat.phase, beat.batch) if beat else ("start", None)
        return Failure(rank, "error", phase, batch, "")

    def _while_waiting(self) -> None:
        self._note_pause()
        if self._stopped.is_set():
            raise StoreLostError("This rank has closed its connection.")
        if self._rank != 0 and 0 in self._beats and self._beats[0].process.is_gone():
            raise StoreLostError("The process of rank 0 is gone.")

    def _note_pause(self) -> None:
        """A process that stood still itself must not judge the others by the time that it missed."""
        now = time.monotonic()
        pause, self._pulse = now - self._pulse, now
        if pause > 3 * self._interval:
            self._heard = dict.fromkeys(range(self._size), now)
        if pause > self._timeout:
            phase, batch = self._activity.now
            message = f"it stood still for {pause:.0f} s, and the limit of the others is {self._timeout:g} s"
            self.submit(Failure(self._rank, "frozen", phase, batch, message))
