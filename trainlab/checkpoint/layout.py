"""Where things are in a folder of checkpoints."""

import logging
import math
import os
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager

from trainlab.checkpoint.manifest import (
    FORMAT,
    FORMAT_VERSION,
    LARGEST_MANIFEST,
    MANIFEST,
    STATE_STRUCTURE,
    STATE_TENSORS,
    is_inside,
    read_sequence,
)
from trainlab.errors import CheckpointError, CheckpointNotFoundError, StorageError
from trainlab.storage import Store, reached

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "LARGEST_MANIFEST",
    "MANIFEST",
    "NAME",
    "STATE_STRUCTURE",
    "STATE_TENSORS",
    "checkpoint_name",
    "is_inside",
    "list_checkpoints",
    "remove_rubbish",
    "split_location",
]

NAME = re.compile(r"batch-[0-9]{7,}(\.[0-9]+)?")

_logger = logging.getLogger("trainlab.checkpoint")


def checkpoint_name(batches_trained: int, taken: Container[str]) -> str:
    """The name of the next checkpoint's folder.

    Args:
        batches_trained: How many batches were trained.
        taken: The names that are in use.

    Returns:
        ``batch-0000500``, or ``batch-0000500.1`` and so on where that is taken.
    """
    wanted = name = f"batch-{batches_trained:07d}"
    number = 0
    while name in taken:
        number += 1
        name = f"{wanted}.{number}"
    return name


def list_checkpoints(store: Store) -> list[str]:
    """All folders that are named like a checkpoint and have a manifest, damaged ones too.

    Args:
        store: The folder of the checkpoints; it need not exist.

    Returns:
        Their names, in the order in which they were written. One with a damaged manifest, which does not tell, counts
        as the newest, so that it is seen and reported.

    Raises:
        CheckpointError: ``store`` cannot be read.
    """
    found = []
    with _explained(store):
        for name in filter(NAME.fullmatch, store.folders()):
            try:
                found.append((_sequence(store, name), name))
            except FileNotFoundError:
                continue
    return [name for _, name in sorted(found)]


def remove_rubbish(store: Store) -> list[str]:
    """Remove what writers that were killed left behind. Call it only while no other process writes here.

    Args:
        store: The folder of the checkpoints; it need not exist.

    Returns:
        The names of the folders removed: those that are named like a checkpoint and have no manifest.

    Raises:
        CheckpointError: ``store`` cannot be read, or rubbish not be removed.
    """
    removed = []
    with _explained(store):
        names = [name for name in store.folders() if NAME.fullmatch(name) and not _has_manifest(store, name)]
    for name in names:
        try:
            store.remove_folder(name)
        except OSError as error:
            raise CheckpointError(
                f"A checkpoint that was never finished cannot be removed: {error.strerror or error}. "
                f"Received: {store.location(name)}. Remove it by hand."
            ) from error
        _logger.warning(
            "Removed %s, a checkpoint that was never finished, or has lost its %s.", store.location(name), MANIFEST
        )
        removed.append(name)
        reached("rubbish removed")
    return removed


def split_location(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Split the path or URL of a checkpoint.

    Args:
        path: A path (``~`` is the home folder) or a URL. A link to a checkpoint, such as one called ``best``, is
            followed.

    Returns:
        The place of the store that it is in, and its name there.

    Raises:
        CheckpointNotFoundError: It is the top of a file system.
    """
    text = os.fspath(path)
    if "://" in text:
        parent, _, name = text.rstrip("/").rpartition("/")
        return (f"{parent}/" if parent.endswith(":/") else parent), name
    folder = os.path.abspath(os.path.expanduser(text))
    parent, name = os.path.split(os.path.realpath(folder) if os.path.islink(folder) else folder)
    if not name:
        raise CheckpointNotFoundError(f"There is no checkpoint at the top of a file system. Received: {folder}.")
    return parent, name


def _sequence(store: Store, name: str) -> float:
    try:
        sequence = read_sequence(store.read(f"{name}/{MANIFEST}", LARGEST_MANIFEST))
    except FileNotFoundError:
        raise
    except OSError:  # a file that cannot be read, or is none: whoever opens the checkpoint is told
        return math.inf
    return math.inf if sequence is None else sequence


def _has_manifest(store: Store, name: str) -> bool:
    try:
        store.size(f"{name}/{MANIFEST}")
    except FileNotFoundError:
        return False
    except StorageError:
        if not store.is_local:
            raise
        return True  # a link or a device: not what a writer leaves
    return True


@contextmanager
def _explained(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"The folder of checkpoints cannot be read: {error.strerror or error}. Received: {store.url}. "
            "Pass a folder that can be read."
        ) from error
