"""Snapshot: what a checkpoint will hold; Staging: the memory that it is copied to while training waits."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trainlab.checkpoint.classes import kind_of
from trainlab.checkpoint.encoding import Encoder
from trainlab.checkpoint.manifest import STATE_STRUCTURE, STATE_TENSORS
from trainlab.checkpoint.parts import Box
from trainlab.checkpoint.sharding import is_sharded, part_of
from trainlab.checkpoint.tensor_file import TensorFile
from trainlab.checkpoint.tree import encode, free_name
from trainlab.errors import CheckpointError, InvalidValueError

__all__ = ["Contents", "Snapshot", "Staging", "folder_of_rank"]

Weights = Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]]
# The files of a checkpoint by name, each with its bytes in pieces.
Contents = list[tuple[str, Iterator[memoryview]]]

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,50}")
_TOLD: dict[str, Any] = {"progress": {}, "trial_class": "", "hparams": None, "exp_conf": None, "versions": {}}
# Each file's data begins at a multiple of this in the staging memory, a cache line.
_ALIGNMENT = 64
# Some milliseconds' worth of JSON.
_LIST_PIECE = 2_000
_TEXT_PIECE = 2**18


class Snapshot:
    """The content of a checkpoint, laid out into files. Tensors are not copied: they are still the live ones.

    Args:
        weights: State dicts by role (``model``) and by the model's name.
        state: Everything else: a tree of plain values and tensors, see ``encode``.
        details: What the manifest tells: ``progress``, ``trial_class`` (``module:Name``), ``hparams``, ``exp_conf``
            and ``versions``. Values that are no data are written as their ``str``.
        classes: The enums, named tuples and dataclasses that ``state`` may hold, see ``encode``. Default: those that
            are registered.
        rank: Whose content it is, of a run of several processes. Default 0.
        ranks: How many they are. Of DTensors, which may stand anywhere in ``weights`` and ``state``, each rank lays out
            the part that it is to save; all give the same models in the same order. The first rank's weights and state
            are those of the run. On another rank ``weights`` are left out but for DTensors, and ``state`` is what it
            has of its own and, at the same places as on the first rank, what ``only_parts`` keeps of the first's.
            Default 1.

    Attributes:
        told: The details, as they stand in the manifest.
        weights: The file names by role and model; of a rank but the first only of those of which it has a part.
        state: The file names of the state's ``structure`` and ``tensors``.
        folder: The folder that the names begin with: ``rank-1/``, empty for the first rank.

    Raises:
        CheckpointError: ``state`` or ``weights`` hold what a checkpoint cannot.
        InvalidValueError: A role cannot name a file, or a detail is not known.
    """

    def __init__(
        self,
        *,
        weights: Weights,
        state: Any,
        details: Mapping[str, Any],
        classes: Mapping[str, type] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if not 0 <= rank < ranks:
            raise InvalidValueError(f"A rank is one of 0 to {ranks - 1}. Received: {rank}.")
        self.rank, self.ranks = rank, ranks
        self.folder = folder_of_rank(rank)
        encoder = Encoder(classes or {}, takes_parts=True)
        self._structure = encoder.encode(state)
        self.told = _told(details)
        named, files = _named(weights)
        laid_out = {file: _laid_out(tensors, is_first=rank == 0) for file, tensors in files.items()}
        self._files = {f"{self.folder}{file}": laid for file, laid in laid_out.items() if laid is not None}
        self.weights = {
            role: {name: f"{self.folder}{file}" for name, file in of.items() if laid_out[file] is not None}
            for role, of in named.items()
        }
        self.state = {"structure": f"{self.folder}{STATE_STRUCTURE}", "tensors": f"{self.folder}{STATE_TENSORS}"}
        self._files[self.state["tensors"]] = TensorFile(encoder.tensors, encoder.parts)

    @property
    def files(self) -> list[TensorFile]:
        """The files of tensors, in the order of ``contents``."""
        return list(self._files.values())

    @property
    def size(self) -> int:
        """The bytes that staging it takes."""
        return sum(_aligned(file.size) for file in self._files.values())

    def contents(self, sections: list[torch.Tensor] | None = None) -> Contents:
        """Give the files' bytes.

        Args:
            sections: The staged data of each file. Default: the tensors as they are when the pieces are asked for.

        Returns:
            The files; none of the pieces was made yet.
        """
        staged: list[torch.Tensor | None] = [None] * len(self._files) if sections is None else [*sections]
        contents: Contents = [
            (name, file.pieces(section)) for (name, file), section in zip(self._files.items(), staged, strict=True)
        ]
        return [*contents, (self.state["structure"], self._structure_pieces())]

    def told_parts(self) -> dict[str, dict[str, list[Any]]]:
        """Tell which parts of tensors the files hold.

        Returns:
            By the file's name on the first rank and by the tensor's: offset, shape, the whole's shape, and dtype.
        """
        return {
            name.removeprefix(self.folder): {
                part: [list(box.offset), list(box.shape), list(whole), str(dtype)]
                for part, (box, whole, dtype) in file.parts.items()
            }
            for name, file in self._files.items()
            if file.parts
        }

    def _structure_pieces(self) -> Iterator[memoryview]:
        texts, length = [], 0
        for text in _json_pieces(self._structure):
            texts.append(text)
            length += len(text)
            if length >= _TEXT_PIECE:
                yield memoryview("".join(texts).encode())
                texts, length = [], 0
        if texts:
            yield memoryview("".join(texts).encode())


class Staging:
    """Memory for copies of tensors, kept from one checkpoint to the next: fresh memory costs several times the copy.

    Args:
        pinned: Whether to pin it, so that CUDA copies straight into it.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._layout: list[list[tuple[torch.dtype, torch.Size]]] | None = None
        self._targets: list[torch.Tensor] = []

    def reserve(self, size: int) -> None:
        """See to it that there are ``size`` bytes, in memory that is really there.

        Args:
            size: How many bytes.
        """
        if self._buffer.numel() < size:
            self._layout, self._targets = None, []
            self._buffer = torch.empty(0, dtype=torch.uint8)  # the old memory is free before the new one is taken
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
            self._buffer.zero_()

    def copy(self, snapshot: Snapshot) -> list[torch.Tensor]:
        """Copy all tensors of a snapshot; they may change once this returns.

        Args:
            snapshot: What to copy.

        Returns:
            The data of each of its files, uint8.
        """
        self.reserve(snapshot.size)
        sections, begin = [], 0
        for file in snapshot.files:
            sections.append(self._buffer[begin : begin + file.size])
            begin += _aligned(file.size)
        sources = [source for file in snapshot.files for source in file.sources]
        layout = [[(source.dtype, source.shape) for source in file.sources] for file in snapshot.files]
        if layout != self._layout:
            pairs = zip(snapshot.files, sections, strict=True)
            self._targets = [target for file, section in pairs for target in file.targets(section)]
            self._layout = layout
        if sources:
            torch._foreach_copy_(self._targets, sources, non_blocking=self._pinned)
        for device in {source.device for source in sources if source.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        for file in snapshot.files:
            file.forget_sources()
        return sections

    def release(self) -> None:
        """Give the memory back."""
        self._layout, self._targets = None, []
        self._buffer = torch.empty(0, dtype=torch.uint8)


def _json_pieces(node: Any) -> Iterator[str]:
    """The JSON of a structure, of which no piece takes long: the interpreter's lock is held while one is made."""
    if isinstance(node, dict) and node and ("$" not in node or isinstance(node.get("v"), list)):
        for number, (key, value) in enumerate(node.items()):
            yield f"{', ' if number else '{'}{json.dumps(key)}: "
            yield from _json_pieces(value)
        yield "}"
    elif isinstance(node, list) and len(node) > _LIST_PIECE:
        yield "["
        for begin in range(0, len(node), _LIST_PIECE):
            piece = json.dumps(node[begin : begin + _LIST_PIECE], allow_nan=False)[1:-1]
            yield f", {piece}" if begin else piece
        yield "]"
    else:
        yield json.dumps(node, allow_nan=False)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _named(weights: Weights) -> tuple[dict[str, dict[str, str]], dict[str, Mapping[str, torch.Tensor]]]:
    """The file names by role and model, and the tensors by file name."""
    taken = {Path(STATE_TENSORS).stem}
    names: dict[str, dict[str, str]] = {}
    files: dict[str, Mapping[str, torch.Tensor]] = {}
    for role, models in weights.items():
        if not _ROLE.fullmatch(role):
            raise InvalidValueError(f"A role is made of letters, digits, _ and -. Received: {role!r}.")
        names[role] = {}
        for name, tensors in models.items():
            # The manifest has the name as it is; the file's only has what any file system takes.
            stem = role if len(models) == 1 else f"{role}.{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:100]}"
            stem = free_name(stem, taken)
            taken.add(stem)
            names[role][name] = f"{stem}.safetensors"
            files[f"{stem}.safetensors"] = tensors
    return names, files


def folder_of_rank(rank: int) -> str:
    """The beginning of the names of a rank's files.

    Args:
        rank: The rank.

    Returns:
        ``rank-1/``; empty for the first.
    """
    return f"rank-{rank}/" if rank else ""


def _laid_out(tensors: Mapping[str, torch.Tensor], *, is_first: bool) -> TensorFile | None:
    """A file of weights; None if this rank has nothing to save in it."""
    if not any(is_sharded(tensor) for tensor in tensors.values()):
        return TensorFile(tensors) if is_first else None
    stored: dict[str, torch.Tensor] = {}
    parts: dict[str, tuple[Box, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor) and tensor.numel():
            part = part_of(tensor)
            if part.is_mine:
                stored[name] = part.local
                parts[name] = (Box(part.offset, tuple(part.local.shape)), part.shape)
        elif is_first:
            stored[name] = torch.empty(tensor.shape, dtype=tensor.dtype) if is_sharded(tensor) else tensor
    return TensorFile(stored, parts) if is_first or stored else None


def _told(details: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in details if key not in _TOLD]
    if unknown:
        raise InvalidValueError(f"A manifest tells {', '.join(_TOLD)}. Received: {', '.join(map(repr, unknown))} too.")
    return {key: encode(_as_data(value))[0] for key, value in {**_TOLD, **details}.items()}


def _as_data(value: Any, depth: int = 0) -> Any:
    """The same, with everything that is no data replaced by its ``str``: what a manifest tells must not stop a run."""
    if depth > 50:
        return str(value)
    if kind_of(type(value)) is not None:
        return str(value)  # who reads the manifest may not know the class
    if isinstance(value, Mapping):
        return {_as_data(key, depth + 1): _as_data(item, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_as_data(item, depth + 1) for item in value)
    try:
        _, tensors = encode(value)
    except CheckpointError:
        return str(value)
    return str(value) if tensors else value
