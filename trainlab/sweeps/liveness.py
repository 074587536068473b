"""Which searchers live: each writes a record that counts on into the search's storage, and reads those of the others.

Optuna's own heartbeat lives only inside ``optimize``, and only in its relational storages. A trial's process ends with
its searcher, so that one record a searcher is enough.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainlab.runs.processes import Process, this_process

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["Heartbeat", "Watch"]

logger = logging.getLogger("trainlab.sweeps")

_PREFIX = "trainlab:searcher:"
BEAT_SECONDS = 5.0
# Of the watcher's clock; several beats may fail on a storage that is busy, or restarts.
SILENT_SECONDS = 60.0


class Heartbeat:
    """Writes every few seconds that this searcher lives, from a thread, until the end of its ``with`` block.

    Args:
        storage: the search's.
        study_id: the study there.

    Attributes:
        token: what the searcher is known by.
    """

    def __init__(self, storage: "BaseStorage", study_id: int) -> None:
        self.token = secrets.token_hex(8)
        self._storage, self._study_id = storage, study_id
        self._process = this_process()
        self._count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="trainlab-searcher", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._try_to_beat(has_ended=True)

    def _beat_on(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._try_to_beat()

    def _try_to_beat(self, *, has_ended: bool = False) -> None:
        try:
            self._beat(has_ended=has_ended)
        except Exception as error:  # of any storage's driver; the next beat, or what the searcher asks itself, tells
            logger.warning("This searcher could not write that it lives: %s: %s.", type(error).__name__, error)

    def _beat(self, *, has_ended: bool = False) -> None:
        self._count += 1
        record: dict[str, Any] = {
            "host": self._process.host,
            "pid": self._process.pid,
            "started": self._process.started,
            "count": self._count,
            "has_ended": has_ended,
        }
        self._storage.set_study_system_attr(self._study_id, _PREFIX + self.token, record)


class Watch:
    """Tells which searchers are dead, as this process sees it.

    A searcher of this machine is dead as soon as its process is gone; another one once its record has not changed for
    so long. No two machines' clocks are compared.

    Args:
        storage: the search's.
        study_id: the study there.
        clock: gives seconds. Default: a clock of this machine that is never set.
    """

    def __init__(self, storage: "BaseStorage", study_id: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage, self._study_id, self._clock = storage, study_id, clock
        self._seen: dict[str, tuple[int, float]] = {}
        self._records: Mapping[str, Any] = {}

    def look(self) -> None:
        """Read the records anew."""
        self._records = self._storage.get_study_system_attrs(self._study_id)

    def is_dead(self, token: str | None) -> bool:
        """Tell whether a searcher is dead, by the records that ``look`` has read.

        Args:
            token: what it is known by; None for one that left no name.

        Returns:
            Whether nobody works on its trials any more.
        """
        record = self._records.get(f"{_PREFIX}{token}", {})
        if record.get("has_ended"):
            return True
        process = Process(record.get("host", ""), record.get("pid", 0), record.get("started", 0))
        if process.near:
            return process.is_gone()
        count, now = record.get("count", 0), self._clock()
        before, since = self._seen.get(str(token), (None, now))
        if count != before:
            since = now
        self._seen[str(token)] = (count, since)
        return now - since >= SILENT_SECONDS
