"""From a tree to a structure and tensors. It runs while training is held, so its paths are cheap."""

import enum
import json
import reprlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from trainlab.checkpoint.arrays import array_tensor, numpy_name, numpy_node
from trainlab.checkpoint.classes import class_name, field_names, kind_of, known_class, what_is_not_kept
from trainlab.checkpoint.leaves import (
    DEEPEST,
    FACTORIES,
    LEAF_WRITERS,
    LONGEST_FLAG,
    Node,
    Unstorable,
    int_node,
    is_plain,
    str_node,
)
from trainlab.checkpoint.parts import Box
from trainlab.checkpoint.sharding import is_sharded, part_of, shared_key
from trainlab.checkpoint.tensor_forms import memory_key, storable, tensor_fields
from trainlab.errors import CheckpointError

__all__ = ["Encoder", "free_name", "path_text"]

_ALLOWED = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, OrderedDict, Counter, defaultdict, "
    "set, frozenset, deque, range, slice, datetime's and pathlib's classes, torch.Tensor (dense or sparse COO), "
    "torch.nn.Parameter, torch.Size, torch.dtype, torch.device, numpy arrays and scalars, and enums, named tuples and "
    "dataclasses that are registered"
)


class _Repr(reprlib.Repr):
    """A repr of bounded length, which no class of a user's can make fail."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if _is_short(x) else f"{hex(x)[:40]}…"  # Python refuses to write out huge ones


_repr = _Repr()


class Encoder:
    """Takes one tree apart.

    Args:
        classes: Classes whose members may be in it, by name, besides the registered ones.
        takes_parts: Whether DTensors may be in it, of which the part is stored that this rank is to save. Default not.

    Attributes:
        tensors: What was found, by stored name.
        parts: Of those that are parts of larger ones the place in it, and the sizes of the whole.
    """

    def __init__(self, classes: Mapping[str, type], *, takes_parts: bool = False) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.parts: dict[str, tuple[Box, tuple[int, ...]]] = {}
        self._takes_parts = takes_parts
        self._classes = classes
        # Where it is: texts for keys, pairs for everything else; ``path_text`` tells which.
        self._path: list[Any] = []
        self._is_hashed = 0
        # By address; the tensors are kept, for an address tells them apart only as long as they live.
        self._stored: dict[int, list[tuple[torch.Tensor, str]]] = {}
        self._checked: dict[type, tuple[str, str, tuple[str, ...]]] = {}
        # By what tells the same one; with what keeps the memory from becoming another's.
        self._sharded: dict[Any, tuple[torch.Tensor, str]] = {}
        self._part_names: set[str] = set()

    def encode(self, tree: Any) -> Any:
        """Make the structure.

        Args:
            tree: The tree.

        Returns:
            What JSON can hold.

        Raises:
            CheckpointError: A value is of a kind that cannot be stored; the message names the path to it.
        """
        try:
            return self._node(tree)
        except Unstorable as error:
            advice = (
                error.advice or "Return such values from state_dict() and build the object anew in load_state_dict()"
            )
            raise CheckpointError(
                "A checkpoint cannot hold this value: it is data only, and runs no code when it is read. "
                f"Received at {path_text(self._path) or 'the top'}: {error.kind} {error.what}".rstrip()
                + f". Allowed: {_ALLOWED}. {advice}."
            ) from None

    def _node(self, value: Any) -> Any:
        # Exact types: a subclass would come back as its base.
        writer = _WRITERS.get(type(value))
        return writer(self, value) if writer is not None else self._other(value)

    def _other(self, value: Any) -> Any:
        cls = type(value)
        if issubclass(cls, np.generic):
            return numpy_node(value)
        if self._takes_parts and is_sharded(value):
            return self._part(value)
        if kind_of(cls) is None:
            what = "(a subclass of Tensor)" if issubclass(cls, torch.Tensor) else ""
            raise Unstorable(type(value), what)
        kind, name, fields = self._known(cls)
        if kind == "enum":
            return {"$": "enum", "class": name, "v": _member(value)}
        return {"$": kind, "class": name, "v": self._named_parts(_field_values(value, kind, fields))}

    def _known(self, cls: type) -> tuple[str, str, tuple[str, ...]]:
        """The kind, name and fields of a class, which must be one that a resume finds."""
        if cls not in self._checked:
            name, kind = class_name(cls), str(kind_of(cls))
            known = known_class(name, self._classes)
            if known is not cls:
                where = path_text(self._path) or "the top"
                why = "it is not registered" if known is None else "another class is registered under its name"
                raise CheckpointError(
                    f"A checkpoint cannot hold a member of this class, for a resume could not restore it: {why}. "
                    f"Received at {where}: {name} ({kind}). Register it with "
                    f"`trainlab.checkpoint.register_class({cls.__qualname__})` or return plain data from state_dict()."
                )
            reason = what_is_not_kept(cls)
            if reason:
                raise Unstorable(cls, f", a dataclass of which not all would be kept: {reason}")
            self._checked[cls] = (kind, name, () if kind == "enum" else field_names(cls))
        return self._checked[cls]

    def _named_parts(self, values: Mapping[str, Any]) -> dict[str, Any]:
        path = self._down(values)
        made = {}
        for name, value in values.items():
            path[-1] = name
            made[name] = self._node(value)
        path.pop()
        return made

    def _down(self, values: Any) -> list[Any]:
        if len(self._path) >= DEEPEST and values:
            raise CheckpointError(
                f"A state is nested more than {DEEPEST} deep, or contains itself. "
                f"Received: {path_text(self._path)[:200]}…. Flatten it."
            )
        self._path.append("")
        return self._path

    def _items(self, values: Iterable[Any]) -> list[Any]:
        path = self._down(values)
        made = []
        for i, value in enumerate(values):
            path[-1] = ("[]", i)
            made.append(self._node(value))
        path.pop()
        return made

    def _dict(self, values: dict[Any, Any]) -> Any:
        for key in values:
            if type(key) is not str or key == "$" or not is_plain(key):
                return {"$": "dict", "v": self._pairs(values)}
        return self._named_parts(values)

    def _pairs(self, values: Mapping[Any, Any]) -> list[Any]:
        path = self._down(values)
        made = []
        for key, value in values.items():
            path[-1] = ("key", key)
            self._is_hashed += 1
            key_node = self._node(key)
            self._is_hashed -= 1
            path[-1] = key if type(key) is str else str(key) if type(key) is int and _is_short(key) else ("/", key)
            made.append([key_node, self._node(value)])
        path.pop()
        return made

    def _elements(self, values: Iterable[Any]) -> list[Any]:
        path = self._down(values)
        path[-1] = ("{}", None)
        self._is_hashed += 1
        made = [self._node(value) for value in values]
        self._is_hashed -= 1
        path.pop()
        return sorted(made, key=json.dumps)  # the same file for the same set, whatever the order of hashes

    def _defaultdict(self, value: "defaultdict[Any, Any]") -> Node:
        factory = value.default_factory
        names = [name for name, kind in FACTORIES.items() if kind is factory]
        if factory is not None and not names:
            raise Unstorable(type(value), f"whose factory {factory!r} is none of {', '.join(FACTORIES)}")
        return {"$": "defaultdict", "factory": names[0] if names else None, "v": self._pairs(value)}

    def _array(self, value: "np.ndarray[Any, Any]") -> Node:
        return {"$": "ndarray", "dtype": numpy_name(value.dtype), "v": self._tensor(array_tensor(value))}

    def _parameter(self, value: torch.Tensor) -> Node:
        return {"$": "Parameter", "requires_grad": value.requires_grad, "v": self._tensor(value.detach())}

    def _tensor(self, value: torch.Tensor) -> Node:
        if self._is_hashed:
            # It is compared as an object, so nothing would find the one that is restored.
            raise Unstorable(type(value), "as a key or an element of a set", "Use a name or a number as the key")
        if value.layout is torch.sparse_coo and not value.is_meta:
            return self._sparse(value)
        fields = tensor_fields(value)
        return {"$": "tensor", "v": self._stored_name(value), **fields}

    def _sparse(self, value: torch.Tensor) -> Node:
        value = value.detach()
        parts = self._named_parts({"values": value._values(), "indices": value._indices()})
        node: Node = {"$": "sparse_coo", "v": parts["values"], "indices": parts["indices"]}
        return {**node, "size": list(value.shape), "coalesced": value.is_coalesced()}

    def _stored_name(self, value: torch.Tensor) -> str:
        # One without elements has no address; it is known by itself.
        address = value.data_ptr() or id(value)
        there = self._stored.get(address)
        if there is None:
            there = self._stored[address] = []
        for other, name in there:
            if other is value or (value.numel() and memory_key(other) == memory_key(value)):
                return name
        name = self._free_name()
        there.append((value, name))
        self.tensors[name] = storable(value)
        return name

    def _part(self, value: torch.Tensor) -> Node:
        """A tensor of which each rank has a part: all of them give it the same name, by the place that it is at."""
        if self._is_hashed:
            raise Unstorable(type(value), "as a key or an element of a set", "Use a name or a number as the key")
        part = part_of(value)
        if not value.numel():
            return self._tensor(torch.empty(value.shape, dtype=value.dtype))
        tensor_fields(part.local)
        key = shared_key(value)
        if key in self._sharded:
            return {"$": "tensor", "v": self._sharded[key][1]}
        name = self._free_name()
        self._sharded[key] = (part.local, name)
        self._part_names.add(name)
        if part.is_mine:
            self.tensors[name] = part.local
            self.parts[name] = (Box(part.offset, tuple(part.local.shape)), part.shape)
        return {"$": "tensor", "v": name}

    def _free_name(self) -> str:
        name = path_text(self._path) or "value"
        if not name.isascii():
            name = name.encode("utf-8", "backslashreplace").decode()  # no file holds a lone surrogate
        if name in self.tensors or name in self._part_names or name == "__metadata__":
            name = free_name(name, {*self.tensors, *self._part_names})
        return name


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


def path_text(path: list[Any]) -> str:
    """A path as it stands in messages and in names of tensors.

    Args:
        path: The steps from the top. Text is a key; other steps are pairs: ``("[]", index)``, ``("/", key)``,
            ``("{}", None)`` for an element of a set, ``("key", key)`` for a key itself.

    Returns:
        The path, such as ``callbacks/ema/state/history[3]``.
    """
    try:
        return "/".join(path)
    except TypeError:
        return "".join(f"/{step}" if type(step) is str else _step_text(*step) for step in path).removeprefix("/")


def _is_short(number: int) -> bool:
    return number.bit_length() < 256


def _step_text(form: str, key: Any) -> str:
    if form == "[]":
        return f"[{key}]"
    if form == "{}":
        return "{}"
    shown = key if type(key) is str else _repr.repr(key)
    return f"/{shown} (the key)" if form == "key" else f"/{shown}"


def _member(value: enum.Enum) -> Any:
    """An enum's member by its name, a combination of flags by its number."""
    name, number = value._name_, value._value_
    if name is not None and type(value).__members__.get(name) is value:
        return str_node(name)
    if not isinstance(value, enum.Flag) or not 0 <= number < 2**LONGEST_FLAG:
        raise Unstorable(type(value), "that is no member of its class, or a combination of too many flags")
    return int_node(int(number))


def _field_values(value: Any, kind: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """The content of a named tuple or a dataclass by field, without running anything of its class."""
    others = set(getattr(value, "__dict__", ())) - (set(fields) if kind == "dataclass" else set())
    if others:
        shown = ", ".join(sorted(map(str, others))[:10])
        raise Unstorable(type(value), f"with attributes that are no fields: {shown}", "Make them fields")
    if kind == "namedtuple":
        content = tuple(tuple.__iter__(value))
        if len(content) != len(fields):
            raise Unstorable(type(value), f"with {len(content)} items and {len(fields)} fields")
        return dict(zip(fields, content, strict=True))
    try:
        return {name: object.__getattribute__(value, name) for name in fields}
    except AttributeError as error:
        raise Unstorable(type(value), f"with a field that is not set ({error})", "Set all of its fields") from None


def _leaf(write: Callable[[Any], Any]) -> Callable[[Encoder, Any], Any]:
    return lambda encoder, value: write(value)


_WRITERS: dict[type, Callable[[Encoder, Any], Any]] = {
    **{kind: _leaf(write) for kind, write in LEAF_WRITERS.items()},
    list: Encoder._items,
    tuple: lambda e, v: {"$": "tuple", "v": e._items(v)},
    dict: Encoder._dict,
    OrderedDict: lambda e, v: {"$": "OrderedDict", "v": e._pairs(v)},
    Counter: lambda e, v: {"$": "Counter", "v": e._pairs(v)},
    defaultdict: Encoder._defaultdict,
    set: lambda e, v: {"$": "set", "v": e._elements(v)},
    frozenset: lambda e, v: {"$": "frozenset", "v": e._elements(v)},
    deque: lambda e, v: {"$": "deque", "maxlen": v.maxlen, "v": e._items(v)},
    slice: lambda e, v: {"$": "slice", "v": e._items([v.start, v.stop, v.step])},
    np.ndarray: Encoder._array,
    torch.Tensor: Encoder._tensor,
    torch.nn.Parameter: Encoder._parameter,
}
