import contextlib
import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint import trees as props
from tests.checkpoint.trees import (
    Bits,
    Box,
    Frozen,
    Interval,
    Level,
    Mode,
    Named,
    Permission,
    Point,
    Slotted,
    Word,
    trees,
)
from trainlab.checkpoint.classes import class_name, classes_in
from trainlab.checkpoint.tree import decode, encode
from trainlab.errors import CheckpointDamagedError, CheckpointMismatchError


@dataclasses.dataclass(frozen=True)
class Sensitive:
    """A class whose methods rely on what it was made from."""

    text: str

    def __hash__(self) -> int:
        return {"a": 1}[self.text.lower()]


KNOWN = (Bits, Box, Frozen, Interval, Level, Mode, Named, Permission, Point, Slotted, Word, Sensitive)
CLASSES = {class_name(cls): cls for cls in KNOWN}
STORED = {
    "halves": torch.ones(3).half(),
    "bytes": torch.zeros(3, dtype=torch.uint8),
    "texts": torch.full((2, 4), 255, dtype=torch.uint8),
    "index": torch.tensor([[0, 1, 1]]),
    "short": torch.zeros(1, 3, dtype=torch.int32),
    "far": torch.tensor([[0, 1, 9]]),
    "wide": torch.zeros(2, 3, dtype=torch.int64),
    "values": torch.ones(3),
    "x": torch.ones(2),
}
VALUES, INDEX, FAR = ({"$": "tensor", "v": name} for name in ("values", "index", "far"))


def sparse(**changes: Any) -> dict[str, Any]:
    return {"$": "sparse_coo", "v": VALUES, "indices": INDEX, "size": [2], "coalesced": False, **changes}


def member(kind: str, cls: type, v: Any) -> dict[str, Any]:
    return {"$": kind, "class": class_name(cls), "v": v}


HOSTILE = [
    {"$": "os.system", "v": "echo planted"},
    {"$": ["list"], "v": 1},
    {"$": None},
    {"$": "tuple"},
    {"$": "tuple", "v": 3},
    {"$": "tuple", "v": [], "more": 1},
    {"$": "dict", "v": [[1]]},
    {"$": "dict", "v": [[[], 1]]},
    {"$": "dict", "v": [[1, 1], [1, 2]]},
    {"$": "set", "v": [1, 1]},
    {"$": "set", "v": [{}]},
    {"$": "int", "v": "9" * 10},
    {"$": "int", "v": "0x_1"},
    {"$": "float", "v": "infinity"},
    {"$": "float", "v": "00"},
    {"$": "complex", "v": [1.0]},
    {"$": "complex", "v": [1.0, "x"]},
    {"$": "complex", "v": [float("inf"), 1.0]},
    {"$": "bytes", "v": "?"},
    {"$": "str", "v": "ff"},
    {"$": "str", "v": "4 1"},
    {"$": "torch.Size", "v": [-1]},
    {"$": "torch.Size", "v": [True]},
    {"$": "torch.Size", "v": [2**63]},
    {"$": "torch.dtype", "v": "nn"},
    {"$": "torch.layout", "v": "float32"},
    {"$": "torch.memory_format", "v": []},
    {"$": "torch.device", "v": "no such device"},
    {"$": "torch.device", "v": "nonsense"},
    {"$": "defaultdict", "factory": "eval", "v": []},
    {"$": "defaultdict", "factory": ["list"], "v": []},
    {"$": "defaultdict", "v": []},
    {"$": "deque", "maxlen": -1, "v": []},
    {"$": "deque", "maxlen": 1, "v": [1, 2]},
    {"$": "deque", "maxlen": 2**80, "v": []},
    {"$": "deque", "maxlen": True, "v": []},
    {"$": "range", "v": [0, 1, 0]},
    {"$": "range", "v": [0, 1, 1.5]},
    {"$": "range", "v": [0, True, 1]},
    {"$": "range", "v": [0, {"$": "str", "v": "41"}, 1]},
    {"$": "slice", "v": [1]},
    {"$": "date", "v": "2024-02-31"},
    {"$": "date", "v": "20240101"},
    {"$": "datetime", "v": "2024-01-01"},
    {"$": "datetime", "v": "2024-01-01T00:00:00.000000", "fold": 2},
    {"$": "datetime", "v": "2024-01-01T00:00:00.000000", "tz": "UTC"},
    {"$": "datetime", "v": "2024-01-01T00:00:00.000000", "tz": {"$": "timezone", "v": 10**30}},
    {"$": "time", "v": "25:00:00.000000"},
    {"$": "timedelta", "v": [10**10, 0, 0]},
    {"$": "timedelta", "v": [0, 10**30, 0]},
    {"$": "timedelta", "v": [0, 90000, 0]},
    {"$": "timedelta", "v": [0.5, 0, 0]},
    {"$": "timezone", "v": 24 * 3600 * 10**6},
    {"$": "timezone", "v": 0, "name": 3},
    {"$": "path", "kind": "PosixPath", "v": "a"},
    {"$": "path", "kind": "Path", "v": 3},
    {"$": "numpy", "dtype": "object", "v": "00" * 8},
    {"$": "numpy", "dtype": "float32", "v": "00"},
    {"$": "numpy", "dtype": "<U1", "v": "ffffffff"},
    {"$": "numpy", "dtype": "<M8[0s]", "v": "00" * 8},
    {"$": "numpy", "dtype": "<M8[s]", "v": "00"},
    {"$": "numpy", "dtype": "str_", "v": "ff"},
    {"$": "ndarray", "dtype": "float32", "v": 3},
    {"$": "ndarray", "dtype": "float32", "v": {"$": "tensor", "v": "halves"}},
    {"$": "ndarray", "dtype": "float32", "v": {"$": "tuple", "v": []}},
    {"$": "ndarray", "dtype": "<U1", "v": {"$": "tensor", "v": "texts"}},
    {"$": "ndarray", "dtype": "<U2", "v": {"$": "tensor", "v": "texts"}},
    {"$": "ndarray", "dtype": "<U0", "v": {"$": "tensor", "v": "texts"}},
    {"$": "ndarray", "dtype": "<U999999999", "v": {"$": "tensor", "v": "texts"}},
    {"$": "ndarray", "dtype": "<M8[s]", "v": {"$": "tensor", "v": "x"}},
    {"$": "ndarray", "dtype": "O", "v": {"$": "tensor", "v": "x"}},
    {"$": "tensor", "v": "missing"},
    {"$": "tensor", "v": {}},
    {"$": "tensor", "v": "halves", "complex": True},
    {"$": "tensor", "v": "x", "complex": 1},
    {"$": "tensor", "v": "x", "shape": [2]},
    {"$": "tensor", "v": "halves", "dtype": "float8_e5m2", "shape": [3]},
    {"$": "tensor", "v": "bytes", "dtype": "float8_e5m2", "shape": [10**12]},
    {"$": "tensor", "v": "bytes", "dtype": "uint64", "shape": [1]},
    {"$": "tensor", "v": "bytes", "dtype": "uint16"},
    sparse(size=[1]),
    sparse(size=[2, 2]),
    sparse(size=[-2]),
    sparse(size=[2**80]),
    sparse(size="2"),
    sparse(coalesced=True),
    sparse(coalesced=1),
    sparse(indices=FAR),
    sparse(indices=VALUES),
    sparse(indices={"$": "tensor", "v": "short"}),
    sparse(v=INDEX),
    sparse(v=sparse()),
    {"$": "Parameter", "requires_grad": 1, "v": VALUES},
    {"$": "Parameter", "requires_grad": True, "v": INDEX},
    {"$": "Parameter", "requires_grad": True, "v": {"$": "Parameter", "requires_grad": True, "v": VALUES}},
    {"$": "Parameter", "requires_grad": True, "v": None},
    {"$": "enum", "class": 3, "v": "FAST"},
    {"$": "enum", "class": ["x"], "v": "FAST"},
    member("enum", Mode, None),
    member("enum", Bits, -1),
    member("enum", Bits, {"$": "int", "v": "0x1" + "0" * 2_000_000}),
    member("namedtuple", Point, [1, 2]),
    member("dataclass", Box, 3),
    {"$": "set", "v": [member("dataclass", Sensitive, {"text": "b"})]},
    {"$": "dict", "v": [[member("dataclass", Sensitive, {"text": 3}), 1]]},
    {"$": "set", "v": [member("dataclass", Frozen, {"left": [], "right": 1})]},
    float("inf"),
    object(),
]


@pytest.mark.parametrize("node", HOSTILE, ids=lambda node: str(node)[:50].partition(" at 0x")[0])
def test_a_structure_that_trainlab_does_not_write_is_damaged(node: Any) -> None:
    """Nothing that a file says is guessed at, imported or executed: it is an error of one kind, with its place."""
    with pytest.raises(CheckpointDamagedError, match=r"Received at a\[0\]"):
        decode({"a": [node]}, STORED, CLASSES)


def test_deep_nesting_is_damaged() -> None:
    """A file that nests without end does not end the process."""
    for wrap in (
        lambda node: [node],
        lambda node: {"$": "tuple", "v": [node]},
        lambda node: {"$": "dict", "v": [[node, 1]]},
        lambda node: {"$": "Parameter", "requires_grad": True, "v": node},
        lambda node: {"$": "path", "kind": "Path", "v": node},
        lambda node: {"$": node, "v": 1},
        lambda node: member("dataclass", Slotted, {"item": node, "_hidden": 1}),
    ):
        node: Any = 0
        for _ in range(5000):
            node = wrap(node)
        with pytest.raises(CheckpointDamagedError):
            decode(node, {}, CLASSES)


def test_one_level_too_many_is_damaged() -> None:
    """What ``encode`` would not write is not read either."""
    node: Any = 0
    for _ in range(101):
        node = {"a": node}
    with pytest.raises(CheckpointDamagedError, match="nested more than 100 deep"):
        decode(node, {})


def test_a_huge_sparse_size_takes_no_room() -> None:
    """A sparse tensor of a size that no machine holds takes the room of its elements only."""
    made = decode(sparse(size=[2**60]), STORED)
    assert made.shape == (2**60,)
    with pytest.raises(CheckpointDamagedError):
        decode(
            sparse(indices={"$": "tensor", "v": "wide"}, size=[2**62, 2**62]),
            {**STORED, "wide": torch.zeros(2, 3).long()},
        )


TAGS = sorted(
    "int float complex str bytes bytearray range slice tuple set frozenset deque dict OrderedDict Counter defaultdict "
    "datetime time date timedelta timezone path torch.Size torch.dtype torch.layout torch.memory_format torch.device "
    "tensor sparse_coo Parameter ndarray numpy enum namedtuple dataclass".split()
)
FIELDS = [
    *("$", "v", "dtype", "shape", "factory", "complex", "maxlen", "fold", "tz", "name", "kind", "indices", "size"),
    *("coalesced", "requires_grad", "class", "a", "x", "side"),
]
texts = ["float32", "<U1", "<M8[s]", "Path", "0x10", "FAST"]
words = st.text(max_size=5) | st.sampled_from([*TAGS, *CLASSES, *STORED, *texts])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**40), 10**40) | st.floats() | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
        | st.builds(lambda tag, v, more: {**more, "$": tag, "v": v}, st.sampled_from(TAGS), inner,
                    st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3))
        | st.builds(lambda name, v: {"$": "tensor", "v": name}, st.sampled_from(sorted(STORED)), inner)
    ),
    max_leaves=10,
)  # fmt: skip


def decoded(node: Any, stored: dict[str, torch.Tensor]) -> None:
    with contextlib.suppress(CheckpointDamagedError, CheckpointMismatchError):
        decode(node, stored, CLASSES)


@given(json_values)
def test_any_json_is_decoded_or_refused(node: Any) -> None:
    """Whatever JSON a file holds, reading gives a tree or one of two errors, never another one."""
    decoded(node, STORED)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container in a structure, with each of its keys or indices."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


@given(trees, st.data())
def test_any_change_to_a_structure_is_decoded_or_refused(tree: Any, data: st.DataObject) -> None:
    """A checkpoint of which anything was changed on purpose gives a tree or one of two errors, never another one."""
    structure, stored = encode([tree], classes_in(tree))
    structure = json.loads(json.dumps(structure))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(structure)))
        other_container, other_key = data.draw(st.sampled_from(places(structure)))
        other = copy.deepcopy(other_container[other_key])
        kind = data.draw(st.sampled_from(["any", "other", "gone", "twice", "renamed"]))
        if kind == "any":
            container[key] = data.draw(json_values)
        elif kind == "other":
            container[key] = other
        elif kind == "gone" and container is not structure:
            del container[key]
        elif kind == "twice" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == "renamed" and isinstance(container, dict):
            container[data.draw(st.sampled_from(FIELDS))] = container.pop(key)
    decoded(structure, {name: value.clone() for name, value in stored.items()})


def test_every_class_of_the_trees_is_known_here() -> None:
    """The changes are made to structures with members of every kind of class."""
    own = {cls for cls in vars(props).values() if isinstance(cls, type) and cls.__module__ == props.__name__}
    assert own <= set(KNOWN)


def test_keys_made_to_collide_are_refused() -> None:
    """A file of keys that all have one hash, which would take hours to put into a dict, is an error at once."""
    pairs = [[{"$": "int", "v": hex(k * (2**61 - 1))}, 0] for k in range(200_000)]
    with pytest.raises(CheckpointDamagedError, match="the same hash"):
        decode({"$": "dict", "v": pairs}, {})
    with pytest.raises(CheckpointDamagedError, match="the same hash"):
        decode({"$": "set", "v": [pair[0] for pair in pairs]}, {})
