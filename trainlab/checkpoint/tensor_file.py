"""Safetensors files: laid out before they are written, so that training is held for one copy and not for the file.

The format is that of safetensors: 8 bytes with the length of a header, the header (JSON: dtype, shape and place of each
tensor), the data. It is written and read here rather than by the library, because the library can neither fill a buffer
that is reused nor write it while other threads run, and reads by mapping the file: that takes a second pass to compare
it with its checksum, and a file cut short meanwhile kills the process. Tests read each file with the library, too.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch.nn.parameter import is_lazy

from trainlab.checkpoint.json_text import parse_json
from trainlab.checkpoint.parts import Box
from trainlab.checkpoint.tensor_forms import memory_key
from trainlab.errors import CheckpointDamagedError, CheckpointError, CheckpointMismatchError
from trainlab.storage import Checksum

__all__ = [
    "Stored",
    "TensorFile",
    "TensorIndex",
    "read_index",
    "read_rows",
    "read_tensors",
    "read_unless_parts",
]

_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# What only other writers give, and only newer versions of the library read.
_DTYPES["C64"] = torch.complex64
_COMPLEX = {torch.complex64, torch.complex128}
# The limit of the safetensors library.
_LARGEST_HEADER = 100_000_000
_MOST_DIMENSIONS = 64
_BEYOND = 2**63
# Small enough to be still in the processor's cache when it is hashed.
_READ_BYTES = 2**20


@dataclass(frozen=True)
class _Slot:
    """A tensor's place in the data of a file."""

    source: torch.Tensor
    begin: int
    end: int


class TensorFile:
    """What a safetensors file will hold: laid out, with the tensors as they are, not copied.

    Args:
        tensors: By name, of any shape and device. Of those that share all their memory the first is stored, and the
            others are named in the file's metadata, ``aliases``, a JSON object from name to stored name. Complex ones
            are stored as pairs of numbers and named in ``complex``, a JSON array. Those that are conjugated or negated
            in name only are copied at once.
        parts: Of those that are parts of larger ones the place in it, and the sizes of the whole. They are named in
            ``parts``. Default none.

    Attributes:
        header: The file's beginning, up to the data.
        size: The bytes of the data.
        parts: As given, of those that are stored under their own name; each with its dtype.

    Raises:
        CheckpointError: A tensor is of a kind that safetensors does not hold.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], parts: Mapping[str, tuple[Box, tuple[int, ...]]] | None = None
    ) -> None:
        stored, metadata = _stored(tensors, parts or {})
        self.parts = {name: (*place, tensors[name].dtype) for name, place in (parts or {}).items() if name in stored}
        if self.parts:
            told = {name: {"shape": whole, "offset": box.offset} for name, (box, whole, _) in self.parts.items()}
            metadata["parts"] = json.dumps(told)
        self._slots: list[_Slot] = []
        entries: dict[str, Any] = {"__metadata__": metadata}
        end = 0
        # Wide ones first, so that each begins at a multiple of its width.
        for name, tensor in sorted(stored.items(), key=lambda item: -item[1].element_size()):
            begin, end = end, end + tensor.numel() * tensor.element_size()
            entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
            if end > begin:
                self._slots.append(_Slot(tensor, begin, end))
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > _LARGEST_HEADER:
            raise CheckpointError(
                f"A checkpoint cannot hold so many tensors: their names and shapes take {len(text)} bytes, and a file "
                f"may have {_LARGEST_HEADER} of them. Join small tensors into larger ones."
            )
        self.header = len(text).to_bytes(8, "little") + text
        self.size = end

    @property
    def sources(self) -> list[torch.Tensor]:
        """The tensors that have data, in the order of the file, not copied."""
        return [slot.source for slot in self._slots]

    def targets(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Lay the tensors out in a buffer, where they are as in the file.

        Args:
            buffer: uint8, ``(size,)``, on the CPU, beginning at a multiple of 16.

        Returns:
            Views of the buffer, one for each of ``sources``, of its shape and dtype.
        """
        return [buffer[slot.begin : slot.end].view(slot.source.dtype).view(slot.source.shape) for slot in self._slots]

    def forget_sources(self) -> None:
        """Let the tensors go once they are copied, for nobody else may need them; ``pieces`` needs a buffer then."""
        self._slots = []

    def pieces(self, buffer: torch.Tensor | None = None) -> Iterator[memoryview]:
        """Give the file's bytes.

        Args:
            buffer: the data, into whose ``targets`` the tensors were copied. Default: the tensors as they are now.

        Returns:
            The bytes, in pieces of any size.
        """
        yield memoryview(self.header)
        if buffer is not None:
            if self.size:
                yield _bytes_of(buffer[: self.size])
            return
        for slot in self._slots:
            yield _bytes_of(slot.source.contiguous().cpu())


def read_tensors(file: BinaryIO, *, size: int, checksum: str | None, name: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file of whole tensors, and compare it with its checksum on the way.

    Args:
        file: The file, at its beginning.
        size: How many bytes it has; no more are allocated.
        checksum: ``algorithm:digits``; None to believe the file as it is.
        name: What to call it in errors.

    Returns:
        The tensors by name, on the CPU, each in memory of its own; tied ones are one object.

    Raises:
        CheckpointDamagedError: The file is no safetensors file, or not the one that was written.
        CheckpointMismatchError: It holds only a part of a tensor.
        CheckpointError: There is not enough memory.
        OSError: It cannot be read.
    """
    tensors, parts = _read_all(file, size=size, checksum=checksum, name=name, takes_parts=True)
    partial = [key for key, (box, whole) in parts.items() if box.shape != whole]
    if partial:
        raise CheckpointMismatchError(
            f"This file holds only parts of tensors, and others are in the files of other ranks. Received: {name}, "
            f"with {partial[0][:200]!r}. Pass the checkpoint's folder."
        )
    return tensors or {}


def read_unless_parts(file: BinaryIO, *, size: int, checksum: str | None, name: str) -> dict[str, torch.Tensor] | None:
    """Read a safetensors file as ``read_tensors``, if it holds no parts of tensors.

    Args:
        file: The file, at its beginning.
        size: How many bytes it has; no more are allocated.
        checksum: ``algorithm:digits``; None to believe the file as it is.
        name: What to call it in errors.

    Returns:
        As ``read_tensors``; None if it holds parts, of which nothing was read, and which were not compared.

    Raises:
        CheckpointDamagedError: The file is no safetensors file, or not the one that was written.
        CheckpointError: There is not enough memory.
        OSError: It cannot be read.
    """
    return _read_all(file, size=size, checksum=checksum, name=name, takes_parts=False)[0]


def _read_all(
    file: BinaryIO, *, size: int, checksum: str | None, name: str, takes_parts: bool
) -> tuple[dict[str, torch.Tensor] | None, dict[str, tuple[Box, tuple[int, ...]]]]:
    reader = _Reader(file, checksum)
    with _explained(name, size):
        entries, metadata = _read_header(reader, size)
        if "parts" in metadata and not takes_parts:
            return None, {}
        tensors = {key: _read_tensor(reader, key, dtype, shape) for key, (dtype, shape) in entries}
        if reader.read_any():
            raise _MalformedError("it goes on after its end")
        reader.compare()
        completed = _completed(tensors, metadata)
        return completed, _parts_in(metadata, completed)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, as its header tells.

    Attributes:
        name: under which name it is stored.
        dtype: its dtype.
        shape: its sizes.
        part: if it is a part of a larger one: which, and the sizes of the whole.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    part: tuple[Box, tuple[int, ...]] | None


@dataclass(frozen=True)
class TensorIndex:
    """What a file holds, without its data.

    Attributes:
        tensors: by name; tied ones are one object.
        begins: by the name under which they are stored: where the data begins in the file.
    """

    tensors: dict[str, Stored] = field(default_factory=dict)
    begins: dict[str, int] = field(default_factory=dict)


def read_index(file: BinaryIO, *, size: int, name: str) -> TensorIndex:
    """Read what a safetensors file holds, from its header alone.

    Args:
        file: The file, at its beginning.
        size: How many bytes it has.
        name: What to call it in errors.

    Returns:
        What it holds.

    Raises:
        CheckpointDamagedError: The file is no safetensors file.
        OSError: It cannot be read.
    """
    with _explained(name, size):
        reader = _Reader(file, None)
        entries, metadata = _read_header(reader, size)
        begins, begin = {}, size - sum(math.prod(shape) * dtype.itemsize for _, (dtype, shape) in entries)
        for key, (dtype, shape) in entries:
            begins[key] = begin
            begin += math.prod(shape) * dtype.itemsize
        forms = {key: torch.empty(shape, dtype=dtype, device="meta") for key, (dtype, shape) in entries}
        names = {id(form): key for key, form in forms.items()}
        completed = _completed(dict(forms), metadata)
        for key, form in forms.items():  # a complex one is another object now
            names[id(completed[key])] = names[id(form)]
        parts = _parts_in(metadata, completed)
        stored = {key: Stored(key, completed[key].dtype, tuple(completed[key].shape), parts.get(key)) for key in forms}
        return TensorIndex({key: stored[names[id(form)]] for key, form in completed.items()}, begins)


def read_rows(file: BinaryIO, index: TensorIndex, stored: Stored, begin: int, end: int, *, name: str) -> torch.Tensor:
    """Read of one tensor of a file the rows from one number to another.

    Args:
        file: The file.
        index: What ``read_index`` gave of it.
        stored: Which tensor.
        begin: The first row; of a tensor without dimensions 0.
        end: The row after the last; of a tensor without dimensions 1.
        name: What to call the file in errors.

    Returns:
        The rows, on the CPU, in memory of their own; a tensor without dimensions as it is.

    Raises:
        CheckpointDamagedError: The file ends too early, or holds booleans that are none.
        CheckpointError: There is not enough memory.
        OSError: It cannot be read.
    """
    inner = stored.shape[1:]
    wanted = [end - begin, *inner] if stored.shape else []
    dtype = stored.dtype
    if dtype in _COMPLEX:
        wanted.append(2)
        dtype = dtype.to_real()
    # C64 in a header is another writer's; what is complex to us is stored as pairs of the same size.
    file.seek(index.begins[stored.name] + begin * math.prod(inner) * stored.dtype.itemsize)
    with _explained(name, index.begins[stored.name]):
        read = _read_tensor(_Reader(file, None), stored.name, dtype, wanted)
    return torch.view_as_complex(read) if stored.dtype in _COMPLEX else read


@contextmanager
def _explained(name: str, size: int) -> Iterator[None]:
    try:
        yield
    except (_MalformedError, ValueError) as error:
        raise CheckpointDamagedError(
            f"A file of tensors is damaged: {str(error)[:500]}. Received: {name}. "
            "Use another one, or restore it from a copy."
        ) from error
    except MemoryError as error:
        raise CheckpointError(
            f"There is not enough memory to read {name}, which has {size} bytes: {error}. "
            "Close other programs, or use a machine with more."
        ) from error


class _MalformedError(Exception):
    """A file is not what ``TensorFile`` or another writer of safetensors gives; carries the reason."""


class _Reader:
    def __init__(self, file: BinaryIO, checksum: str | None) -> None:
        self._file = file
        self._expected = checksum
        self._checksum = None if checksum is None else Checksum(checksum.partition(":")[0])

    def read(self, size: int) -> bytearray:
        data = bytearray(size)
        self.fill(memoryview(data))
        return data

    def fill(self, data: memoryview) -> None:
        for begin in range(0, len(data), _READ_BYTES):
            piece = data[begin : begin + _READ_BYTES]
            done = 0
            while done < len(piece):
                count = self._file.readinto(piece[done:])  # type: ignore[attr-defined]  # every binary file has it
                if not count:
                    raise _MalformedError("it ends too early")
                done += count
            if self._checksum is not None:
                self._checksum.update(piece)

    def read_any(self) -> bytes:
        return self._file.read(1)

    def compare(self) -> None:
        if self._checksum is not None and self._checksum.text != self._expected:
            raise _MalformedError("its content is not what was written")


def _read_header(reader: _Reader, size: int) -> tuple[list[tuple[str, tuple[torch.dtype, list[int]]]], dict[str, str]]:
    """The tensors in the order of their data, and the metadata."""
    if size < 8:
        raise _MalformedError(f"it has {size} bytes")
    length = int.from_bytes(reader.read(8), "little")
    if length > min(size - 8, _LARGEST_HEADER):
        raise _MalformedError(f"its header is said to have {length} bytes")
    header = reader.read(length)
    if header[:1] != b"{":
        raise _MalformedError("its header does not begin with an object")
    return _checked_header(parse_json(header), size - 8 - length)


def _read_tensor(reader: _Reader, key: str, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    try:
        tensor = torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # the shape was checked, so this is what torch says instead of MemoryError
        raise MemoryError(str(error)) from error
    if tensor.numel():
        content = _bytes_of(tensor)
        reader.fill(content)
        if dtype is torch.bool and tensor.view(torch.uint8).max() > 1:
            raise _MalformedError(f"{key[:200]!r} holds booleans that are neither 0 nor 1")
    return tensor


def _stored(
    tensors: Mapping[str, torch.Tensor], parts: Mapping[str, object]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What is stored under its own name, and the metadata that names the rest."""
    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    complex_names = []
    for name, tensor in tensors.items():
        _check_storable(name, tensor)
        memory = memory_key(tensor)
        key = None if memory is None else (*memory, parts.get(name))
        if key is not None and key in first:
            aliases[name] = first[key]
            continue
        if key is not None:
            first[key] = name
        own = tensor.detach()
        if own.is_complex():
            complex_names.append(name)
            own = torch.view_as_real(own.resolve_conj())
        stored[name] = own.resolve_neg()
    metadata = {"format": "pt"}
    if aliases:
        metadata["aliases"] = json.dumps(aliases)
    if complex_names:
        metadata["complex"] = json.dumps(complex_names)
    return stored, metadata


def _check_storable(name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor) or hasattr(type(tensor), "__tensor_flatten__"):  # the latter: a wrapper around others
        what = f"a {type(tensor).__qualname__}"
    elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        what = f"a tensor of layout {tensor.layout} on {tensor.device}"
    elif tensor.dtype not in _NAMES and tensor.dtype not in _COMPLEX:
        what = f"a tensor of {tensor.dtype}"
    elif name == "__metadata__" or any("\ud800" <= character <= "\udfff" for character in name):
        what = "a tensor of a name that safetensors cannot have"
    else:
        return
    raise CheckpointError(
        f"A checkpoint cannot hold these weights. Received: {name}, {what}. "
        "Keep it out of the state dict (register_buffer with persistent=False), or convert it to a dense tensor."
    )


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU that has elements."""
    flat = tensor.view(-1)
    # A single element may have any stride, with which torch refuses another view of it.
    array: Any = flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy()
    return memoryview(array)


def _checked_header(
    header: Any, data_size: int
) -> tuple[list[tuple[str, tuple[torch.dtype, list[int]]]], dict[str, str]]:
    """The tensors in the order of their data, which must follow each other without a gap, and the metadata."""
    if not isinstance(header, dict):
        raise _MalformedError("its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _MalformedError("its metadata is no object of texts")
    entries = [(*_checked_entry(key, entry), key) for key, entry in header.items()]
    entries.sort(key=lambda entry: entry[:2])
    end = 0
    for begin, until, _, _, key in entries:
        if begin != end:
            raise _MalformedError(f"the data of {key[:200]!r} begins at {begin} instead of {end}")
        end = until
    if end != data_size:
        raise _MalformedError(f"it holds {data_size} bytes of data, and its header tells of {end}")
    return [(key, (dtype, shape)) for _, _, dtype, shape, key in entries], metadata


def _checked_entry(key: str, entry: Any) -> tuple[int, int, torch.dtype, list[int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _MalformedError(f"the entry of {key[:200]!r} has not exactly dtype, shape and data_offsets")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise _MalformedError(f"{key[:200]!r} has the dtype {str(name)[:100]!r}, which is not read")
    # A shape without elements may be huge otherwise, and its strides overflow.
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS or _strides_end(shape) * dtype.itemsize >= _BEYOND:
        raise _MalformedError(f"{key[:200]!r} has the shape {str(shape)[:100]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _MalformedError(f"{key[:200]!r} has the offsets {str(offsets)[:100]}")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise _MalformedError(f"{key[:200]!r} of shape {str(shape)[:100]} has {end - begin} bytes")
    return begin, end, dtype, shape


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _BEYOND for value in values)


def _strides_end(shape: list[int]) -> int:
    return math.prod(max(size, 1) for size in shape)


def _completed(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, torch.Tensor]:
    for name in _listed(metadata, "complex", list):
        found = tensors.get(name)
        if found is None or found.dtype not in (torch.float32, torch.float64) or found.shape[-1:] != (2,):
            raise _MalformedError(f"{str(name)[:200]!r} is said to be complex")
        tensors[name] = torch.view_as_complex(found)
    for name, stored in _listed(metadata, "aliases", dict).items():
        if name in tensors or stored not in tensors:
            raise _MalformedError(f"{str(name)[:200]!r} is said to be {str(stored)[:200]!r}")
        tensors[name] = tensors[stored]
    return tensors


def _parts_in(
    metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> dict[str, tuple[Box, tuple[int, ...]]]:
    """Where the tensors that are parts of larger ones lie in them, and the sizes of these."""
    parts = {}
    for name, told in _parsed(metadata, "parts", dict).items():
        is_right = isinstance(told, dict) and told.keys() == {"shape", "offset"} and name in tensors
        if not is_right or not _are_sizes(told["shape"]) or not _are_sizes(told["offset"]):
            raise _MalformedError(f"{name[:200]!r} is said to be a part, {str(told)[:100]}")
        box, whole = Box(tuple(told["offset"]), tuple(tensors[name].shape)), tuple(told["shape"])
        are_as_many = len(box.offset) == len(box.shape) == len(whole)
        lies_in_it = are_as_many and all(map(int.__le__, box.ends, whole))
        if not lies_in_it or 0 in box.shape or math.prod(whole) >= _BEYOND:
            raise _MalformedError(f"{name[:200]!r} is said to be a part that is none, {str(told)[:100]}")
        parts[name] = (box, whole)
    return parts


def _listed(metadata: dict[str, str], key: str, kind: type) -> Any:
    found = _parsed(metadata, key, kind)
    names = found.values() if isinstance(found, dict) else found
    if not all(isinstance(name, str) for name in names):
        raise _MalformedError(f"its metadata has the {key} {str(found)[:100]}")
    return found


def _parsed(metadata: Mapping[str, str], key: str, kind: type) -> Any:
    found = parse_json(metadata.get(key, "[]" if kind is list else "{}").encode())
    if not isinstance(found, kind):
        raise _MalformedError(f"its metadata has the {key} {str(found)[:100]}")
    return found
