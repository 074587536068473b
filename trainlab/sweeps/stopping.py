"""stopped_by_signals: Ctrl-C and SIGTERM end the processes of a pool in good order."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlab.sweeps.pool import Pool

__all__ = ["stopped_by_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopped_by_signals(pool: "Pool", grace: float) -> Iterator[None]:
    """In a block, the first SIGINT or SIGTERM stops a pool's processes in good order, the second kills them.

    The block is to go on with ``pool.wait()`` until nothing runs. Outside of the main thread, where Python allows no
    handlers, it does nothing.

    Args:
        pool: whose processes.
        grace: seconds that they have to come to an end, with a checkpoint where a Trainer trains.

    Yields:
        None.

    Raises:
        KeyboardInterrupt: at the end of the block, if SIGINT was the first signal.
        SystemExit: likewise for SIGTERM, with 128 + its number.
    """
    first: int | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        is_first = first is None
        first = number if first is None else first
        pool.stop(grace if is_first else 0.0)
        running = len(pool.running)
        if is_first:
            then = f"what still runs ({running}) has {grace:g} s to end; once more kills it"
        else:
            then = f"what still runs ({running}) is killed"
        # A handler may interrupt a write to sys.stderr, whose buffer cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: nothing new is started, {then}.\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if first == signal.SIGINT:
        raise KeyboardInterrupt
    if first is not None:
        sys.exit(128 + first)
