"""What the ranks tell each other of their metrics: one exchange, and an error of one is an error of all."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from trainlab.errors import MetricError, PeerFailedError

if TYPE_CHECKING:
    from trainlab.distributed.exchange import Exchange

__all__ = ["allgather_made", "check_same_names"]

T = TypeVar("T")


def allgather_made(exchange: "Exchange", make: Callable[[], T]) -> list[T]:
    """Give every rank what each of them makes.

    A rank that fails to make its part still takes part in the exchange, so that no other waits for it.

    Args:
        exchange: the ranks' exchange.
        make: makes this rank's part.

    Returns:
        The parts in the order of the ranks.

    Raises:
        MetricError: another rank failed; of this rank's own failure the error itself comes out.
    """
    try:
        mine = make()
    except Exception as error:
        exchange.allgather((f"{type(error).__name__}: {error}", None))
        raise
    told_by_me: tuple[str | None, Any] = (None, mine)
    of_ranks = exchange.allgather(told_by_me)
    for rank, (told, _) in enumerate(of_ranks):
        if told is not None:
            text = f"Rank {rank} of {exchange.size} could not give its metrics. Received there: {told}"
            # So that only that rank is taken to have failed.
            raise MetricError(text) from PeerFailedError(f"Rank {rank} of {exchange.size} failed: {told}")
    return [part for _, part in of_ranks]


def check_same_names(hook: str, of_ranks: Mapping[int, Iterable[str]]) -> None:
    """Refuse metrics whose names differ between ranks.

    Args:
        hook: the user's method that returned them.
        of_ranks: the names by rank, of those ranks that have any batch.

    Raises:
        MetricError: naming two ranks and what each has.
    """
    if not of_ranks:
        return
    (first, names), *others = ((rank, set(found)) for rank, found in of_ranks.items())
    for rank, found in others:
        if found != names:
            raise MetricError(
                f"{hook} must return the same names on all ranks. Received: {sorted(names)} on rank {first}, "
                f"{sorted(found)} on rank {rank}. Return every metric on every rank; "
                f"differing: {sorted(names ^ found)}."
            )
