"""What to tell someone who asked for a checkpoint where there is none."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.checkpoint.layout import list_checkpoints
from trainlab.checkpoint.manifest import MANIFEST, STATE_STRUCTURE, STATE_TENSORS
from trainlab.checkpoint.matching import shown
from trainlab.errors import CheckpointError, CheckpointNotFoundError
from trainlab.storage import Store, open_store

__all__ = ["absence"]


def absence(store: Store, name: str, storage_options: Mapping[str, Any] | None) -> CheckpointError:
    """Find out why a folder is no checkpoint, and what was meant.

    Args:
        store: The store in which it should be.
        name: Its name there.
        storage_options: With which the store was opened.

    Returns:
        The error, to be raised.

    Raises:
        OSError: What is there cannot be read.
    """
    place = store.location(name)
    if isinstance(place, Path) and place.is_file():
        return CheckpointError(
            f"This is a file and not a trainlab checkpoint, which is a folder with a {MANIFEST}. Received: {place}. "
            "Weights in a .safetensors file are read by trainlab.load_weights. Files of torch.save are not read, for "
            "reading them can run code."
        )
    if not isinstance(place, Path) or place.is_dir():
        for folder in (str(place), f"{place}/checkpoints"):
            inside_of = open_store(folder, storage_options)
            inside = list_checkpoints(inside_of)
            if inside:
                return CheckpointNotFoundError(
                    f"This folder holds checkpoints and is none. Received: {place}. "
                    f"Pass one of them: {inside_of.location(inside[-1])}."
                )
    if isinstance(place, Path) and place.is_dir():
        return _of_a_folder(store, place)
    return CheckpointNotFoundError(f"There is no checkpoint. Received: {place}. {_what_is_in(store)}")


def _of_a_folder(store: Store, folder: Path) -> CheckpointError:
    names = sorted(os.listdir(folder))
    if not names or {STATE_STRUCTURE, STATE_TENSORS} & set(names):
        return CheckpointNotFoundError(
            f"This folder is empty, or a checkpoint that was never finished: it has no {MANIFEST}. "
            f"Received: {folder}. {_what_is_in(store)}"
        )
    return CheckpointError(
        f"This is not a trainlab checkpoint: it has no {MANIFEST}. Received: {folder}, with {shown(names)}. "
        "Pass a folder that trainlab wrote."
    )


def _what_is_in(store: Store) -> str:
    if store.is_local and not os.path.isdir(store.location()):
        return f"There is no folder {store.url} either."
    names = list_checkpoints(store)
    if names:
        return f"The checkpoints there are: {shown(names[::-1])}."
    return f"There is no checkpoint in {store.url}."
