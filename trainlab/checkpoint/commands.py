"""What ``trainlab checkpoint`` tells of checkpoints; how it is shown is up to ``trainlab.cli.checkpoint``."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from trainlab.checkpoint.layout import NAME, split_location
from trainlab.checkpoint.manifest import FORMAT, LARGEST_MANIFEST, MANIFEST, read_manifest, read_sequence
from trainlab.checkpoint.reader import Checkpoint
from trainlab.checkpoint.retention import Entry
from trainlab.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError
from trainlab.storage import Store, open_store

__all__ = ["Found", "Place", "describe", "find", "verified"]

Condition = Literal["not verified", "whole", "damaged", "unreadable", "unfinished"]


@dataclass(frozen=True)
class Found:
    """A folder that is a checkpoint, or was to become one.

    Attributes:
        name: its name.
        location: its path or URL.
        condition: what is known of it.
        reason: why it is damaged or cannot be read; else empty.
        entry: its progress; None if that cannot be read.
        created: when it was written, ISO 8601.
        size: the bytes of its files.
    """

    name: str
    location: str
    condition: Condition
    reason: str = ""
    entry: Entry | None = None
    created: str = ""
    size: int = 0

    @property
    def told(self) -> dict[str, Any]:
        """All of it, as data."""
        entry = self.entry
        return {
            "name": self.name,
            "location": self.location,
            "condition": self.condition,
            "reason": self.reason or None,
            "sequence": entry and entry.sequence,
            "batches_trained": entry and entry.batches_trained,
            "epochs_trained": entry and entry.epochs_trained,
            "validation": entry and entry.validation,
            "created": self.created or None,
            "size": self.size if entry else None,
        }


@dataclass(frozen=True)
class Place:
    """Where checkpoints are.

    Attributes:
        store: their folder.
        found: what is there, in the order in which it was written; what does not tell comes last.
        is_one: whether a single checkpoint was asked for.
    """

    store: Store
    found: list[Found]
    is_one: bool = False


def find(place: str, storage_options: Mapping[str, Any]) -> Place:
    """Find checkpoints, of any name.

    Args:
        place: A checkpoint, a folder of checkpoints or a run's folder, as path or URL.
        storage_options: For the file system of a URL, as fsspec takes them.

    Returns:
        What is there; only names and sizes of files are checked.

    Raises:
        CheckpointNotFoundError: There is no checkpoint, not even an unfinished one.
        OSError: The folder cannot be read.
    """
    store = open_store(place, storage_options)
    if _has(store, MANIFEST):
        parent, name = split_location(place)
        store = open_store(parent, storage_options)
        return Place(store, [_look_at(store, name, verify=False)], is_one=True)
    folders = store.folders()
    found = _found_in(store, folders)
    if not found and "checkpoints" in folders:
        store = open_store(str(store.location("checkpoints")), storage_options)
        found = _found_in(store, store.folders())
    if not found:
        raise CheckpointNotFoundError(
            f"There are no checkpoints. Received: {store.url}. Pass a checkpoint, a folder of them, or a run's folder."
        )
    return Place(store, found)


def verified(store: Store, found: Found) -> Found:
    """Compare every file of a checkpoint with its checksum.

    Args:
        store: The folder of the checkpoints.
        found: One of those that are there.

    Returns:
        The same with what is known now; an unfinished one as it was.
    """
    return found if found.condition == "unfinished" else _look_at(store, found.name, verify=True)


def describe(place: Place) -> dict[str, Any]:
    """Tell all of a checkpoint but its tensors' data.

    Args:
        place: What was found: one checkpoint.

    Returns:
        The manifest's content, and key, shape and dtype of every weight.

    Raises:
        CheckpointError: It is not one, or cannot be read.
    """
    if not place.is_one:
        raise CheckpointNotFoundError(
            f"This folder holds checkpoints and is none. Received: {place.store.url}. "
            f"Pass one of them: {place.found[-1].location}."
        )
    store, name = place.store, place.found[0].name
    with Checkpoint.open_in(store, name, verify=False) as checkpoint:
        manifest = read_manifest(store.read(f"{name}/{MANIFEST}", LARGEST_MANIFEST), str(checkpoint.path))
        weights: dict[str, dict[str, Any]] = {
            role: {
                model: {"file": file, "tensors": _tensors_in(checkpoint.stored_forms(role, model))}
                for model, file in of.items()
            }
            for role, of in manifest.weights.items()
        }
        return {
            "name": name,
            "location": str(checkpoint.path),
            "sequence": checkpoint.sequence,
            "created": checkpoint.created,
            "trial_class": checkpoint.trial_class,
            "size": checkpoint.size,
            "ranks": checkpoint.ranks,
            "progress": checkpoint.progress,
            "hparams": checkpoint.hparams,
            "exp_conf": checkpoint.exp_conf,
            "versions": checkpoint.versions,
            "files": {
                file: {"size": entry.size, "checksum": entry.checksum} for file, entry in checkpoint.files.items()
            },
            "weights": weights,
            "parameters": sum(_numbers(model["tensors"]) for model in weights.get("model", {}).values()),
        }


def _found_in(store: Store, folders: Collection[str]) -> list[Found]:
    found = [_look_at(store, name, verify=False) for name in folders if _is_ours(store, name)]
    return sorted(found, key=lambda one: (one.entry.sequence if one.entry else math.inf, one.name))


def _is_ours(store: Store, name: str) -> bool:
    """Whether a folder is, or was to be, a checkpoint: other programs have manifests, too."""
    if NAME.fullmatch(name):
        return True
    try:
        data = store.read(f"{name}/{MANIFEST}", LARGEST_MANIFEST)
    except OSError:
        return False
    return read_sequence(data) is not None or FORMAT.encode() in data


def _look_at(store: Store, name: str, *, verify: bool) -> Found:
    unknown = Found(name, str(store.location(name)), "unfinished")
    try:
        with Checkpoint.open_in(store, name, verify=verify) as checkpoint:
            return replace(
                unknown,
                condition="whole" if verify else "not verified",
                entry=Entry.of(name, checkpoint.sequence, checkpoint.progress),
                created=checkpoint.created,
                size=checkpoint.size,
            )
    except CheckpointNotFoundError:
        return unknown
    except CheckpointDamagedError as error:
        return replace(unknown, condition="damaged", reason=str(error))
    except CheckpointError as error:
        return replace(unknown, condition="unreadable", reason=str(error))


def _has(store: Store, name: str) -> bool:
    try:
        store.size(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _tensors_in(forms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Key, dtype and shape of each tensor; of tied ones also whose memory they share."""
    first: dict[int, str] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for key, form in forms.items():
        same = first.setdefault(id(form), key)
        told = {"dtype": _text(form.dtype), "shape": list(form.shape)}
        tensors[key] = told if same == key else {**told, "same_as": same}
    return dict(sorted(tensors.items()))


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _numbers(tensors: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(math.prod(tensor["shape"]) for tensor in tensors.values() if "same_as" not in tensor)
