"""From a structure and tensors to a tree. The structure may come from anyone: nothing in it is believed."""

import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainlab.checkpoint.arrays import read_array, read_numpy
from trainlab.checkpoint.classes import field_names, kind_of, known_class
from trainlab.checkpoint.encoding import path_text
from trainlab.checkpoint.leaves import (
    DEEPEST,
    FACTORIES,
    LEAF_READERS,
    LONGEST_FLAG,
    Fields,
    Malformed,
    Node,
    check,
    fields,
    part,
)
from trainlab.checkpoint.parts import Parts
from trainlab.checkpoint.tensor_forms import restored_sparse, restored_tensor
from trainlab.errors import CheckpointDamagedError, CheckpointMismatchError

__all__ = ["Decoder"]


class Decoder:
    """Puts one tree together.

    Args:
        tensors: The tensors by stored name; ``Parts`` stay what they are.
        classes: Classes whose members may be in the tree, by name, besides the registered ones.
    """

    def __init__(self, tensors: "Mapping[str, torch.Tensor | Parts]", classes: Mapping[str, type]) -> None:
        self._tensors = tensors
        self._classes = classes
        self._path: list[Any] = []
        # The tensors that were made, by their nodes, so that what was one object is one again.
        self._made: dict[str, torch.Tensor] = {}

    def decode(self, structure: Any) -> Any:
        """Make the tree.

        Args:
            structure: The structure.

        Returns:
            The tree.

        Raises:
            CheckpointDamagedError: The structure is not one that an ``Encoder`` makes.
            CheckpointMismatchError: It names a class, a field or a member that there is not.
        """
        try:
            return self._value(structure)
        except (CheckpointMismatchError, MemoryError):
            raise
        except Malformed as error:
            raise self._damaged(str(error)) from None
        except Exception as error:
            # What the types themselves refuse (unhashable keys, sizes that do not fit), and whatever the methods of a
            # class say to content that it never had.
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _damaged(self, reason: str) -> CheckpointDamagedError:
        return CheckpointDamagedError(
            f"The state in this checkpoint is not of the form in which trainlab writes it. "
            f"Received at {self._where()}: {reason[:500]}. Use another checkpoint."
        )

    def _where(self) -> str:
        return path_text(self._path)[:200] or "the top"

    def _value(self, node: Any) -> Any:
        if isinstance(node, float):
            check(math.isfinite(node), f"the number {node} is too large")
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, list):
            return self._items(node)
        check(isinstance(node, dict), f"it holds a {type(node).__name__}")
        return self._tagged(node) if "$" in node else self._named_parts(node)

    def _tagged(self, node: Node, *tags: str) -> Any:
        tag = node["$"]
        is_known = isinstance(tag, str) and tag in _READERS and (not tags or tag in tags)
        check(is_known, f"it holds something of an unknown kind, {str(tag)[:100]!r}")
        reader, (required, optional) = _READERS[tag]
        given = set(node) - {"$"}
        check(required <= given <= required | optional, f"a {tag} has the fields {sorted(given)[:10]}")
        return reader(self, node)

    def _inner(self, node: Any, *tags: str) -> Any:
        check(isinstance(node, dict) and "$" in node, f"where there must be a {tags[0]}, there is none")
        made = self._tagged(node, *tags)
        check(not isinstance(made, Parts), "a tensor that is a part of another value lies in parts")
        return made

    def _down(self, values: Any, step: Any = "") -> list[Any]:
        check(len(self._path) < DEEPEST or not values, f"it is nested more than {DEEPEST} deep")
        self._path.append(step)
        return self._path

    def _items(self, nodes: Any) -> list[Any]:
        check(isinstance(nodes, list), "there is no list")
        path = self._down(nodes)
        made = []
        for i, node in enumerate(nodes):
            path[-1] = ("[]", i)
            made.append(self._value(node))
        path.pop()
        return made

    def _named_parts(self, nodes: Mapping[str, Any]) -> dict[str, Any]:
        path = self._down(nodes)
        made = {}
        for name, node in nodes.items():
            path[-1] = name
            made[name] = self._value(node)
        path.pop()
        return made

    def _into_mapping(self, made: Any, node: Node) -> Any:
        pairs = node["v"]
        is_right = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
        check(is_right, f"a {node['$']} holds no list of pairs")
        path = self._down(pairs)
        hashes: Counter[int] = Counter()
        for i, (key_node, value_node) in enumerate(pairs):
            path[-1] = ("key", i)
            key = self._hashed(key_node, hashes)
            path[-1] = key if type(key) is str else ("/", key)
            check(key not in made, f"a {node['$']} has a key twice")
            made[key] = self._value(value_node)
        path.pop()
        return made

    def _hashed(self, node: Any, hashes: Counter[int]) -> Any:
        value = self._value(node)
        check(not isinstance(value, torch.Tensor | Parts), "a tensor is a key or an element of a set")
        number = hash(value)
        hashes[number] += 1
        # Looking up one costs as much as there are of the same hash: made on purpose, a file would take hours.
        check(hashes[number] <= _MOST_OF_A_HASH, "too many keys or elements of a set have the same hash")
        return value

    def _elements(self, kind: type, node: Node) -> Any:
        check(isinstance(node["v"], list), f"a {node['$']} holds no list")
        self._down(node["v"], ("{}", None))
        hashes: Counter[int] = Counter()
        items = [self._hashed(item, hashes) for item in node["v"]]
        made = kind(items)
        check(len(made) == len(items), f"a {node['$']} has an element twice")
        self._path.pop()
        return made

    def _defaultdict(self, node: Node) -> Any:
        factory = node["factory"]
        check(factory is None or factory in FACTORIES, f"a defaultdict has the factory {str(factory)[:100]!r}")
        made: defaultdict[Any, Any] = defaultdict(None if factory is None else FACTORIES[factory])
        return self._into_mapping(made, node)

    def _deque(self, node: Node) -> Any:
        longest, items = node["maxlen"], self._items(node["v"])
        is_right = longest is None or (type(longest) is int and len(items) <= longest)
        check(is_right, "a deque is longer than its maxlen, or that is no number")
        return deque(items, longest)

    def _slice(self, node: Node) -> slice:
        parts = self._items(node["v"])
        check(len(parts) == 3, "a slice has no three parts")
        return slice(*parts)

    def _once(self, node: Node, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        key = json.dumps(node, sort_keys=True)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _tensor(self, node: Node) -> "torch.Tensor | Parts":
        name = part(node["v"], str)
        check(name in self._tensors, f"the tensor {name[:200]!r} is missing")
        found = self._tensors[name]
        if isinstance(found, Parts):
            check(node.keys() == {"$", "v"}, f"the tensor {name[:200]!r} lies in parts and has another form")
            return found
        return self._once(node, lambda: restored_tensor(found, node))

    def _sparse(self, node: Node) -> torch.Tensor:
        self._down(node)
        values, indices = self._inner(node["v"], "tensor"), self._inner(node["indices"], "tensor")
        self._path.pop()
        return self._once(node, lambda: restored_sparse(indices, values, node))

    def _parameter(self, node: Node) -> torch.Tensor:
        needs_grad = node["requires_grad"]
        check(isinstance(needs_grad, bool), "a Parameter's requires_grad is neither true nor false")
        inner = self._inner(node["v"], "tensor", "sparse_coo")
        return self._once(node, lambda: torch.nn.Parameter(inner, needs_grad))

    def _array(self, node: Node) -> Any:
        return read_array(self._inner(node["v"], "tensor"), node["dtype"])

    def _class(self, node: Node) -> type:
        name, kind = part(node["class"], str), node["$"]
        cls = known_class(name, self._classes)
        if cls is None:
            raise CheckpointMismatchError(
                f"The checkpoint holds a member of a class that is not known here, and loading imports nothing. "
                f"Received at {self._where()}: {name[:200]} ({kind}). Import it, and register it with "
                "`trainlab.checkpoint.register_class` before the checkpoint is loaded."
            )
        if kind_of(cls) != kind:
            raise CheckpointMismatchError(
                f"A class is not what it was when the checkpoint was written. Received at {self._where()}: "
                f"{name[:200]}, which was of kind {kind} and now is {kind_of(cls)}. Make it what it was."
            )
        return cls

    def _enum(self, node: Node) -> Any:
        cls: Any = self._class(node)
        stored = node["v"]
        if isinstance(stored, str) or (isinstance(stored, dict) and stored.get("$") == "str"):
            name = part(stored, str)
            made, shown = cls.__members__.get(name), repr(name[:200])
        else:
            number = part(stored, int)
            check(0 <= number < 2**LONGEST_FLAG, "a combination of flags is out of range")
            made, shown = _combination(cls, number), hex(number)[:200]
        if made is None:
            raise CheckpointMismatchError(
                f"The checkpoint holds a member of an enum that there is no longer. Received at {self._where()}: "
                f"{shown} of {part(node['class'], str)[:200]}. Add it to the class, or load another checkpoint."
            )
        return made

    def _fields(self, node: Node) -> Any:
        """A named tuple or a dataclass; its ``__new__``, ``__init__`` and ``__post_init__`` are not run."""
        cls, stored = self._class(node), node["v"]
        check(isinstance(stored, dict), f"a {node['$']} has no fields")
        names = field_names(cls)
        missing, unknown = (
            [name for name in names if name not in stored],
            [name for name in stored if name not in names],
        )
        groups = {"missing": missing, "unknown": unknown}
        differences = [f"{kind}: {', '.join(found)[:1000]}" for kind, found in groups.items() if found]
        if differences:
            raise CheckpointMismatchError(
                f"A class does not have the fields that it had when the checkpoint was written. Received at "
                f"{self._where()}: {part(node['class'], str)[:200]}, whose fields in the checkpoint are "
                f"{'; '.join(differences)}. Give it the fields that it had, or load another checkpoint."
            )
        values = self._named_parts(stored)
        if issubclass(cls, tuple):
            return tuple.__new__(cls, [values[name] for name in names])
        made = object.__new__(cls)
        for name in names:
            object.__setattr__(made, name, values[name])
        return made


def _combination(cls: Any, number: int) -> Any:
    """The combination of flags, or None if there is none of this number."""
    if not issubclass(cls, enum.Flag):
        return None
    try:
        made = cls(number)
    except Exception:  # a class may say in its own way that it has no such member
        return None
    return made if type(made) is cls and made._value_ == number else None


def _leaf(read: Callable[[Node], Any]) -> Callable[[Decoder, Node], Any]:
    return lambda decoder, node: read(node)


# No honest state comes near it.
_MOST_OF_A_HASH = 100
_V = fields("v")
_READERS: dict[str, tuple[Callable[[Decoder, Node], Any], Fields]] = {
    **{tag: (_leaf(read), names) for tag, (read, names) in LEAF_READERS.items()},
    "tuple": (lambda d, node: tuple(d._items(node["v"])), _V),
    "dict": (lambda d, node: d._into_mapping({}, node), _V),
    "OrderedDict": (lambda d, node: d._into_mapping(OrderedDict(), node), _V),
    "Counter": (lambda d, node: d._into_mapping(Counter(), node), _V),
    "defaultdict": (Decoder._defaultdict, fields("v factory")),
    "set": (lambda d, node: d._elements(set, node), _V),
    "frozenset": (lambda d, node: d._elements(frozenset, node), _V),
    "deque": (Decoder._deque, fields("v maxlen")),
    "slice": (Decoder._slice, _V),
    "tensor": (Decoder._tensor, fields("v", "complex dtype shape")),
    "sparse_coo": (Decoder._sparse, fields("v indices size coalesced")),
    "Parameter": (Decoder._parameter, fields("v requires_grad")),
    "ndarray": (Decoder._array, fields("v dtype")),
    "numpy": (_leaf(read_numpy), fields("v dtype")),
    "enum": (Decoder._enum, fields("v class")),
    "namedtuple": (Decoder._fields, fields("v class")),
    "dataclass": (Decoder._fields, fields("v class")),
}
