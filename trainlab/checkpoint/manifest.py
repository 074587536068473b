"""The manifest of a checkpoint: what it holds, and how each part is known to be as it was written."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from trainlab.checkpoint.json_text import parse_json
from trainlab.checkpoint.migrations import FORMAT_VERSION, migrate
from trainlab.errors import CheckpointDamagedError, CheckpointError
from trainlab.storage import MARK, Checksum, is_checksum

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "LARGEST_MANIFEST",
    "LARGEST_SEQUENCE",
    "MANIFEST",
    "STATE_STRUCTURE",
    "STATE_TENSORS",
    "UNFINISHED",
    "FileEntry",
    "Manifest",
    "damaged",
    "is_inside",
    "read_manifest",
    "read_sequence",
    "render_manifest",
]

FORMAT = "trainlab-checkpoint"
MANIFEST = "manifest.json"
# In a folder from its first instant until the manifest is there, and again when it is being removed.
UNFINISHED = MARK
STATE_STRUCTURE = "state.json"
STATE_TENSORS = "state.safetensors"
LARGEST_MANIFEST = 64 * 2**20

_TOLD = ("progress", "trial_class", "hparams", "exp_conf", "versions")
_KEYS = {"format", "format_version", "sequence", "created", "files", "weights", "state", "ranks", *_TOLD}
# A number that every language's 64 bits hold.
_BEYOND = 2**63
LARGEST_SEQUENCE = _BEYOND - 1
_LONGEST_DATE = 100
_CHECKSUM = "manifest_checksum"
_CHECKSUM_OF_VERSION_1 = "manifest_sha256"
_END = re.compile(rb',\n "(' + f"{_CHECKSUM}|{_CHECKSUM_OF_VERSION_1}".encode() + rb')": "([0-9a-z_:]{1,100})"\n\}\n\Z')
_LONGEST_END = 200


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint, as its manifest tells.

    Attributes:
        size: its bytes.
        checksum: of all of them, as ``algorithm:digits``.
    """

    size: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest tells, its form checked.

    Attributes:
        sequence: its number among the checkpoints of its folder; a later one has a greater one.
        created: when it was written, a date and time of ISO 8601.
        files: every file but the manifest, by name.
        weights: the files' names by role and by the model's name.
        state: the files' names of the state's ``structure`` and ``tensors``.
        ranks: of each further rank that wrote it, from the second on: the names of its files, as ``weights`` and
            ``state``.
        progress: the run's counters, encoded.
        trial_class: the Trial's class, as ``module:Name``.
        hparams: the hyperparameters, encoded.
        exp_conf: the experiment's configuration, encoded.
        versions: the versions of what wrote it, encoded.
    """

    sequence: int
    created: str
    files: dict[str, FileEntry]
    weights: dict[str, dict[str, str]]
    state: dict[str, str]
    ranks: list[dict[str, Any]]
    progress: dict[str, Any]
    trial_class: str
    hparams: Any
    exp_conf: Any
    versions: dict[str, Any]


def render_manifest(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest: JSON with an indent of 1, its last member the checksum of the rest rendered likewise.

    Args:
        content: The manifest without ``manifest_checksum``.

    Returns:
        The file's content.

    Raises:
        ValueError: It holds a number that is not finite.
    """
    checksum = Checksum()
    checksum.update(_render(content))
    return _render({**content, _CHECKSUM: checksum.text})


def read_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest, of this or an earlier version of the format.

    Args:
        data: The file's content.
        where: The checkpoint's path or URL, for messages.

    Returns:
        What it tells.

    Raises:
        CheckpointDamagedError: It is not what was written.
        CheckpointError: It is of another format, or of a later version.
    """
    content = _verified(data, where)
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise damaged(where, MANIFEST, "it does not tell its format version")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"The checkpoint {where} is of a later format version than this trainlab reads, which is {FORMAT_VERSION}. "
            f"Received: {version}. Use the version of trainlab that wrote it, or a later one."
        )
    try:
        content = migrate(content)
    except ValueError as error:
        raise damaged(where, MANIFEST, str(error)) from error
    wrong = _wrong_in(content)
    if wrong:
        raise damaged(where, MANIFEST, wrong)
    files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
    return Manifest(files=files, **{key: content[key] for key in _KEYS - {"format", "format_version", "files"}})


def read_sequence(data: bytes) -> int | None:
    """The number of a checkpoint of any version, earlier or later.

    Args:
        data: The content of its manifest.

    Returns:
        Its sequence; None if the manifest is damaged.
    """
    try:
        sequence = _verified(data, "").get("sequence")
    except CheckpointError:
        return None
    return sequence if _is_count(sequence) else None


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


def damaged(where: str, name: str, reason: str) -> CheckpointDamagedError:
    """The error of a damaged checkpoint.

    Args:
        where: The checkpoint's path or URL.
        name: The file of it that is damaged.
        reason: What is wrong with the file.

    Returns:
        The error, to be raised.
    """
    return CheckpointDamagedError(
        f"The checkpoint {where} is damaged: {name}: {reason[:500]}. "
        "Use another checkpoint, or restore the file from a copy."
    )


def _render(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def _verified(data: bytes, where: str) -> dict[str, Any]:
    """The content without its checksum, if that is right. It may still be anything: a checksum is no signature."""
    if len(data) > LARGEST_MANIFEST:
        raise damaged(where, MANIFEST, f"it is larger than {LARGEST_MANIFEST} bytes")
    key = _checksum_found_right(data)
    try:
        content = parse_json(data)
    except ValueError as error:
        raise damaged(where, MANIFEST, str(error)) from error
    if not isinstance(content, dict) or (
        content.get("format") != FORMAT and not {_CHECKSUM, _CHECKSUM_OF_VERSION_1} & content.keys()
    ):
        raise CheckpointError(
            f"This is not a trainlab checkpoint: its {MANIFEST} is of another format. Received: {where}. "
            "Pass a folder that trainlab wrote."
        )
    key_of_its_version = _CHECKSUM_OF_VERSION_1 if content.get("format_version") == 1 else _CHECKSUM
    if key != key_of_its_version or content.get("format") != FORMAT:
        raise damaged(where, MANIFEST, "it is not what its own checksum says")
    del content[key]
    return content


def _checksum_found_right(data: bytes) -> str | None:
    """The name of the checksum at the end of a manifest, if it is that of what stands before it."""
    found = _END.search(data[-_LONGEST_END:])
    if found is None:
        return None
    rest = data[: len(data) - len(found[0])] + b"\n}\n"
    key, given = found[1].decode(), found[2].decode()
    if key == _CHECKSUM_OF_VERSION_1:
        return key if hashlib.sha256(rest).hexdigest() == given else None
    checksum = Checksum()
    checksum.update(rest)
    return key if checksum.text == given else None


def _wrong_in(content: dict[str, Any]) -> str:
    """What is wrong with a manifest's form; empty if nothing is."""
    if content.keys() != _KEYS:
        return f"it has not exactly the members {', '.join(sorted(_KEYS))}: {str(sorted(content.keys() ^ _KEYS))[:300]}"
    if not _is_count(content["sequence"]):
        return "its sequence is no number from 1 to 2**63 - 1"
    if not isinstance(content["created"], str) or len(content["created"]) > _LONGEST_DATE:
        return "its created is no date"
    if not isinstance(content["trial_class"], str):
        return "its trial_class is no text"
    for key in ("progress", "versions"):
        if not isinstance(content[key], dict):
            return f"its {key} is no object"
    return _wrong_in_files(content["files"]) or _wrong_in_use(content)


def _wrong_in_files(files: Any) -> str:
    if not isinstance(files, dict) or not all(map(_is_file_entry, files.values())):
        return "its files are not listed with their sizes and checksums"
    unsafe = [name for name in files if not is_inside(name)]
    if unsafe:
        return f"it names a file outside of its folder, {unsafe[0][:200]!r}"
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    if folders & files.keys():
        return "it lists a file and others below it"
    if sum(entry["size"] for entry in files.values()) >= _BEYOND:
        return "its files are larger than any disk"
    return ""


def _wrong_in_use(content: dict[str, Any]) -> str:
    """No file is used twice, so that what is read is never more than what is there."""
    files, ranks, used = content["files"], content["ranks"], []
    if not isinstance(ranks, list) or not all(isinstance(o, dict) and o.keys() == {"weights", "state"} for o in ranks):
        return "it does not list the files of further ranks"
    for state, weights in [(of["state"], of["weights"]) for of in (content, *ranks)]:
        if not isinstance(state, dict) or state.keys() != {"structure", "tensors"}:
            return "it does not name the files of the state"
        if not isinstance(weights, dict) or not all(isinstance(models, dict) for models in weights.values()):
            return "it does not name the files of the weights"
        used += [*state.values(), *(file for models in weights.values() for file in models.values())]
    if not all(isinstance(name, str) and name in files for name in used):
        return "it does not name the files of the state and the weights among its files"
    own = {(role, model) for role, models in content["weights"].items() for model in models}
    others = {(role, model) for of in ranks for role, models in of["weights"].items() for model in models}
    if not others <= own:
        return "a further rank has weights of a model that there is not"
    return "it uses a file twice" if len(set(used)) != len(used) else ""


def _is_file_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"size", "checksum"}:
        return False
    size = entry["size"]
    return is_checksum(entry["checksum"]) and type(size) is int and 0 <= size < _BEYOND


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < _BEYOND
