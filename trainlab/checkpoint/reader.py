"""Reading a checkpoint: nothing is believed before it is checked, and nothing in it is ever executed."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainlab.checkpoint.layout import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    is_inside,
    list_checkpoints,
    parse_json,
    render_manifest,
)
from trainlab.checkpoint.tree import decode
from trainlab.checkpoint.weights import read_tensors
from trainlab.checkpoint.writer import file_sha256
from trainlab.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
)

__all__ = ["Checkpoint", "latest_checkpoint", "match_keys"]

_LARGEST_MANIFEST = 64 * 2**20
_SHOWN = 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_logger = logging.getLogger("trainlab.checkpoint")


class Checkpoint:
    """A checkpoint that was opened, and so found whole. Made by ``Checkpoint.open``.

    Attributes:
        path: Its folder.
        sequence: Its number among those of its folder; a later one has a greater one.
        progress: The run's counters.
        trial_class: The Trial's class, as ``module:Name``.
        hparams: The hyperparameters.
        exp_conf: The experiment's configuration.
        versions: The versions of what wrote it, by name.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.sequence: int = manifest["sequence"]
        self.trial_class: str = manifest["trial_class"]
        self.progress: dict[str, Any] = decode(manifest["progress"], {})
        self.hparams: Any = decode(manifest["hparams"], {})
        self.exp_conf: Any = decode(manifest["exp_conf"], {})
        self.versions: dict[str, Any] = decode(manifest["versions"], {})
        self._weights: dict[str, dict[str, str]] = manifest["weights"]
        self._state: dict[str, str] = manifest["state"]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> "Checkpoint":
        """Open a checkpoint.

        Args:
            path: Its folder.
            verify: Compare every file with its checksum; default True. Names and sizes are always checked.

        Returns:
            The checkpoint.

        Raises:
            CheckpointNotFoundError: There is none at ``path``.
            CheckpointDamagedError: A file of it is missing or changed.
            CheckpointError: What is there is not one of trainlab's, or cannot be read.
        """
        folder = Path(path).expanduser()
        try:
            _require_manifest(folder)
            manifest = _read_manifest(folder)
            for name, entry in manifest["files"].items():
                _check_file(folder, name, entry, verify)
            return cls(folder, manifest)
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint {folder} cannot be read: {error.strerror or error}. Make it readable."
            ) from error

    def weights(self, role: str = "model") -> dict[str, dict[str, torch.Tensor]]:
        """Read weights.

        Args:
            role: Which; default "model".

        Returns:
            State dicts by the models' names, on the CPU. Tied tensors are tied again.

        Raises:
            CheckpointMismatchError: The checkpoint holds no weights of this role.
            CheckpointDamagedError: A file cannot be read.
        """
        if role not in self._weights:
            raise CheckpointMismatchError(
                f"The checkpoint {self.path} holds no weights of this role. Received: {role!r}. "
                f"It holds: {', '.join(map(repr, self._weights)) or 'none'}."
            )
        return {name: read_tensors(self.path / file) for name, file in self._weights[role].items()}

    def state(self) -> Any:
        """Read everything else that was saved.

        Returns:
            The tree that was given to ``write_checkpoint``, its tensors on the CPU.

        Raises:
            CheckpointDamagedError: A file cannot be read.
        """
        structure = self.path / self._state["structure"]
        try:
            content = parse_json(structure.read_bytes())
        except (OSError, ValueError) as error:
            raise _damaged(self.path, structure.name, str(error)) from error
        return decode(content, read_tensors(self.path / self._state["tensors"]))

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r})"


def latest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are reported as errors in the log and passed over.

    Args:
        root: The folder of the checkpoints; it need not exist.

    Returns:
        Its folder; None if there is none.

    Raises:
        CheckpointError: ``root`` cannot be read.
    """
    passed_over: list[CheckpointError] = []
    found = None
    for folder in reversed(list_checkpoints(root)):
        try:
            Checkpoint.open(folder)
        except CheckpointError as error:
            passed_over.append(error)
        else:
            found = folder
            break
    instead = f"{found} is used instead" if found else f"there is no other one in {root}"
    for reason in passed_over:
        _logger.error("A checkpoint is passed over, and %s. %s", instead, reason)
    return found


def match_keys(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], what: str) -> None:
    """Check that a state dict has the keys and shapes that are wanted.

    Args:
        expected: The state dict of the object that is to be loaded.
        found: The one from the checkpoint.
        what: What is loaded, for the message, such as ``model 'net'``.

    Raises:
        CheckpointMismatchError: Keys are missing, unknown or of another shape; it lists them.
    """
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    misshapen = [
        f"{key} ({list(found[key].shape)} instead of {list(expected[key].shape)})"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    groups = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    differences = [f"{kind}: {_shown(keys)}" for kind, keys in groups.items() if keys]
    if differences:
        raise CheckpointMismatchError(
            f"The checkpoint does not fit {what}. In the checkpoint, keys are {'; '.join(differences)}. "
            "Build the model as it was when the checkpoint was written, or load another checkpoint."
        )


def _shown(keys: list[str]) -> str:
    rest = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + rest


def _require_manifest(folder: Path) -> None:
    if (folder / MANIFEST).is_file():
        return
    if folder.is_file():
        raise CheckpointError(
            f"This is a file and not a trainlab checkpoint, which is a folder with a {MANIFEST}. Received: {folder}. "
            "Files of torch.save are not read, for reading them can run code."
        )
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"There is no checkpoint. Received: {folder}. {_what_is_there(folder.parent)}")
    inside = list_checkpoints(folder) or list_checkpoints(folder / "checkpoints")
    if inside:
        raise CheckpointNotFoundError(
            f"This folder holds checkpoints and is none. Received: {folder}. Pass one of them: {inside[-1]}."
        )
    names = sorted(entry.name for entry in folder.iterdir())
    if not names or {"state.json", "state.safetensors"} & set(names):
        raise CheckpointNotFoundError(
            f"This folder is empty, or a checkpoint that was never finished: it has no {MANIFEST}. Received: {folder}. "
            f"{_what_is_there(folder.parent)}"
        )
    raise CheckpointError(
        f"This is not a trainlab checkpoint: it has no {MANIFEST}. Received: {folder}, with {_shown(names)}. "
        "Pass a folder that trainlab wrote."
    )


def _what_is_there(parent: Path) -> str:
    if not parent.is_dir():
        return f"There is no folder {parent} either."
    checkpoints = [folder.name for folder in list_checkpoints(parent)]
    if checkpoints:
        return f"The checkpoints there are: {_shown(checkpoints[::-1])}."
    return f"There is no checkpoint in {parent}."


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise _damaged(folder, MANIFEST, f"it is larger than {_LARGEST_MANIFEST} bytes")
    data = path.read_bytes()
    try:
        manifest = parse_json(data)
    except ValueError as error:
        raise _damaged(folder, MANIFEST, str(error)) from error
    content = dict(manifest) if isinstance(manifest, dict) else {}
    if content.get("format") != FORMAT and "manifest_sha256" not in content:
        raise CheckpointError(
            f"This is not a trainlab checkpoint: its {MANIFEST} is of another format. Received: {folder}. "
            "Pass a folder that trainlab wrote."
        )
    content.pop("manifest_sha256", None)
    if not _renders_to(content, data):
        raise _damaged(folder, MANIFEST, "it is not what its own checksum says")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"The checkpoint {folder} is of a format version that this trainlab does not read. "
            f"Received: {content.get('format_version')!r}. Use the version of trainlab that wrote it."
        )
    _check_shape(folder, content)
    return content


def _renders_to(content: dict[str, Any], data: bytes) -> bool:
    try:
        return render_manifest(content) == data
    except (ValueError, RecursionError):  # a number that no float holds, or nesting that no manifest has
        return False


def _check_shape(folder: Path, manifest: dict[str, Any]) -> None:
    """A checksum says that a manifest is as it was written, not that trainlab wrote it."""
    files, weights, state = manifest.get("files"), manifest.get("weights"), manifest.get("state")
    if not isinstance(files, dict) or not all(map(_is_file_entry, files.values())):
        raise _damaged(folder, MANIFEST, "its files are not listed with their sizes and checksums")
    unsafe = [name for name in files if not is_inside(name)]
    if unsafe:
        raise _damaged(folder, MANIFEST, f"it names a file outside of its folder, {unsafe[0][:200]!r}")
    if not isinstance(state, dict) or not all(_is_in(files, state.get(part)) for part in ("structure", "tensors")):
        raise _damaged(folder, MANIFEST, "it does not name the files of the state")
    roles = list(weights.values()) if isinstance(weights, dict) else [None]
    if not all(isinstance(models, dict) and all(_is_in(files, file) for file in models.values()) for models in roles):
        raise _damaged(folder, MANIFEST, "it does not name the files of the weights")
    if type(manifest.get("sequence")) is not int or not isinstance(manifest.get("trial_class"), str):
        raise _damaged(folder, MANIFEST, "its sequence is no integer, or its trial_class no text")
    for key in ("progress", "versions"):
        if not isinstance(manifest.get(key), dict):
            raise _damaged(folder, MANIFEST, f"its {key} is no object")
    for key in ("hparams", "exp_conf"):
        if key not in manifest:
            raise _damaged(folder, MANIFEST, f"it has no {key}")


def _is_in(files: dict[str, Any], name: Any) -> bool:
    return isinstance(name, str) and name in files


def _is_file_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    size, checksum = entry.get("size"), entry.get("sha256")
    has_checksum = isinstance(checksum, str) and _SHA256.fullmatch(checksum) is not None
    return has_checksum and type(size) is int and size >= 0


def _check_file(folder: Path, name: str, entry: dict[str, Any], verify: bool) -> None:
    path = folder / name
    if os.path.realpath(path) != os.path.join(os.path.realpath(folder), name):
        raise _damaged(folder, name, "it is a link")
    if not path.is_file():
        raise _damaged(folder, name, "it is missing")
    size = path.stat().st_size
    if size != entry["size"]:
        raise _damaged(folder, name, f"it has {size} bytes instead of {entry['size']}")
    if verify and file_sha256(path) != entry["sha256"]:
        raise _damaged(folder, name, "its content is not what was written")


def _damaged(folder: Path, name: str, reason: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"The checkpoint {folder} is damaged: {name}: {reason[:500]}. "
        "Use another checkpoint, or restore the file from a copy."
    )
