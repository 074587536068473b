"""What went wrong first in an attempt, and whether to try again."""

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import LaunchError, RankFailedError
from trainlab.launch.platform import Platform
from trainlab.runs.ending import name_of_signal

if TYPE_CHECKING:
    from trainlab.distributed import Failure

__all__ = ["FirstFailure", "History"]

# Signals by which a program ends itself: a crash of its own. Others come from outside.
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_STOPS = {128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)}
_ADDRESS = re.compile(r"0x[0-9a-f]+|\b\d{4,}\b")


@dataclass(frozen=True)
class FirstFailure:
    """The first cause of an attempt's end.

    Args:
        rank: which rank; -1 where none had been started.
        exitcode: of its process; -n for signal n, None where it is not known.
        headline: one sentence for a person.
        traceback: of its error, "" where there is none.
        is_error: whether it is an error that the program raised.
        is_final: whether it would come again for certain.
        signature: equal for two failures that are the same at the same place; None for bad luck.
    """

    rank: int
    exitcode: int | None
    headline: str
    traceback: str
    is_error: bool
    signature: tuple[Any, ...] | None
    is_final: bool = False

    @property
    def stopped_by(self) -> int | None:
        """The signal that a run was stopped by in good order, None if it was not."""
        return self.exitcode - 128 if self.exitcode in _STOPS else None

    @classmethod
    def of(cls, notes: Path, exitcodes: Mapping[int, int], size: int) -> "FirstFailure":
        """Find it in what the ranks of this node noted.

        Args:
            notes: the folder of the attempt's notes.
            exitcodes: of the ranks of this node that did not end well, by rank.
            size: number of ranks.

        Returns:
            The cause that the ranks agree on, if they knew of each other; else the first error that one raised; else
            how one of them ended.
        """
        stops = {code for code in exitcodes.values() if code in _STOPS}
        if stops and all(code in _STOPS or code == -signal.SIGTERM for code in exitcodes.values()):
            code = min(stops)
            return cls(min(exitcodes), code, f"stopped by {signal.Signals(code - 128).name}", "", False, None)
        known = _read(notes, "failure")
        if known:
            from trainlab.distributed import Failure  # which loads torch

            failure = Failure(**known[0])
            exitcode = exitcodes.get(failure.rank)
            return cls._agreed(failure, exitcode, _resumed(notes), size)
        raised = sorted(_read(notes, "error"), key=lambda error: float(error["at"]))
        if raised:
            first = raised[0]
            return cls(
                first["rank"],
                _own_exit(exitcodes.get(first["rank"])),
                f"Rank {first['rank']} of {size} failed: {first['message']}",
                first["traceback"],
                True,
                (_plain(first["message"]),),
                bool(first.get("is_of_launch")),
            )
        # Those that were ended for another's sake have got SIGTERM, and may have ended in good order.
        ended = _STOPS | {-signal.SIGTERM}
        rank = next((rank for rank, code in exitcodes.items() if code not in ended), min(exitcodes, default=-1))
        exitcode = exitcodes.get(rank)
        return cls(
            rank,
            exitcode,
            f"Rank {rank} of {size} {_ending(exitcode)}",
            "",
            exitcode is not None and exitcode > 0,
            _of_exit(rank, exitcode, _resumed(notes)),
        )

    @classmethod
    def _agreed(cls, failure: "Failure", exitcode: int | None, resumed: int | None, size: int) -> "FirstFailure":
        is_error = failure.kind in {"error", "ended"}
        if is_error:
            exitcode = _own_exit(exitcode)
        elif failure.kind == "killed" and exitcode is not None:  # the agent has seen how
            failure = replace(failure, message=_ending(exitcode).removesuffix("."))
            is_error = exitcode > 0
        signature: tuple[Any, ...] | None
        if failure.kind in {"error", "ended"}:
            signature = (_plain(failure.message), failure.phase, failure.batch)
        elif exitcode is not None:
            signature = _of_exit(failure.rank, exitcode, resumed)
        else:
            crash = next((number for number in _CRASHES if number.name in failure.message), None)
            signature = None if crash is None else (failure.rank, crash, resumed)
        return cls(failure.rank, exitcode, failure.headline(size), failure.traceback, is_error, signature)


class History:
    """The failures of a launch, and what follows from them.

    Args:
        platform: how often to try again.
    """

    def __init__(self, platform: Platform) -> None:
        self._most = platform.max_restarts
        self._failures: list[FirstFailure] = []
        self._has_trained = False

    @property
    def restarts(self) -> int:
        """How often the ranks were started again."""
        return len(self._failures)

    def add(self, failure: FirstFailure, notes: Path) -> None:
        """Note a failure after which the ranks may be started again.

        Args:
            failure: the first cause.
            notes: the folder of the attempt's notes.

        Raises:
            RankFailedError: they may not: it is no bad luck, or there was too much of it.
        """
        self._has_trained |= any(notes.glob("*.trained.json"))
        self._failures.append(failure)
        last = self._failures[-3:]
        if failure.signature is not None and [one.signature for one in last] == [failure.signature] * 3:
            raise _error(
                failure, "The same happened three times in a row, at the same place: starting again is no use."
            )
        if failure.is_final or (failure.is_error and not self._has_trained):
            raise _error(failure, "")
        if len(self._failures) > self._most:
            often = f"The ranks had been started again {self._most} times (max_restarts)." if self._most else ""
            raise _error(failure, often)


def _error(failure: FirstFailure, why: str) -> RankFailedError:
    message = f"{failure.headline.removesuffix('.')}. {why}".rstrip()
    return RankFailedError(
        f"{message}\n\n{failure.traceback}".rstrip(),
        rank=failure.rank,
        exitcode=failure.exitcode,
        traceback=failure.traceback,
    )


def _read(notes: Path, name: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted(notes.glob(f"*.{name}.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise LaunchError(f"A rank's note cannot be read: {path}: {error}") from error
    return found


def _resumed(notes: Path) -> int | None:
    return max((note["batch"] for note in _read(notes, "resumed")), default=None)


def _of_exit(rank: int, exitcode: int | None, resumed: int | None) -> tuple[Any, ...] | None:
    """An end is the same one if no checkpoint was gained since; who is killed from outside had bad luck."""
    if exitcode is None or (exitcode <= 0 and -exitcode not in _CRASHES):
        return None
    return rank, exitcode, resumed


def _own_exit(exitcode: int | None) -> int:
    """The status of a rank that raised an error; the agent may have ended it before it could end itself."""
    return 1 if exitcode is None or exitcode == -signal.SIGTERM or exitcode in _STOPS else exitcode


def _plain(message: str) -> str:
    """A message without what differs from process to process: addresses, process ids."""
    return _ADDRESS.sub("…", message)


def _ending(exitcode: int | None) -> str:
    if exitcode is None:
        return "did not end as it should."
    if exitcode >= 0:
        return f"ended with status {exitcode}."
    hint = " (the system kills with it what takes too much memory)" if exitcode == -signal.SIGKILL else ""
    return f"was killed by {name_of_signal(-exitcode)}{hint}."
