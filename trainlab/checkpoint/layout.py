"""Where things are in a folder of checkpoints."""

import logging
import math
import os
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager

from trainlab.checkpoint.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    STATE_STRUCTURE,
    STATE_TENSORS,
    UNFINISHED,
    read_sequence,
)
from trainlab.errors import CheckpointError, CheckpointNotFoundError, StorageError
from trainlab.storage import Store, reached

__all__ = [
    "NAME",
    "checkpoint_name",
    "has_lost_its_manifest",
    "is_unfinished",
    "list_checkpoints",
    "remove_checkpoint",
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
    """All folders that are named like a checkpoint and are one, damaged ones too.

    Args:
        store: The folder of the checkpoints; it need not exist.

    Returns:
        Their names, in the order in which they were written. One whose manifest is damaged or lost, which does not
        tell, counts as the newest, so that it is seen and reported.

    Raises:
        CheckpointError: ``store`` cannot be read.
    """
    found = []
    with _explained(store):
        for name in filter(NAME.fullmatch, store.folders()):
            try:
                found.append((_sequence(store, name), name))
            except FileNotFoundError:
                if has_lost_its_manifest(store, name):
                    found.append((math.inf, name))
    return [name for _, name in sorted(found)]


def remove_checkpoint(store: Store, name: str) -> bool:
    """Remove a checkpoint, unless someone reads it; a crash in the middle leaves rubbish that is known as such.

    Args:
        store: The folder of the checkpoints.
        name: Its folder's name.

    Returns:
        Whether it was removed; True also if it was not there.

    Raises:
        OSError: It cannot be removed.
    """
    mark = f"{name}/{UNFINISHED}"
    try:
        store.size(f"{name}/{MANIFEST}")  # refuses links, which lead to what is not ours
        store.write(mark, [])
    except FileExistsError:
        pass
    except FileNotFoundError:
        if not is_unfinished(store, name):
            return not has_lost_its_manifest(store, name)
    if store.remove_unread(name, MANIFEST):
        return True
    store.remove(mark)
    return False


def remove_rubbish(store: Store) -> list[str]:
    """Remove what writers that were killed left behind. Call it only while no other process writes here.

    Args:
        store: The folder of the checkpoints; it need not exist.

    Returns:
        The names of the folders removed: those that are named like a checkpoint and never became one.

    Raises:
        CheckpointError: ``store`` cannot be read, or rubbish not be removed.
    """
    removed = []
    with _explained(store):
        ours = [name for name in store.folders() if NAME.fullmatch(name)]
        names = [name for name in ours if is_unfinished(store, name)]
        for name in ours:
            if name not in names:
                store.remove(f"{name}/{UNFINISHED}")  # of a writer that was killed right after the manifest
    for name in names:
        try:
            store.remove_folder(name)
        except OSError as error:
            raise CheckpointError(
                f"A checkpoint that was never finished cannot be removed: {str(error.strerror or error).rstrip('.')}. "
                f"Received: {store.location(name)}. Remove it by hand."
            ) from error
        _logger.warning("Removed %s, a checkpoint that was never finished.", store.location(name))
        removed.append(name)
        reached("rubbish removed")
    return removed


def is_unfinished(store: Store, name: str) -> bool:
    """Tell whether a folder is what a killed writer left.

    Args:
        store: The folder of the checkpoints.
        name: The folder's name.

    Returns:
        True if it has no manifest, and the writer's mark, or nothing at all.

    Raises:
        OSError: It cannot be told.
    """
    files = _files_without_manifest(store, name)
    return files is not None and (not files or UNFINISHED in files)


def has_lost_its_manifest(store: Store, name: str) -> bool:
    """Tell whether a folder is a checkpoint whose manifest someone removed.

    Args:
        store: The folder of the checkpoints.
        name: The folder's name.

    Returns:
        True if it has a checkpoint's files, and neither manifest nor writer's mark.

    Raises:
        OSError: It cannot be told.
    """
    files = _files_without_manifest(store, name)
    return files is not None and UNFINISHED not in files and bool({STATE_STRUCTURE, STATE_TENSORS} & files)


def _files_without_manifest(store: Store, name: str) -> set[str] | None:
    """The files of a folder without a manifest; None if it has one, or is not for us to look into."""
    try:
        files = set(store.files(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (StorageError, PermissionError):
        if not store.is_local:
            raise
        return None  # a link or a device in it, or rights that we have not: not what a writer leaves
    return None if MANIFEST in files else files


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


@contextmanager
def _explained(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"The folder of checkpoints cannot be read: {str(error.strerror or error).rstrip('.')}. "
            f"Received: {store.url}. Pass a folder that can be read."
        ) from error
