"""Gpus: which GPUs each process of a sweep sees."""

import logging
import os
from collections.abc import Mapping, Sequence

from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["Gpus", "gpus_for"]

logger = logging.getLogger("trainlab.sweeps")
_VARIABLE = "CUDA_VISIBLE_DEVICES"


class Gpus:
    """The GPUs of this machine, handed out to processes: those that the fewest use, and of these the longest unused.

    Args:
        names: as CUDA_VISIBLE_DEVICES names them: numbers, UUIDs, or instances of MIG.
        per_process: how many each process gets; 0 hides all of them.

    Raises:
        InvalidTypeError: ``per_process`` is no int.
        InvalidValueError: it is negative, or more than there are.
    """

    def __init__(self, names: Sequence[str], per_process: int) -> None:
        if isinstance(per_process, bool) or not isinstance(per_process, int):
            raise InvalidTypeError(f"num_gpus_per_process is an int, or None. Received: {per_process!r}.")
        if not 0 <= per_process <= len(names):
            there = f"{len(names)} ({', '.join(names)})" if names else "none"
            by = f", by {_VARIABLE}={os.environ[_VARIABLE]!r}" if _VARIABLE in os.environ else ""
            todo = f"a number from 0 to {len(names)}, or " if names else ""
            raise InvalidValueError(
                f"This machine does not have so many GPUs for a process. Received: num_gpus_per_process={per_process}, "
                f"and GPUs that can be seen: {there}{by}. Pass {todo}None to leave the GPUs alone."
            )
        self._per_process = per_process
        self._users = dict.fromkeys(names, 0)
        # Which was taken when, in takes: a GPU that makes each run fail at once is not the next one's again.
        self._last_taken = dict.fromkeys(names, 0)
        self._takes = 0

    def take(self) -> tuple[str, ...]:
        """Take GPUs for a process.

        Returns:
            Their names, in the order of this machine's.
        """
        self._takes += 1
        least_used = sorted(self._users, key=lambda name: (self._users[name], self._last_taken[name]))
        taken = set(least_used[: self._per_process])
        for name in taken:
            self._users[name] += 1
            self._last_taken[name] = self._takes
        return tuple(name for name in self._users if name in taken)

    def give_back(self, names: Sequence[str]) -> None:
        """Give back what a process had, once it has ended.

        Args:
            names: what ``take`` gave.
        """
        for name in names:
            self._users[name] -= 1

    @staticmethod
    def environment(names: Sequence[str]) -> Mapping[str, str]:
        """The variables by which a process sees its GPUs, and no other.

        Args:
            names: what ``take`` gave.

        Returns:
            CUDA_VISIBLE_DEVICES.
        """
        return {_VARIABLE: ",".join(names)}


def gpus_for(max_num_processes: int, per_process: int | None) -> Gpus | None:
    """Find this machine's GPUs; none of them is touched.

    Several processes share a GPU only where more are asked for than there are, which is told.

    Args:
        max_num_processes: how many processes run at once.
        per_process: how many each gets; None to leave them alone.

    Returns:
        What hands them out; None to leave them alone.

    Raises:
        InvalidTypeError: as ``Gpus``.
        InvalidValueError: as ``Gpus``.
    """
    if per_process is None:
        return None
    if per_process == 0:
        return Gpus((), 0)
    from trainlab.distributed import visible_gpus

    names = visible_gpus()
    gpus = Gpus(names, per_process)
    if max_num_processes * per_process > len(names):
        logger.warning(
            "%d processes at once with %d of %d GPUs each share them, the least used first. To give each its own, "
            "pass max_num_processes=%d.",
            *(max_num_processes, per_process, len(names), len(names) // per_process),
        )
    return gpus
