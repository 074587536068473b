"""Where things are in a folder of checkpoints, and the form of a manifest."""

import contextlib
import hashlib
import json
import logging
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from trainlab.errors import CheckpointError

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST",
    "STATE_STRUCTURE",
    "STATE_TENSORS",
    "allot",
    "is_inside",
    "list_checkpoints",
    "next_sequence",
    "parse_json",
    "remove_folder",
    "remove_rubbish",
    "render_manifest",
]

FORMAT = "trainlab-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
STATE_STRUCTURE = "state.json"
STATE_TENSORS = "state.safetensors"

_NAME = re.compile(r"batch-[0-9]{7,}(\.[0-9]+)?")
_SEQUENCE = re.compile(rb'"sequence": ?([0-9]{1,18})\b')

_logger = logging.getLogger("trainlab.checkpoint")


def allot(root: Path, batches_trained: int) -> Path:
    """The folder that the next checkpoint written gets.

    Args:
        root: The folder of the checkpoints.
        batches_trained: How many batches were trained.

    Returns:
        ``<root>/batch-0000500``, or ``batch-0000500.1`` and so on where something has that name. It is not made.
    """
    folder = root / f"batch-{batches_trained:07d}"
    number = 0
    while folder.exists() or folder.is_symlink():
        number += 1
        folder = root / f"batch-{batches_trained:07d}.{number}"
    return folder


def list_checkpoints(root: Path) -> list[Path]:
    """All folders in ``root`` that have a manifest, damaged ones too.

    Args:
        root: The folder of the checkpoints; it need not exist.

    Returns:
        The folders in the order in which they were written.

    Raises:
        CheckpointError: ``root`` cannot be read.
    """
    folders = [folder for folder in _entries(root) if (folder / MANIFEST).is_file()]
    return sorted(folders, key=lambda folder: (_sequence(folder), folder.name))


def next_sequence(root: Path) -> int:
    """The sequence number for a new checkpoint.

    Args:
        root: The folder of the checkpoints.

    Returns:
        One more than the greatest in ``root``, at least 1.
    """
    known = [_sequence(folder) for folder in list_checkpoints(root)]
    return 1 + max((int(sequence) for sequence in known if sequence != _UNKNOWN), default=0)


def remove_rubbish(root: Path) -> list[Path]:
    """Remove what writers that were killed left behind. Call it only while no other process writes here.

    Args:
        root: The folder of the checkpoints; it need not exist.

    Returns:
        The folders removed: those that are named like a checkpoint and have no manifest.

    Raises:
        CheckpointError: ``root`` cannot be read, or rubbish not be removed.
    """
    removed = []
    for folder in _entries(root):
        if _NAME.fullmatch(folder.name) and not (folder / MANIFEST).exists():
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise CheckpointError(
                    f"A half-written checkpoint cannot be removed: {error.strerror or error}. Received: {folder}. "
                    "Remove it by hand."
                ) from error
            _logger.info("Removed %s, a checkpoint that was never finished.", folder)
            removed.append(folder)
    return removed


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint, so that a crash in the middle leaves rubbish and no damaged checkpoint.

    Args:
        folder: The checkpoint; it need not exist.
    """
    with contextlib.suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()
    if folder.exists():
        shutil.rmtree(folder)


def render_manifest(content: dict[str, Any]) -> bytes:
    """The bytes of a manifest: JSON with an indent of 1, its last member the checksum of the rest rendered likewise.

    Args:
        content: The manifest without ``manifest_sha256``.

    Returns:
        The file's content. There is no other way to write the same manifest, so every changed byte shows.
    """
    digest = hashlib.sha256(_render(content)).hexdigest()
    return _render({**content, "manifest_sha256": digest})


def is_inside(name: str) -> bool:
    """Whether a manifest may list a file under this name.

    Args:
        name: A path with ``/``.

    Returns:
        True if it is relative, in its shortest form, UTF-8, without ``..`` and not the manifest itself.
    """
    parts = PurePosixPath(name).parts
    is_shortest = bool(parts) and "/".join(parts) == name and ".." not in parts and parts[0] != "/"
    is_portable = not any(character in "\\\0" or "\ud800" <= character <= "\udfff" for character in name)
    return is_shortest and is_portable and name != MANIFEST


def parse_json(data: bytes) -> Any:
    """Read JSON as the standard has it: no key twice, no NaN.

    Args:
        data: UTF-8.

    Returns:
        The value.

    Raises:
        ValueError: It is no such JSON, or nested too deep.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _render(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _entries(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"The folder of checkpoints cannot be read: {error.strerror or error}. Received: {root}. "
            "Pass a folder that can be read."
        ) from error


_UNKNOWN = float("inf")


def _sequence(folder: Path) -> float:
    """The number by which "newest" is decided; that of a damaged manifest too, as far as it can be made out.

    One that cannot be made out counts as newest, so that it is seen and reported.
    """
    try:
        found = _SEQUENCE.search((folder / MANIFEST).read_bytes())
    except OSError:
        return _UNKNOWN
    return int(found[1]) if found else _UNKNOWN
