"""Writing a checkpoint: data first, the manifest last; whatever stops it leaves the earlier ones as they are."""

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trainlab.checkpoint.layout import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    STATE_STRUCTURE,
    STATE_TENSORS,
    allot,
    is_inside,
    next_sequence,
    remove_folder,
    render_manifest,
)
from trainlab.checkpoint.tree import encode, free_name
from trainlab.checkpoint.weights import write_tensors
from trainlab.errors import CheckpointError, InvalidValueError

__all__ = ["file_sha256", "write_checkpoint"]

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,50}")
_logger = logging.getLogger("trainlab.checkpoint")

Weights = Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]]


def write_checkpoint(
    root: Path,
    *,
    batches_trained: int,
    weights: Weights,
    state: Mapping[str, Any],
    details: Mapping[str, Any],
    before_commit: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint; when this returns it is durable, and if it raises nothing of it is left.

    Args:
        root: The folder of the checkpoints, made if need be.
        batches_trained: How many batches were trained; it names the folder, see ``allot``.
        weights: State dicts by role (``model``) and by the model's name.
        state: Everything else: a tree of plain values and tensors, see ``encode``.
        details: What the manifest tells: ``progress``, ``trial_class`` (``module:Name``), ``hparams``, ``exp_conf``
            and ``versions``. Values that are no data are written as their ``str``.
        before_commit: Called with the folder when its data is written; files that it adds become part of the
            checkpoint, and an error that it raises passes through. Default None.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder cannot be written, or ``state`` holds what a checkpoint cannot.
        InvalidValueError: A role cannot name a file.
    """
    structure, tensors = encode(dict(state))
    told = _told(details)
    with _explained(root):
        folder = allot(root, batches_trained)
        sequence = next_sequence(root)
        is_new_root = not root.exists()
        folder.mkdir(parents=True)
        if is_new_root:
            _sync(root.parent)
    with _removed_on_error(folder):
        with _explained(folder):
            names = _write_weights(folder, weights)
            (folder / STATE_STRUCTURE).write_text(json.dumps(structure, allow_nan=False), encoding="utf-8")
            write_tensors(folder / STATE_TENSORS, tensors)
        if before_commit is not None:
            before_commit(folder)
        with _explained(folder):
            manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "sequence": sequence,
                "created": datetime.now(timezone.utc).isoformat(),
                "files": _make_durable(folder),
                "weights": names,
                "state": {"structure": STATE_STRUCTURE, "tensors": STATE_TENSORS},
                "data_set_state": None,
                **told,
            }
            _require_own_files(folder, manifest)
            _commit(folder, manifest)
    return folder


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
        path: The file.

    Returns:
        64 digits.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(
            f"A checkpoint cannot be written: {reason}. Received: {folder}. Nothing of it is left, and earlier ones "
            "are as they were. Make room there, or make it writable."
        ) from error


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _clean_up(folder)
        raise


def _clean_up(folder: Path) -> None:
    try:
        remove_folder(folder)
    except OSError as error:
        _logger.error("The half-written checkpoint %s cannot be removed: %s.", folder, error)


def _write_weights(folder: Path, weights: Weights) -> dict[str, dict[str, str]]:
    taken = {Path(STATE_TENSORS).stem}
    names: dict[str, dict[str, str]] = {}
    for role, models in weights.items():
        if not _ROLE.fullmatch(role):
            raise InvalidValueError(f"A role is made of letters, digits, _ and -. Received: {role!r}.")
        names[role] = {}
        for name, tensors in models.items():
            # The manifest has the name as it is; the file's only has what any file system takes.
            stem = role if len(models) == 1 else f"{role}.{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:100]}"
            stem = free_name(stem, taken)
            taken.add(stem)
            file = f"{stem}.safetensors"
            write_tensors(folder / file, tensors)
            names[role][name] = file
    return names


def _told(details: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"progress": {}, "trial_class": "", "hparams": None, "exp_conf": None, "versions": {}}
    unknown = [key for key in details if key not in told]
    if unknown:
        raise InvalidValueError(f"A manifest tells {', '.join(told)}. Received: {', '.join(map(repr, unknown))} too.")
    return {key: encode(_as_data(value))[0] for key, value in {**told, **details}.items()}


def _as_data(value: Any, depth: int = 0) -> Any:
    """The same, with everything that is no data replaced by its ``str``: what a manifest tells must not stop a run."""
    if depth > 50:
        return str(value)
    if isinstance(value, Mapping):
        return {_as_data(key, depth + 1): _as_data(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple
        return kind(_as_data(item, depth + 1) for item in value)
    try:
        _, tensors = encode(value)
    except CheckpointError:
        return str(value)
    return str(value) if tensors else value


def _make_durable(folder: Path) -> dict[str, dict[str, Any]]:
    """Bring all files to the disk, and describe them as the manifest does."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(
                f"A checkpoint holds files and folders only. Received: {path}, a link or a device. "
                "Copy the file instead."
            )
        name = path.relative_to(folder).as_posix()
        if not is_inside(name):
            raise CheckpointError(f"A checkpoint cannot hold a file of this name. Received: {name!r}. Rename it.")
        _sync(path)
        if path.is_file():
            files[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    _sync(folder)
    return files


def _require_own_files(folder: Path, manifest: dict[str, Any]) -> None:
    own = {*manifest["state"].values(), *(file for models in manifest["weights"].values() for file in models.values())}
    missing = sorted(own - set(manifest["files"]))
    if missing:
        raise CheckpointError(
            f"Files of a checkpoint were removed before it was committed. Received: {folder}, without "
            f"{', '.join(missing)}. A hook that runs before the commit may add files, and remove none."
        )


def _commit(folder: Path, manifest: dict[str, Any]) -> None:
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(render_manifest(manifest))
        file.flush()
        os.fsync(file.fileno())
    # The entry of the folder itself first: a manifest that can be seen belongs to a folder that stays.
    _sync(folder.parent)
    temporary.replace(folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such thing for folders, and bring each entry to the disk by themselves.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
