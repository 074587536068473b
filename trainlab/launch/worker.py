"""run_rank: what every rank does around the function that it was given, wherever it was started."""

import os
import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from trainlab.errors import LaunchError, PeerFailedError
from trainlab.launch.call import Call
from trainlab.launch.platform import Platform

__all__ = ["environment", "note_error", "pickled", "run_rank", "variables_of"]

T = TypeVar("T")
_RANKS = ("TRAINLAB_RANK", "RANK", "SLURM_PROCID")


def variables_of(platform: Platform, device: str | None) -> dict[str, str]:
    """The variables by which a rank, and all that it starts, learns of its platform.

    Args:
        platform: as given to ``launch``.
        device: "cpu", "cuda" or "mps"; None to leave the choice to each node.

    Returns:
        Names and values.
    """
    found: dict[str, object] = {
        "TRAINLAB_DEVICE": device,
        "TRAINLAB_TIMEOUT": platform.timeout,
        "TRAINLAB_SEED": platform.seed,
        "TRAINLAB_CPUS_PER_TASK": platform.cpus_per_task,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, for the time of a block.

    Args:
        variables: names and values.

    Yields:
        None.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_rank(call: Call[T], platform: Platform) -> T:
    """Call a function as one of the ranks that the environment tells of.

    Args:
        call: the function, which gets nothing but its arguments.
        platform: as given to ``launch``.

    Returns:
        What the function returns.

    Raises:
        PeerFailedError: another rank failed.
    """
    import torch

    from trainlab.distributed import open_ranks, seed_all, use_groups

    device = os.environ.get("TRAINLAB_DEVICE")
    with open_ranks(None if device is None else torch.device(device)) as context:
        if platform.seed is not None:
            seed_all(platform.seed)
        with context.guard(), use_groups(context, platform.ipc_groups):
            return call()


def pickled(result: object) -> bytes:
    """What a rank's function returned, as it goes to the process that launched it.

    Args:
        result: what it returned.

    Returns:
        A pickle; by cloudpickle, if it is installed, where pickle does not do.

    Raises:
        LaunchError: it cannot be sent.
    """
    try:
        return pickle.dumps(result)
    except Exception as error:
        problem = error
    try:
        import cloudpickle

        return bytes(cloudpickle.dumps(result))
    except ImportError:
        pass
    except Exception as error:
        problem = error
    raise LaunchError(
        f"What the function returned cannot be sent: {type(problem).__name__}: {problem}. Received: "
        f"{type(result).__name__}. Return what can be pickled."
    ) from problem


def note_error(error: BaseException) -> str:
    """Leave a note of what a rank ended with, for the launcher.

    Args:
        error: what came out of the function, or of the script.

    Returns:
        Its traceback, from the user's first line on; the text of a ``sys.exit("text")``.
    """
    from trainlab.distributed.launched import note
    from trainlab.runs.traceback_text import told_message, told_text, told_traceback

    text, message = told_traceback(error), told_message(error)
    if isinstance(error, SystemExit):
        message = text = told_text(str(error.code))
    if not isinstance(error, PeerFailedError):  # of which the watchdog noted the first cause
        rank = next((os.environ[name] for name in _RANKS if os.environ.get(name)), "0")
        told = {"rank": int(rank), "message": message, "traceback": text, "at": time.time()}
        note("error", {**told, "is_of_launch": isinstance(error, LaunchError)})
    return text
