"""The processes that a main function starts by ``multiprocessing`` end with the run."""

import contextlib
import logging
import multiprocessing
import multiprocessing.process
import os
import time
from collections.abc import Iterator

__all__ = ["others_ended"]

logger = logging.getLogger("trainlab.experiments")

_GRACE = 5.0


@contextlib.contextmanager
def others_ended() -> Iterator[None]:
    """End the processes of multiprocessing that were started in this block and still run at its end.

    They get SIGTERM, and are killed after 5 seconds. Those that were there before are left alone.

    Yields:
        None.
    """
    before, pid = set(multiprocessing.active_children()), os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            _end(set(multiprocessing.active_children()) - before)


def _end(children: set[multiprocessing.process.BaseProcess]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + _GRACE
    for child in children:
        child.join(max(deadline - time.monotonic(), 0.0))
        if child.is_alive():
            child.kill()
            child.join()
    if children:
        logger.info("%d processes that were left running at the run's end were ended.", len(children))
