"""Epochs of ``len(loader)`` batches, cut from passes over a loader that may be longer or shorter."""

from collections.abc import Generator, Mapping
from typing import Any

from trainlab.data.share import NOTHING, Part
from trainlab.data.sources import Source

__all__ = ["CutSource"]


class CutSource:
    """One iterator that goes on over the epochs, and is begun anew only when it ends.

    Args:
        source: where the batches come from.
        length: batches of an epoch; None for one epoch without an end.
    """

    def __init__(self, source: Source, length: int | None) -> None:
        self.length = length
        self.exact = length is not None
        self.fetches_here = source.fetches_here
        self._source = source
        self._running: Generator[Any, None, None] | None = None
        self._epoch = 0
        self._given = 0
        self._pass = 0
        # What the pass had given when the epoch began; below 0 once a pass has ended in the epoch.
        self._batches_before = 0
        self._records_before = 0

    @property
    def records(self) -> int:
        """Global records given since the epoch's beginning."""
        return self._source.records - self._records_before

    @property
    def part(self) -> Part | None:
        """What the batch given last was to this rank."""
        return self._source.part

    @property
    def total(self) -> int | None:
        """Batches of an epoch."""
        return self.length

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position; right after the epoch before, the iterator goes on."""
        epoch = epoch or 0
        if state is not None and "pass" in state:
            self._begin(state["pass"], state["pass_records"], state["pass_batches"], state["source"])
            self._records_before = state["pass_records"] - records
            self._batches_before = state["pass_batches"] - batches
        elif self._running is None or batches or epoch != self._epoch + 1 or self._given != self.length:
            self._begin(epoch, records, batches, None)
            self._records_before = self._batches_before = 0
        else:
            self._batches_before += self._given
            self._records_before = self._source.records
            self._epoch, self._given = epoch, 0
            return self._until_the_cut()
        self._epoch, self._given = epoch, batches
        return self._until_the_cut()

    def more(self) -> bool | None:
        """An epoch without a length has no end."""
        return True if self.length is None else None

    def first_batch(self) -> Any:
        """No whole batches are dealt out."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return which pass is under way, how far it is, and what the source says."""
        return {
            "pass": self._pass,
            "pass_records": self._source.records,
            "pass_batches": self._batches_before + self._given,
            "source": self._source.state_dict(),
        }

    def close(self) -> None:
        """End the workers."""
        self._end_pass()
        self._source.close()

    def _begin(
        self, number: int, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        self._end_pass()
        self._pass = number
        self._running = self._source.batches(number, records, batches, state)
        return self._running

    def _end_pass(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def _until_the_cut(self) -> Generator[Any, None, None]:
        # More than its length where the run had fewer ranks, and so more batches, before.
        while self.length is None or self._given < self.length:
            batch = NOTHING if self._running is None else next(self._running, NOTHING)
            if batch is NOTHING:
                given_of_pass = self._source.records
                running = self._begin(self._pass + 1, 0, 0, None)
                self._batches_before, self._records_before = -self._given, self._records_before - given_of_pass
                batch = next(running, NOTHING)
                if batch is NOTHING:
                    return  # the loader is empty
            self._given += 1
            yield batch
