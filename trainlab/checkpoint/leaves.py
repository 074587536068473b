"""Values without parts, as nodes of a structure and back; how each looks is told in ``tree``."""

import base64
import datetime
import math
import pathlib
import re
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = [
    "DEEPEST",
    "FACTORIES",
    "LEAF_READERS",
    "LEAF_WRITERS",
    "LONGEST_FLAG",
    "TORCH_DTYPES",
    "Fields",
    "Malformed",
    "Node",
    "Unstorable",
    "check",
    "fields",
    "hex_bytes",
    "int_node",
    "is_plain",
    "part",
    "sizes",
    "str_node",
    "text",
]

_T = TypeVar("_T")
Node = dict[str, Any]
# The fields that a node must have, and those that it may have.
Fields = tuple[frozenset[str], frozenset[str]]

DEEPEST = 100
LONGEST_FLAG = 4096  # bits; Python takes a flag apart in a time that grows with their square
FACTORIES: dict[str, type] = {"dict": dict, "float": float, "int": int, "list": list, "set": set}
TORCH_DTYPES = {str(value)[6:]: value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_LAYOUTS = {str(value)[6:]: value for value in vars(torch).values() if isinstance(value, torch.layout)}
_MEMORY_FORMATS = {str(value)[6:]: value for value in vars(torch).values() if isinstance(value, torch.memory_format)}
_NAMED_FLOATS = {"inf": "7ff0000000000000", "-inf": "fff0000000000000", "nan": "7ff8000000000000"}
_FLOAT_NAMES = {bits: name for name, bits in _NAMED_FLOATS.items()}
_PATHS: dict[str, type[pathlib.PurePath]] = {
    "Path": type(pathlib.Path()),
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}
_PATH_KINDS = {kind: name for name, kind in _PATHS.items()}

_INT = re.compile(r"-?0x[0-9a-f]+")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_DEVICE = re.compile(r"[a-z]+(:[0-9]{1,3})?")
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}"


class Unstorable(Exception):
    """A value that a checkpoint cannot hold; carries what is the matter with it, and what to do."""

    def __init__(self, cls: type, what: str = "", advice: str = "") -> None:
        super().__init__(what)
        self.kind = f"{cls.__module__}.{cls.__qualname__}"
        self.what = what
        self.advice = advice


class Malformed(Exception):
    """A structure is not of the form that ``encode`` gives; carries the reason."""


def check(holds: bool, otherwise: str) -> None:
    """Require that a structure is right.

    Args:
        holds: Whether it is.
        otherwise: What is wrong if it is not.

    Raises:
        Malformed: It is not.
    """
    if not holds:
        raise Malformed(otherwise)


def fields(required: str, optional: str = "") -> Fields:
    """The fields of a kind of node, besides ``$``.

    Args:
        required: Those that it must have, separated by spaces.
        optional: Those that it may have; default none.

    Returns:
        Both as sets.
    """
    return frozenset(required.split()), frozenset(optional.split())


def text(node: Node) -> str:
    """The ``v`` of a node, which must be text.

    Args:
        node: The node.

    Returns:
        The text.

    Raises:
        Malformed: It is none.
    """
    check(isinstance(node["v"], str), f"a {node['$']} holds no text")
    return str(node["v"])


def hex_bytes(node: Node) -> bytes:
    """The ``v`` of a node, which must be hexadecimal digits.

    Args:
        node: The node.

    Returns:
        The bytes.

    Raises:
        Malformed: It is something else.
    """
    check(_HEX.fullmatch(text(node)) is not None, f"a {node['$']} holds no hexadecimal digits")
    return bytes.fromhex(text(node))


def sizes(value: Any) -> list[int]:
    """Sizes of dimensions.

    Args:
        value: What should be a list of them.

    Returns:
        The sizes.

    Raises:
        Malformed: They are none.
    """
    is_right = isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)
    check(is_right, "sizes are no list of integers, or out of range")
    return list(value)


def part(node: Any, kind: type[_T]) -> _T:
    """Read a number or text inside of a leaf.

    Args:
        node: As JSON has it, or a node of its own.
        kind: int, float, str or ``datetime.timezone``.

    Returns:
        The value.

    Raises:
        Malformed: It is something else.
    """
    tag = kind.__name__
    if isinstance(node, dict):
        reader, (required, optional) = LEAF_READERS[tag]
        check(node.get("$") == tag and required <= set(node) - {"$"} <= required | optional, f"there is no {tag}")
        node = reader(node)
    elif isinstance(node, float) and not math.isfinite(node):
        raise Malformed(f"the number {node} is too large")
    if type(node) is not kind:
        raise Malformed(f"there is no {tag}")
    return node


def is_plain(value: str) -> bool:
    """Whether JSON gives a text back as it is: a pair of lone surrogates would become one character.

    Args:
        value: The text.

    Returns:
        Whether it does.
    """
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def str_node(value: str) -> Any:
    """Text, as it is or in hexadecimal.

    Args:
        value: The text.

    Returns:
        The node.
    """
    return value if is_plain(value) else {"$": "str", "v": value.encode("utf-8", "surrogatepass").hex()}


def int_node(value: int) -> Any:
    """An integer, as it is or in hexadecimal: beyond 64 bits JSON readers differ, and Python's stops at 4,300 digits.

    Args:
        value: The integer.

    Returns:
        The node.
    """
    return value if -(2**63) <= value < 2**64 else {"$": "int", "v": hex(value)}


def _float_node(value: float) -> Any:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value).hex()
    return {"$": "float", "v": _FLOAT_NAMES.get(bits, bits)}


def _time_nodes(value: "datetime.datetime | datetime.time") -> Node:
    told: Node = {"fold": 1} if value.fold else {}
    if value.tzinfo is not None:
        if type(value.tzinfo) is not datetime.timezone:
            kind = f"{type(value.tzinfo).__module__}.{type(value.tzinfo).__qualname__}"
            raise Unstorable(
                type(value), f"with a tzinfo of {kind}", "Convert it with .astimezone(datetime.timezone.utc)"
            )
        told["tz"] = _timezone_node(value.tzinfo)
    return told


def _timezone_node(value: datetime.timezone) -> Node:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]  # how pickle takes it apart
    node: Node = {"$": "timezone", "v": offset // datetime.timedelta(microseconds=1)}
    return {**node, "name": str_node(name[0])} if name else node


def _path_node(value: pathlib.PurePath) -> Node:
    if type(value)(str(value)) != value:
        raise Unstorable(type(value), "whose text would be read as another path", "Return it as text")
    return {"$": "path", "kind": _PATH_KINDS[type(value)], "v": str_node(str(value))}


def _size_node(value: torch.Size) -> Node:
    if any(size < 0 for size in value):
        raise Unstorable(type(value), f"with a negative size, {tuple(value)}", "Return it as a tuple")
    return {"$": "torch.Size", "v": [int(size) for size in value]}


LEAF_WRITERS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda v: v,
    bool: lambda v: v,
    int: int_node,
    float: _float_node,
    complex: lambda v: {"$": "complex", "v": [_float_node(v.real), _float_node(v.imag)]},
    str: str_node,
    bytes: lambda v: {"$": "bytes", "v": base64.b64encode(v).decode()},
    bytearray: lambda v: {"$": "bytearray", "v": base64.b64encode(v).decode()},
    range: lambda v: {"$": "range", "v": [int_node(n) for n in (v.start, v.stop, v.step)]},
    datetime.datetime: lambda v: {
        **{"$": "datetime", "v": v.replace(tzinfo=None).isoformat(timespec="microseconds")},
        **_time_nodes(v),
    },
    datetime.date: lambda v: {"$": "date", "v": v.isoformat()},
    datetime.time: lambda v: {
        **{"$": "time", "v": v.replace(tzinfo=None).isoformat(timespec="microseconds")},
        **_time_nodes(v),
    },
    datetime.timedelta: lambda v: {"$": "timedelta", "v": [v.days, v.seconds, v.microseconds]},
    datetime.timezone: _timezone_node,
    torch.Size: _size_node,
    torch.dtype: lambda v: {"$": "torch.dtype", "v": str(v)[6:]},
    torch.device: lambda v: {"$": "torch.device", "v": str(v)},
    torch.layout: lambda v: {"$": "torch.layout", "v": str(v)[6:]},
    torch.memory_format: lambda v: {"$": "torch.memory_format", "v": str(v)[6:]},
    **dict.fromkeys(_PATH_KINDS, _path_node),
}


def _read_int(node: Node) -> int:
    check(_INT.fullmatch(text(node)) is not None, "an int holds no hexadecimal number")
    return int(text(node), 16)


def _read_float(node: Node) -> float:
    bits = _NAMED_FLOATS.get(text(node), text(node))
    value: float = struct.unpack(">d", hex_bytes({**node, "v": bits}))[0]
    return value


def _read_complex(node: Node) -> complex:
    check(isinstance(node["v"], list) and len(node["v"]) == 2, "a complex number holds no two floats")
    return complex(part(node["v"][0], float), part(node["v"][1], float))


def _read_bytes(node: Node) -> bytes:
    return base64.b64decode(text(node), validate=True)


def _read_range(node: Node) -> range:
    check(isinstance(node["v"], list) and len(node["v"]) == 3, "a range holds no three integers")
    return range(*(part(number, int) for number in node["v"]))


def _read_date(node: Node) -> datetime.date:
    check(re.fullmatch(_DATE, text(node)) is not None, "a date is no YYYY-MM-DD")
    return datetime.date.fromisoformat(text(node))


def _read_datetime(node: Node) -> datetime.datetime:
    check(re.fullmatch(f"{_DATE}T{_TIME}", text(node)) is not None, "a datetime is no YYYY-MM-DDTHH:MM:SS.ffffff")
    return datetime.datetime.fromisoformat(text(node)).replace(**_time_fields(node))


def _read_time(node: Node) -> datetime.time:
    check(re.fullmatch(_TIME, text(node)) is not None, "a time is no HH:MM:SS.ffffff")
    return datetime.time.fromisoformat(text(node)).replace(**_time_fields(node))


def _time_fields(node: Node) -> dict[str, Any]:
    told: dict[str, Any] = {"fold": part(node.get("fold", 0), int)}
    return {**told, "tzinfo": part(node["tz"], datetime.timezone)} if "tz" in node else told


def _read_timedelta(node: Node) -> datetime.timedelta:
    numbers = node["v"]
    check(isinstance(numbers, list) and [type(n) for n in numbers] == [int] * 3, "a timedelta holds no three integers")
    made = datetime.timedelta(*numbers)
    check([made.days, made.seconds, made.microseconds] == numbers, "a timedelta is not in its usual form")
    return made


def _read_timezone(node: Node) -> datetime.timezone:
    offset = datetime.timedelta(microseconds=part(node["v"], int))
    return datetime.timezone(offset, part(node["name"], str)) if "name" in node else datetime.timezone(offset)


def _read_path(node: Node) -> pathlib.PurePath:
    check(isinstance(node["kind"], str) and node["kind"] in _PATHS, "there is no such kind of path")
    return _PATHS[node["kind"]](part(node["v"], str))


def _read_device(node: Node) -> torch.device:
    check(_DEVICE.fullmatch(text(node)) is not None, "a torch.device has no device's name")
    return torch.device(text(node))


def _read_named(values: dict[str, _T]) -> Callable[[Node], _T]:
    def read(node: Node) -> _T:
        check(text(node) in values, f"there is no {node['$']} {text(node)[:100]!r}")
        return values[text(node)]

    return read


LEAF_READERS: dict[str, tuple[Callable[[Node], Any], Fields]] = {
    "int": (_read_int, fields("v")),
    "float": (_read_float, fields("v")),
    "complex": (_read_complex, fields("v")),
    "str": (lambda node: hex_bytes(node).decode("utf-8", "surrogatepass"), fields("v")),
    "bytes": (_read_bytes, fields("v")),
    "bytearray": (lambda node: bytearray(_read_bytes(node)), fields("v")),
    "range": (_read_range, fields("v")),
    "datetime": (_read_datetime, fields("v", "fold tz")),
    "date": (_read_date, fields("v")),
    "time": (_read_time, fields("v", "fold tz")),
    "timedelta": (_read_timedelta, fields("v")),
    "timezone": (_read_timezone, fields("v", "name")),
    "path": (_read_path, fields("v kind")),
    "torch.Size": (lambda node: torch.Size(sizes(node["v"])), fields("v")),
    "torch.dtype": (_read_named(TORCH_DTYPES), fields("v")),
    "torch.device": (_read_device, fields("v")),
    "torch.layout": (_read_named(_LAYOUTS), fields("v")),
    "torch.memory_format": (_read_named(_MEMORY_FORMATS), fields("v")),
}
