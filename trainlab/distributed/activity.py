"""What a rank is doing, as it tells itself and the others."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from trainlab.runs.processes import Process, this_process

__all__ = ["Activity", "Beat"]


@dataclass(frozen=True)
class Beat:
    """A sign of life of a rank.

    Args:
        count: How many there were before.
        phase: What it is doing, such as "train".
        batch: At which batch; None where there is none.
        phase_seconds: For how long, as far as beats tell.
        waits: What its threads wait for, or did until an error came: what, where, for how many
            seconds.
        process: Its process.
        knows: What of the job's end it has heard: "failure", "end".
        at: When this was written, in seconds since the epoch by its own clock.
    """

    count: int
    phase: str
    batch: int | None
    phase_seconds: float
    waits: list[tuple[str, str | None, float]]
    process: Process
    knows: list[str] = field(default_factory=list)
    at: float = field(default_factory=time.time)

    @property
    def age(self) -> float:
        """Seconds since it was written, as far as the clocks of the hosts agree."""
        return max(time.time() - self.at, 0.0)

    def describe(self) -> str:
        """What the rank is doing, for a person.

        Returns:
            Such as "in train at batch 7 for 12 s, waiting in allgather (my.py:12) for 30 s".
        """
        batch = "" if self.batch is None else f" at batch {self.batch}"
        parts = [f"in {self.phase}{batch} for {self.phase_seconds + self.age:.0f} s"]
        for what, caller, seconds in self.waits:
            place = "" if caller is None else f" ({caller})"
            parts.append(f"waiting in {what}{place} for {seconds + self.age:.0f} s")
        return ", ".join(parts)

    def to_json(self) -> bytes:
        """The beat as it goes through the store.

        Returns:
            JSON.
        """
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Beat":
        """The beat that ``to_json`` wrote.

        Args:
            content: JSON.

        Returns:
            An equal beat.
        """
        fields = json.loads(content)
        waits = [(what, caller, seconds) for what, caller, seconds in fields.pop("waits")]
        return cls(waits=waits, process=Process(**fields.pop("process")), **fields)


class Activity:
    """What this rank is doing: written by its threads at next to no cost, read once for each beat."""

    def __init__(self) -> None:
        self.now: tuple[str, int | None] = ("start", None)
        self._seen: tuple[str, int | None] = self.now
        self._since = time.monotonic()
        self._waits: dict[int, tuple[str, str | None, float]] = {}
        self._given_up: dict[int, tuple[str, str | None, float]] = {}
        self._count = 0
        self._process = this_process()

    @contextmanager
    def waiting(self, what: str, caller: str | None) -> Iterator[None]:
        """The calling thread waits for other ranks during the block.

        Args:
            what: In which call.
            caller: The line that made it.

        Yields:
            None.
        """
        thread = threading.get_ident()
        outer = self._waits.get(thread)
        self._given_up.pop(thread, None)
        self._waits[thread] = wait = (what, caller, time.monotonic())
        try:
            yield
        except BaseException:
            self._given_up[thread] = wait
            raise
        finally:
            if outer is None:
                del self._waits[thread]
            else:
                self._waits[thread] = outer

    def beat(self, knows: list[str]) -> Beat:
        """A sign of life.

        Args:
            knows: What this rank has heard of the job's end.

        Returns:
            The beat.
        """
        now = time.monotonic()
        if self.now is not self._seen:
            self._seen, self._since = self.now, now
        phase, batch = self._seen
        self._count += 1
        waits = {**self._given_up, **self._waits}
        since = [(what, caller, now - start) for what, caller, start in waits.values()]
        return Beat(self._count, phase, batch, now - self._since, since, self._process, knows)
