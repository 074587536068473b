"""Whether all ranks see one store: the chief leaves a mark in it, for which the others look."""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from trainlab.checkpoint.layout import checkpoint_name
from trainlab.checkpoint.manifest import UNFINISHED
from trainlab.storage import Store

__all__ = ["leave_mark", "remove_mark", "told_unseen", "why_unseen"]

# Longer than mounts keep in mind that there was nothing, as far as opening the folders above does not cure them of it.
_PATIENCE = 5.0
_PAUSE = 0.25

logger = logging.getLogger("trainlab.checkpoint")


def leave_mark(store: Store) -> str | None:
    """Leave what other ranks can look for: a folder that is taken for an unfinished checkpoint if nobody removes it.

    Args:
        store: the folder of the checkpoints; it need not exist.

    Returns:
        Its name; None if nothing can be written there, which the first checkpoint tells.
    """
    # No other store has one of the same name, as it may have a checkpoint of the same name.
    mark = f"{checkpoint_name(0, ())}.{secrets.randbelow(10**15)}"
    try:
        store.make_folder(mark)
        store.write(f"{mark}/{UNFINISHED}", [])
    except OSError as error:
        logger.info("Nothing can be written into %s yet, so that ranks do not look for it: %s", store.url, error)
        with contextlib.suppress(OSError):  # what was begun is rubbish, which the next start removes
            store.remove_folder(mark)
        return None
    return mark


def remove_mark(store: Store, mark: str) -> None:
    """Remove the mark; if that fails, it is told, and the next start removes it.

    Args:
        store: the folder of the checkpoints.
        mark: its name.
    """
    try:
        store.remove_folder(mark)
    except OSError as error:
        logger.warning("%s, by which ranks saw each other's files, cannot be removed: %s", store.location(mark), error)


def why_unseen(store: Store, mark: str) -> str | None:
    """Look for the mark, for some seconds if it is not there.

    Args:
        store: the folder of the checkpoints, as this rank has it.
        mark: its name.

    Returns:
        None if this rank sees it, or why it does not.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        if store.is_local:
            # Opening a folder is what makes a network file system forget that there was nothing in it.
            for folder in reversed(Path(store.location(mark)).parents):
                with contextlib.suppress(OSError):
                    os.scandir(folder).close()
        try:
            store.size(f"{mark}/{UNFINISHED}")
        except FileNotFoundError:
            reason = "it does not see what rank 0 has written there"
        except OSError as error:
            reason = str(error.strerror or error).rstrip(".")
        else:
            return None
        if time.monotonic() >= end:
            return reason
        time.sleep(_PAUSE)


def told_unseen(store: Store, unseen: Mapping[int, str]) -> str:
    """Say that ranks have a store of their own.

    Args:
        store: the folder of the checkpoints, as the chief has it.
        unseen: why a rank does not see it, by rank.

    Returns:
        The message of an error.
    """
    ranks = ", ".join(map(str, unseen))
    reason = next(iter(unseen.values()))
    return (
        f"All ranks write one checkpoint, and not all of them see the place for it: rank{'s' * (len(unseen) > 1)} "
        f"{ranks} ({reason}). Received: {store.url}. Put checkpoints where all ranks see the same files, by run_dir or "
        "checkpoint_storage: a folder that the machines share, or an object store; memory:// is each process's own."
    )
