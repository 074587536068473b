"""A tree of plain values and tensors, as a JSON structure and a flat dict of tensors, and back.

What JSON has is written as it is: None, booleans, strings, finite floats, integers of 64 bits, lists, and dicts
whose keys are strings. Everything else is an object ``{"$": <tag>, ...}``. Reading looks tags up in a fixed table;
nothing that a structure says is ever imported or executed.
"""

import base64
import json
import math
import re
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from trainlab.errors import CheckpointDamagedError, CheckpointError

__all__ = ["decode", "encode", "free_name", "memory_key"]

_DEEPEST = 100
_ALLOWED = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, Counter, defaultdict, set, "
    "frozenset, torch.Tensor, torch.Size, torch.dtype, torch.device, numpy arrays and numpy numbers"
)
_FACTORIES: dict[str, type] = {"dict": dict, "float": float, "int": int, "list": list, "set": set}
_TORCH_DTYPES = {str(value)[6:]: value for value in vars(torch).values() if isinstance(value, torch.dtype)}
# What every version of safetensors holds; the others are stored as their bytes.
_STORED_AS_IS = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}
_STORED_AS_BYTES = {
    dtype
    for name, dtype in _TORCH_DTYPES.items()
    if name in ("uint16", "uint32", "uint64") or name.startswith("float8_")
}
_NUMPY_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}


def encode(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a tree into what JSON can hold and its tensors.

    Args:
        tree: Nested containers of plain values, tensors and numpy arrays. Tensors that share all their memory
            are stored once. Whether a tensor needs a gradient, and its device, are not kept.

    Returns:
        The structure, which ``json.dumps(structure, allow_nan=False)`` takes, and the tensors by the names that
        the structure gives them. The tensors still share memory with those of the tree.

    Raises:
        CheckpointError: A value is of another type; the message names the path to it.
    """
    encoder = _Encoder()
    return encoder.encode(tree, "", 0), encoder.tensors


def decode(structure: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put a tree together again.

    Args:
        structure: What ``encode`` returned, as it was or through JSON.
        tensors: The tensors by name. One that was shared is the same object in all its places.

    Returns:
        The tree, each value of the type it had.

    Raises:
        CheckpointDamagedError: The structure is not one that ``encode`` makes, or a tensor is missing.
    """
    return _Decoder(tensors).decode(structure, 0)


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        # A tensor must not be freed while its address is what tells it apart.
        self._seen: list[torch.Tensor] = []

    def encode(self, value: Any, path: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise CheckpointError(
                f"A state is nested more than {_DEEPEST} deep, or contains itself. Received: {path[:200]}…. Flatten it."
            )
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, np.generic):
            return _numpy_number(value, path)
        # Exact types: a subclass would come back as its base.
        encoder = _ENCODERS.get(type(value))
        if encoder is None:
            raise _refused(value, path)
        return encoder(self, value, path, depth)

    def items(self, values: Iterable[Any], path: str, depth: int) -> list[Any]:
        return [self.encode(value, f"{path}[{i}]", depth + 1) for i, value in enumerate(values)]

    def pairs(self, values: Mapping[Any, Any], path: str, depth: int) -> list[Any]:
        return [
            [
                self.encode(key, f"{_below(path, key)} (the key)", depth + 1),
                self.encode(value, _below(path, key), depth + 1),
            ]
            for key, value in values.items()
        ]

    def elements(self, values: Iterable[Any], path: str, depth: int) -> list[Any]:
        encoded = [self.encode(value, f"{path}{{}}", depth + 1) for value in values]
        return sorted(encoded, key=json.dumps)  # the same file for the same set, whatever the order of hashes

    def array(self, value: np.ndarray[Any, Any], path: str, depth: int) -> Any:
        name = value.dtype.name
        if _NUMPY_DTYPES.get(name) != value.dtype:
            raise _refused(value, path, f"of dtype {value.dtype}")
        node = self._tensor(torch.from_numpy(np.array(value, order="C")), path)
        return {"$": "ndarray", "dtype": name, "v": node}

    def _tensor(self, value: torch.Tensor, path: str) -> Any:
        _check_tensor(value, path)
        self._seen.append(value)
        node: dict[str, Any] = {"$": "tensor", "v": self._stored_name(value, path)}
        if value.is_complex():
            node["complex"] = True
        elif value.dtype in _STORED_AS_BYTES:
            node.update(dtype=str(value.dtype)[6:], shape=list(value.shape))
        return node

    def _stored_name(self, value: torch.Tensor, path: str) -> str:
        key = memory_key(value) or ("object", id(value))
        if key not in self._names:
            name = free_name(path or "value", self.tensors)
            self._names[key] = name
            self.tensors[name] = _storable(value.detach())
        return self._names[key]


def memory_key(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What two tensors have in common exactly if they are the same numbers in the same memory.

    Args:
        tensor: Any strided tensor.

    Returns:
        The key, which holds as long as the tensor lives; None for a tensor without elements, which has no memory.
    """
    if not tensor.numel():
        return None
    layout = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), *layout)


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name that is not taken: the wanted one, or the wanted one and a number.

    Args:
        wanted: The name to begin with.
        taken: The names in use.

    Returns:
        The name.
    """
    name, number = wanted, 1
    while name in taken or name == "__metadata__":
        number += 1
        name = f"{wanted}#{number}"
    return name


def _below(path: str, key: Any) -> str:
    shown = key if isinstance(key, str) else repr(key)
    return f"{path}/{shown}" if path else shown


def _refused(value: Any, path: str, what: str = "") -> CheckpointError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return CheckpointError(
        f"A checkpoint cannot hold this value: it is data only, and runs no code when it is read. "
        f"Received at {path or 'the top'}: {kind} {what}".rstrip()
        + f". Allowed: {_ALLOWED}. Return such values from state_dict() and build the object anew in load_state_dict()."
    )


def _check_tensor(value: torch.Tensor, path: str) -> None:
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise _refused(value, path, "(a subclass of Tensor)")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise _refused(value, path, f"of layout {value.layout} on {value.device}, quantized: {value.is_quantized}")
    if not (value.is_complex() or value.dtype in _STORED_AS_IS or value.dtype in _STORED_AS_BYTES):
        raise _refused(value, path, f"of dtype {value.dtype}")


def _storable(value: torch.Tensor) -> torch.Tensor:
    if value.is_complex():
        return torch.view_as_real(value.resolve_conj().resolve_neg())
    value = value.resolve_neg()
    if value.dtype not in _STORED_AS_BYTES:
        return value
    # A fresh copy, for a tensor of one or no element may have strides that cannot be viewed as bytes.
    return value.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _int(value: int) -> Any:
    # Beyond 64 bits JSON readers differ, and Python's own stops at 4,300 digits.
    return value if -(2**63) <= value < 2**64 else {"$": "int", "v": hex(value)}


def _float(value: float) -> Any:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value).hex()
    return {"$": "float", "v": {v: k for k, v in _NAMED_FLOATS.items()}.get(bits, bits)}


_NAMED_FLOATS = {"inf": "7ff0000000000000", "-inf": "fff0000000000000", "nan": "7ff8000000000000"}


def _is_plain(text: str) -> bool:
    """Whether JSON gives the same text back: a pair of lone surrogates would become one character."""
    return not any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else True


def _str(value: str) -> Any:
    return value if _is_plain(value) else {"$": "str", "v": value.encode("utf-8", "surrogatepass").hex()}


def _dict(encoder: _Encoder, value: dict[Any, Any], path: str, depth: int) -> Any:
    if all(type(key) is str and key != "$" and _is_plain(key) for key in value):
        return {key: encoder.encode(item, _below(path, key), depth + 1) for key, item in value.items()}
    return {"$": "dict", "v": encoder.pairs(value, path, depth)}


def _defaultdict(encoder: _Encoder, value: "defaultdict[Any, Any]", path: str, depth: int) -> Any:
    factory = value.default_factory
    names = [name for name, kind in _FACTORIES.items() if kind is factory]
    if factory is not None and not names:
        raise _refused(value, path, f"whose factory {factory!r} is none of {', '.join(_FACTORIES)}")
    return {"$": "defaultdict", "factory": names[0] if names else None, "v": encoder.pairs(value, path, depth)}


def _numpy_number(value: "np.generic", path: str) -> Any:
    if _NUMPY_DTYPES.get(value.dtype.name) != value.dtype:
        raise _refused(value, path, f"of dtype {value.dtype}")
    content = np.asarray(value, dtype=value.dtype.newbyteorder("<")).tobytes()
    return {"$": "numpy", "dtype": value.dtype.name, "v": content.hex()}


_ENCODERS: dict[type, Callable[[_Encoder, Any, str, int], Any]] = {
    type(None): lambda e, v, p, d: v,
    bool: lambda e, v, p, d: v,
    int: lambda e, v, p, d: _int(v),
    float: lambda e, v, p, d: _float(v),
    complex: lambda e, v, p, d: {"$": "complex", "v": [_float(v.real), _float(v.imag)]},
    str: lambda e, v, p, d: _str(v),
    bytes: lambda e, v, p, d: {"$": "bytes", "v": base64.b64encode(v).decode()},
    list: lambda e, v, p, d: e.items(v, p, d),
    tuple: lambda e, v, p, d: {"$": "tuple", "v": e.items(v, p, d)},
    dict: _dict,
    OrderedDict: lambda e, v, p, d: {"$": "OrderedDict", "v": e.pairs(v, p, d)},
    Counter: lambda e, v, p, d: {"$": "Counter", "v": e.pairs(v, p, d)},
    defaultdict: _defaultdict,
    set: lambda e, v, p, d: {"$": "set", "v": e.elements(v, p, d)},
    frozenset: lambda e, v, p, d: {"$": "frozenset", "v": e.elements(v, p, d)},
    torch.Size: lambda e, v, p, d: {"$": "torch.Size", "v": list(v)},
    torch.dtype: lambda e, v, p, d: {"$": "torch.dtype", "v": str(v)[6:]},
    torch.device: lambda e, v, p, d: {"$": "torch.device", "v": str(v)},
    np.ndarray: _Encoder.array,
}


class _Malformed(Exception):
    """A structure is not of the form that ``encode`` gives; carries the reason."""


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Malformed(otherwise)


class _Decoder:
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._made: dict[str, torch.Tensor] = {}

    def decode(self, node: Any, depth: int) -> Any:
        try:
            return self.value(node, depth)
        except _Malformed as error:
            raise _damaged(str(error)) from None
        except (TypeError, ValueError, RuntimeError, OverflowError, KeyError, struct.error) as error:
            # What the types themselves refuse: unhashable keys, bytes that are no base64, sizes that do not fit.
            raise _damaged(f"{type(error).__name__}: {error}") from error

    def value(self, node: Any, depth: int) -> Any:
        _check(depth <= _DEEPEST, f"it is nested more than {_DEEPEST} deep")
        if isinstance(node, float):
            _check(math.isfinite(node), f"the number {node} is too large")
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, list):
            return [self.value(item, depth + 1) for item in node]
        _check(isinstance(node, dict), f"it holds a {type(node).__name__}")
        if "$" not in node:
            return {key: self.value(item, depth + 1) for key, item in node.items()}
        tag = node["$"]
        decoder, fields = _DECODERS.get(tag, (None, frozenset())) if isinstance(tag, str) else (None, frozenset())
        if decoder is None:
            raise _Malformed(f"it holds something of an unknown kind, {str(tag)[:100]!r}")
        given = set(node) - {"$"}
        _check("v" in given and given <= fields, f"a {tag} has the fields {sorted(given)[:10]}")
        return decoder(self, node, depth)

    def items(self, node: dict[str, Any], depth: int) -> list[Any]:
        _check(isinstance(node["v"], list), f"a {node['$']} holds no list")
        return [self.value(item, depth + 1) for item in node["v"]]

    def pairs(self, node: dict[str, Any], depth: int) -> list[tuple[Any, Any]]:
        pairs = node["v"]
        is_right = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
        _check(is_right, f"a {node['$']} holds no list of pairs")
        return [(self.value(key, depth + 1), self.value(value, depth + 1)) for key, value in pairs]

    def tensor(self, node: dict[str, Any], depth: int) -> torch.Tensor:
        name = _text(node)
        if name not in self._made:
            _check(name in self._tensors, f"the tensor {name[:200]!r} is missing")
            self._made[name] = _restored(self._tensors[name], node)
        return self._made[name]

    def array(self, node: dict[str, Any], depth: int) -> Any:
        inner = node["v"]
        _check(isinstance(inner, dict) and inner.get("$") == "tensor", "an ndarray holds no tensor")
        array = self.value(inner, depth + 1).numpy()
        _check(array.dtype.name == node.get("dtype"), f"an array of {node.get('dtype')} is one of {array.dtype}")
        return array


def _damaged(reason: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"The state in this checkpoint is not of the form in which trainlab writes it. Received: {reason[:500]}. "
        "Use another checkpoint."
    )


def _text(node: dict[str, Any]) -> str:
    _check(isinstance(node["v"], str), f"a {node['$']} holds no text")
    return str(node["v"])


def _restored(stored: torch.Tensor, node: dict[str, Any]) -> torch.Tensor:
    if node.get("complex"):
        return torch.view_as_complex(stored)
    if "dtype" not in node:
        return stored
    dtype = _TORCH_DTYPES.get(str(node["dtype"]))
    if dtype is None or dtype not in _STORED_AS_BYTES or stored.dtype != torch.uint8:
        raise _Malformed(f"a tensor has the dtype {str(node['dtype'])[:100]!r}")
    return stored.view(dtype).reshape(_sizes(node.get("shape")))


def _sizes(sizes: Any) -> list[int]:
    is_right = isinstance(sizes, list) and all(type(size) is int and size >= 0 for size in sizes)
    _check(is_right, f"a shape is {str(sizes)[:100]}")
    return list(sizes)


def _read_int(decoder: _Decoder, node: dict[str, Any], depth: int) -> int:
    _check(re.fullmatch(r"-?0x[0-9a-f]+", _text(node)) is not None, "an int holds no hexadecimal number")
    return int(_text(node), 16)


def _read_float(decoder: _Decoder, node: dict[str, Any], depth: int) -> float:
    text = _text(node)
    value: float = struct.unpack(">d", bytes.fromhex(_NAMED_FLOATS.get(text, text)))[0]
    return value


def _read_complex(decoder: _Decoder, node: dict[str, Any], depth: int) -> complex:
    parts = decoder.items(node, depth)
    _check(len(parts) == 2 and all(type(part) is float for part in parts), "a complex number holds no two floats")
    return complex(*parts)


def _read_mapping(kind: Callable[[], Any]) -> Callable[[_Decoder, dict[str, Any], int], Any]:
    def read(decoder: _Decoder, node: dict[str, Any], depth: int) -> Any:
        made = kind()
        pairs = decoder.pairs(node, depth)
        for key, value in pairs:
            made[key] = value
        _check(len(made) == len(pairs), f"a {node['$']} has a key twice")
        return made

    return read


def _read_defaultdict(decoder: _Decoder, node: dict[str, Any], depth: int) -> Any:
    factory = node.get("factory")
    _check(factory is None or factory in _FACTORIES, f"a defaultdict has the factory {str(factory)[:100]!r}")
    made: defaultdict[Any, Any] = defaultdict(None if factory is None else _FACTORIES[factory])
    return _read_mapping(lambda: made)(decoder, node, depth)


def _read_set(kind: type) -> Callable[[_Decoder, dict[str, Any], int], Any]:
    def read(decoder: _Decoder, node: dict[str, Any], depth: int) -> Any:
        items = decoder.items(node, depth)
        made = kind(items)
        _check(len(made) == len(items), f"a {node['$']} has an element twice")
        return made

    return read


def _read_dtype(decoder: _Decoder, node: dict[str, Any], depth: int) -> torch.dtype:
    _check(_text(node) in _TORCH_DTYPES, f"there is no torch.dtype {_text(node)[:100]!r}")
    return _TORCH_DTYPES[_text(node)]


def _read_device(decoder: _Decoder, node: dict[str, Any], depth: int) -> torch.device:
    _check(re.fullmatch(r"[a-z]+(:[0-9]{1,3})?", _text(node)) is not None, "a torch.device has no device's name")
    return torch.device(_text(node))


def _read_number(decoder: _Decoder, node: dict[str, Any], depth: int) -> Any:
    dtype = _NUMPY_DTYPES.get(str(node.get("dtype")))
    if dtype is None:
        raise _Malformed(f"there is no numpy number of dtype {str(node.get('dtype'))[:100]!r}")
    content = bytes.fromhex(_text(node))
    _check(len(content) == dtype.itemsize, f"a {dtype.name} holds {len(content)} bytes")
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype)[0]


_V = frozenset({"v"})
_DECODERS: dict[str, tuple[Callable[[_Decoder, dict[str, Any], int], Any], frozenset[str]]] = {
    "int": (_read_int, _V),
    "float": (_read_float, _V),
    "complex": (_read_complex, _V),
    "str": (lambda d, node, depth: bytes.fromhex(_text(node)).decode("utf-8", "surrogatepass"), _V),
    "bytes": (lambda d, node, depth: base64.b64decode(_text(node), validate=True), _V),
    "tuple": (lambda d, node, depth: tuple(d.items(node, depth)), _V),
    "dict": (_read_mapping(dict), _V),
    "OrderedDict": (_read_mapping(OrderedDict), _V),
    "Counter": (_read_mapping(Counter), _V),
    "defaultdict": (_read_defaultdict, _V | {"factory"}),
    "set": (_read_set(set), _V),
    "frozenset": (_read_set(frozenset), _V),
    "torch.Size": (lambda d, node, depth: torch.Size(_sizes(node["v"])), _V),
    "torch.dtype": (_read_dtype, _V),
    "torch.device": (_read_device, _V),
    "tensor": (_Decoder.tensor, _V | {"complex", "dtype", "shape"}),
    "ndarray": (_Decoder.array, _V | {"dtype"}),
    "numpy": (_read_number, _V | {"dtype"}),
}
