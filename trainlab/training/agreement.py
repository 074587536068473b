"""Agreement: what several ranks have to see alike, and when they compare notes."""

import time
from collections.abc import Mapping
from typing import Any

from trainlab.errors import DisagreementError, PeerFailedError
from trainlab.runs.current import current_run
from trainlab.training.context import TrialContext

__all__ = ["Agreement", "check_given", "disagreement"]

_AIM_SECONDS = 1.0
_MOST_BATCHES = 10_000


class Agreement:
    """Lets all ranks stop at the same batch, and take note of a durable checkpoint at the same batch.

    One small reduction an agreement point: at each boundary, and every so many batches between, a number that the
    chief chose at the point before, aiming at one second.

    Args:
        context: the run's context.

    Attributes:
        stops_at_once: whether there is nobody to agree with.
        next_batch: the number of batches trained at which the next point is; None for a single process, which need
            not agree with anyone.
        signal: the number of the signal that asked for the stop, of whichever rank; 0 if none did.
        is_pruned: whether a search ends the run.
    """

    def __init__(self, context: TrialContext) -> None:
        self._context = context
        self._exchange = context.distributed.exchange
        self.stops_at_once = context.stops_at_once
        self._since = (time.monotonic(), context.progress.batches_trained)
        self.next_batch: int | None = None if self.stops_at_once else context.progress.batches_trained + 1
        self.signal = 0
        self.is_pruned = False

    def reach(self, *, received: int, is_settled: bool, is_pruned: bool = False) -> bool:
        """Agree, at the same batch on every rank. A stop in the middle of an accumulation may have to wait for its end.

        Args:
            received: the signal that this rank got, 0 for none.
            is_settled: whether a checkpoint that is being written is done, as this rank sees it.
            is_pruned: whether the search ends the run, as the chief was told. Default False.

        Returns:
            Whether all ranks see it so; never for a single process, which need not ask.

        Raises:
            DisagreementError: a rank has drawn another number of the run's seeds than rank 0.
        """
        if self.stops_at_once:
            self.signal, self.is_pruned = received, is_pruned
            return False
        context, seeds = self._context, _seeds_drawn()
        stop, batches, unsettled, self.signal, pruned, most_seeds, least_seeds = self._exchange.maximum(
            [int(context.stop_asked), self._pace(), int(not is_settled), received, int(is_pruned), seeds, -seeds]
        )
        self.is_pruned = bool(pruned)
        if most_seeds != -least_seeds:
            raise self._other_seeds(seeds)
        context.distributed.phase("train", context.progress.batches_trained)
        left = context.batches_left_in_group()
        context.stop_requested = bool(stop) and not left
        self.next_batch = context.progress.batches_trained + (left if stop and left else batches)
        return not unsettled

    def until(self, boundary: int | None) -> int | None:
        """Give the batch up to which may be trained without a look around.

        Args:
            boundary: the next boundary, None if it cannot be foreseen.

        Returns:
            The boundary, or the next point if that comes before.
        """
        if boundary is None or self.next_batch is None:
            return self.next_batch if boundary is None else boundary
        return min(boundary, self.next_batch)

    def _other_seeds(self, drawn: int) -> DisagreementError:
        """The error of ranks of which one has drawn a seed more; told by the first that differs from rank 0."""
        of_ranks: list[int] = self._context.distributed.allgather(drawn)
        rank, other = next((rank, count) for rank, count in enumerate(of_ranks) if count != of_ranks[0])
        error = DisagreementError(
            f"The ranks have not drawn the same seeds. Received: {other} calls of new_seed on rank {rank}, "
            f"{of_ranks[0]} on rank 0, up to batch {self._context.progress.batches_trained}. Call new_seed on all "
            "ranks alike, not under a condition that differs between them."
        )
        if rank != self._context.distributed.rank:
            error.__cause__ = PeerFailedError(str(error))
        return error

    def _pace(self) -> int:
        """How many batches the chief takes a second; 0 on other ranks, whose clocks do not count."""
        now, batch = time.monotonic(), self._context.progress.batches_trained
        since, before = self._since
        self._since = now, batch
        if not self._context.distributed.is_chief:
            return 0
        rate = (batch - before) / max(now - since, 1e-6)
        return max(1, min(int(rate * _AIM_SECONDS), _MOST_BATCHES))


def _seeds_drawn() -> int:
    run = current_run()
    return 0 if run is None else run.seeds.count


def check_given(mine: Mapping[str, Any], of_chief: Mapping[str, Any], rank: int) -> None:
    """See that this rank was given what the chief was, before anything that only some ranks may have a part in.

    Args:
        mine: what this rank was given, by name.
        of_chief: what the chief was given.
        rank: this rank.

    Raises:
        DisagreementError: they differ.
    """
    for what, first in of_chief.items():
        if mine[what] != first:
            raise disagreement(what, rank, repr(mine[what]), repr(first))


def disagreement(what: str, rank: int, mine: Any, of_chief: Any) -> DisagreementError:
    """The error that tells that a rank was given something else than the chief.

    Args:
        what: what it is.
        rank: the rank.
        mine: what it was given.
        of_chief: what the chief was given.

    Returns:
        The error.
    """
    return DisagreementError(
        f"The ranks of a run must be given the same, and rank {rank} is not given what rank 0 is. They differ in: "
        f"{what}. Received: {mine} on rank {rank}, {of_chief} on rank 0. Make it depend on nothing that differs "
        "between processes (time, host, rank, an unseeded random number)."
    )
