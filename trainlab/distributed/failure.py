"""What went wrong first in a job of several ranks, and which errors only follow from that."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainlab.distributed.store import StoreLostError
from trainlab.errors import PeerFailedError
from trainlab.runs.traceback_text import told_message, told_traceback

__all__ = ["Failure", "Kind", "is_consequence", "is_timeout"]

Kind = Literal["error", "killed", "frozen", "timeout", "ended"]

# Words of gloo's, NCCL's and torch's own errors that tell of a peer that is gone or does not answer. Their other errors
# (sizes that differ, two ranks on one GPU) are causes.
_ORIGIN = re.compile(r"gloo|nccl|monitoredBarrier|c10d|tcpstore|socket", re.IGNORECASE)
_LATE = re.compile(r"timed out|timeout|failed to pass monitoredBarrier in", re.IGNORECASE)
_BROKEN = re.compile(
    r"connection (was |is )?(closed|reset|refused|aborted|likely closed)|broken pipe|read error|write error"
    r"|remote process exited|network error|communicator was aborted|failed to recv|connectFullMesh",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """The first cause, as all ranks know it.

    Args:
        rank: The rank that failed; for a "timeout" the one that found it.
        kind: "error", "killed", "frozen", "timeout" or "ended".
        phase: What it was doing, such as "train".
        batch: At which batch; None where there is none.
        message: What happened to it.
        traceback: Of its error; "" where there is none.
    """

    rank: int
    kind: Kind
    phase: str
    batch: int | None
    message: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, rank: int, phase: str, batch: int | None) -> "Failure":
        """An error of this rank's own.

        Args:
            error: What was raised.
            rank: This rank.
            phase: What it was doing.
            batch: At which batch.

        Returns:
            A failure of the kind "error".
        """
        return cls(rank, "error", phase, batch, told_message(error), told_traceback(error))

    def headline(self, size: int) -> str:
        """One sentence for a person.

        Args:
            size: The number of ranks.

        Returns:
            Such as "Rank 1 of 4 failed in train at batch 12: ValueError: boom".
        """
        verb = {"error": "failed", "killed": "died", "frozen": "froze", "timeout": "waited in vain", "ended": "ended"}
        where = f"in {self.phase}" + ("" if self.batch is None else f" at batch {self.batch}")
        message = self.message
        if "Traceback (most recent call last)" in message:  # as that of an error in a worker of a loader
            first, *_, last = message.strip().splitlines()
            message = f"{first} […] {last}"
        return f"Rank {self.rank} of {size} {verb[self.kind]} {where}: {message}"

    def to_json(self) -> bytes:
        """The failure as it goes through the store.

        Returns:
            JSON.
        """
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Failure":
        """The failure that ``to_json`` wrote.

        Args:
            content: JSON.

        Returns:
            An equal failure.
        """
        return cls(**json.loads(content))


def is_consequence(error: BaseException) -> bool:
    """Does an error only tell that another rank is gone or does not answer?

    Args:
        error: What was raised, perhaps while such an error was handled.

    Returns:
        True for errors of a connection to another rank and for waits that took too long.
    """
    return any(_follows(link) for link in _chain(error))


def is_timeout(error: BaseException) -> bool:
    """Was it that nobody answered in time, with all connections whole?

    Args:
        error: One that ``is_consequence``.

    Returns:
        False where a connection is broken.
    """
    return all(_is_late(link) for link in _chain(error) if _follows(link))


def _is_late(error: BaseException) -> bool:
    return error.silent if isinstance(error, StoreLostError) else not _BROKEN.search(str(error))


def _follows(error: BaseException) -> bool:
    if isinstance(error, (PeerFailedError, StoreLostError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    known = _ORIGIN.search(text) or _is_of_torch(error)
    return bool(known and (_LATE.search(text) or _BROKEN.search(text)))


def _is_of_torch(error: Any) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError)


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain
