"""The states of a data set's copies in workers: sent with each batch, put back at a resume."""

import logging
import pickle
from collections.abc import Mapping
from typing import Any

from trainlab.data.order import has_state
from trainlab.data.workers import RestoreRequest, Worked

__all__ = ["WorkerStates", "tell_of_other_workers"]

_logger = logging.getLogger("trainlab.data")


class WorkerStates:
    """What each worker's copy of a data set with a state said after its last batch that was given.

    Requests go to the workers in turn, so that a resume also has to begin with the worker whose turn it was.

    Args:
        loader: the ``trainlab.DataLoader``; nothing is kept where its data set has no state, or no workers.
    """

    def __init__(self, loader: Any) -> None:
        self._dataset = loader.dataset
        self._workers = loader.num_workers
        self._keep = bool(loader.persistent_workers)
        self.kept = bool(self._workers) and has_state(loader.dataset)
        # Pickled by the workers, and read only for a checkpoint.
        self._latest: list[bytes | None] = [None] * self._workers
        self._answers = 0

    def begin(self, batches: int, passing: int, state: Mapping[str, Any] | None) -> list[RestoreRequest]:
        """Begin a pass.

        Args:
            batches: how many of this pass were given before.
            passing: number of the pass, for an iterable data set.
            state: what ``state_dict`` gave there.

        Returns:
            What to ask the workers first; nothing if no state is to be put back. The answers are of no interest.
        """
        if not self.kept:
            return []
        self._answers = 0
        saved = self._saved(state) if batches or self._keep else None
        if saved is None:
            self._latest = [_of_earlier_pass(one) if self._keep else None for one in self._latest]
            return []
        self._latest = [None if one is None else pickle.dumps(one) for one in saved["states"]]
        if batches:
            self._answers = saved["turn"]
        else:
            self._latest = [_of_earlier_pass(one) for one in self._latest]
        turns = [RestoreRequest(None, passing)] * self._answers
        return [RestoreRequest(one, passing) for one in self._latest] + turns

    def note(self, answer: Worked) -> None:
        """Take in an answer, in order, right before its batch is given."""
        if self.kept:
            self._answers = (self._answers + 1) % self._workers
            if answer.state is not None:
                self._latest[answer.worker_id] = answer.state

    def state_dict(self) -> dict[str, Any]:
        """Return the states as plain data; ``{}`` if none are kept."""
        if not self.kept:
            return {}
        states = [None if one is None else pickle.loads(one) for one in self._latest]
        return {"workers": {"turn": self._answers, "states": states}}

    def _saved(self, state: Mapping[str, Any] | None) -> Any:
        saved = (state or {}).get("workers")
        if saved is not None and len(saved["states"]) == self._workers:
            return saved
        tell_of_other_workers(self._dataset, state, self._workers)
        return None


def tell_of_other_workers(dataset: Any, state: Mapping[str, Any] | None, workers: int) -> None:
    """Warn if a data set's state was saved with another number of workers, and cannot be put back."""
    saved = (state or {}).get("workers")
    if saved is None and (not workers or "dataset" not in (state or {})):
        return
    _logger.warning(
        "The state of %s was saved with num_workers=%d, and with num_workers=%d it cannot be put back: the run is not "
        "resumed exactly. Pass the same number.",
        type(dataset).__name__,
        0 if saved is None else len(saved["states"]),
        workers,
    )


def _of_earlier_pass(state: bytes | None) -> bytes | None:
    if state is None:
        return None
    return pickle.dumps({**pickle.loads(state), "batches": 0, "ended": False, "anew": True})
