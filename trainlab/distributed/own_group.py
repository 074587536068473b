"""The context and the process group that a launched function finds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainlab.distributed.context import DistributedContext, current_context

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["get_context", "get_group", "get_local_rank", "use_groups"]

_own: "list[ProcessGroup | None]" = []


def get_context() -> DistributedContext:
    """The context that connects this process with the others of its job.

    Returns:
        The open one; one that says that it is alone if there is none.
    """
    return current_context() or DistributedContext()


def get_local_rank() -> int:
    """The rank of this process on its node.

    Returns:
        0 to the number of ranks on the node - 1; 0 for a process alone.
    """
    return get_context().local_rank


def get_group() -> "ProcessGroup | None":
    """The process group that the platform's ``ipc_groups`` put this rank in.

    Returns:
        That group; without ``ipc_groups`` the one of all ranks, None for a process alone.
    """
    return _own[-1] if _own else get_context().process_group


@contextmanager
def use_groups(context: DistributedContext, layout: Sequence[Sequence[int]] | None) -> Iterator[None]:
    """Have process groups by layout for the time of a block. All ranks call this together.

    Args:
        context: of the ranks.
        layout: lists of ranks, each rank in exactly one; None for the group of all ranks.

    Yields:
        None.
    """
    if layout is None:
        yield
        return
    _own.append(context.new_groups(layout))
    try:
        yield
    finally:
        _own.pop()
