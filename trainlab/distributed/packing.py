"""Values of the user's as bytes, for the way between the ranks of one job; tensors travel without being pickled."""

import io
import pickle
import struct
from typing import Any

import torch

from trainlab.errors import DistributedError, InvalidTypeError, TrainlabError

__all__ = ["is_packed", "pack", "pack_error", "unpack"]

_LENGTH = struct.Struct("!Q")
_VALUE, _REFUSED, _RAISED = b"v", b"r", b"e"


def pack(value: Any) -> bytes:
    """A value as bytes.

    Args:
        value: Anything that can be pickled. Tensors, wherever they are in it, go as their raw bytes, without their
            gradients; tensors that are sparse, quantized or of a class of their own are pickled as the rest.

    Returns:
        What ``unpack`` takes. For a value that cannot be pickled, the bytes tell so: ``unpack`` raises then, and so
        does every rank that gets them, rather than one rank alone.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    try:
        pickler.dump(value)
    except Exception as error:
        return _REFUSED + f"{type(value).__qualname__}: {type(error).__name__}: {error}".encode()
    content = stream.getvalue()
    return b"".join([_VALUE, _LENGTH.pack(len(content)), content, *(_raw(tensor) for tensor in pickler.tensors)])


def is_packed(content: bytes) -> bool:
    """Tell whether bytes hold a value.

    Args:
        content: What ``pack`` returned.

    Returns:
        False if the value could not be pickled: ``unpack`` will raise.
    """
    return content[:1] == _VALUE


def pack_error(error: BaseException) -> bytes:
    """An error as bytes: ``unpack`` raises it.

    Args:
        error: What was raised. One that cannot be pickled is told by its type and message: an error of trainlab's stays
            of its class, any other becomes a DistributedError.

    Returns:
        What ``unpack`` takes.
    """
    try:
        content = pickle.dumps(error)
        if type(pickle.loads(content)) is type(error):
            return _RAISED + content
    except Exception:
        pass  # it is told below
    if isinstance(error, TrainlabError):
        plain: BaseException = type(error).__new__(type(error))
        plain.args = (str(error),)
    else:
        plain = DistributedError(f"{type(error).__name__}: {error}")
    return _RAISED + pickle.dumps(plain)


def unpack(content: bytes) -> Any:
    """The value that ``pack`` was given.

    Args:
        content: What ``pack`` returned, on another rank of the same job: never what was read from a disk.

    Returns:
        The value. Tensors that were on a GPU are on this process's current one.

    Raises:
        InvalidTypeError: The value could not be pickled where it came from.
        BaseException: What ``pack_error`` was given.
    """
    kind, body = content[:1], memoryview(content)[1:]
    if kind == _REFUSED:
        raise InvalidTypeError(
            f"A value that goes to other ranks can be pickled. Received: {bytes(body).decode()}. "
            "Send numbers, strings, containers, arrays or tensors, and classes and functions of a module."
        )
    if kind == _RAISED:
        raise pickle.loads(body)
    (length,) = _LENGTH.unpack_from(body)
    end = _LENGTH.size + length
    return _Unpickler(io.BytesIO(body[_LENGTH.size : end]), body[end:]).load()


class _Pickler(pickle.Pickler):
    """Puts a tensor's form into the pickle and keeps the tensor itself apart."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._seen: dict[int, tuple[Any, ...]] = {}
        self._offset = 0

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_quantized:
            return None
        if value.device.type not in {"cpu", "cuda"}:
            return None
        if id(value) not in self._seen:
            self._seen[id(value)] = (self._offset, value.dtype, tuple(value.shape), value.device.type)
            self.tensors.append(value)
            self._offset += value.numel() * value.element_size()
        return self._seen[id(value)]


class _Unpickler(pickle.Unpickler):
    """Makes the tensors again; one that stood in several places is one again."""

    def __init__(self, stream: io.BytesIO, raw: memoryview) -> None:
        super().__init__(stream)
        self._raw = raw
        self._made: dict[int, torch.Tensor] = {}

    def persistent_load(self, form: tuple[Any, ...]) -> torch.Tensor:
        offset, dtype, shape, device = form
        tensor = torch.empty(shape, dtype=dtype)
        if not tensor.numel():
            return tensor.to(device)
        if offset not in self._made:
            count = tensor.numel() * tensor.element_size()
            _bytes_of(tensor).copy_(torch.frombuffer(bytearray(self._raw[offset : offset + count]), dtype=torch.uint8))
            self._made[offset] = tensor.to(device)
        return self._made[offset]


def _raw(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return _bytes_of(plain).numpy().tobytes() if plain.numel() else b""


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)  # a single element may have come with any stride
