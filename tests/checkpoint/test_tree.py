import contextlib
import dataclasses
import enum
import json
import struct
from collections import Counter, OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.samples import bits, same
from trainlab.checkpoint import decode, encode
from trainlab.errors import CheckpointDamagedError, CheckpointError

TORCH_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
]
NUMPY_DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]


def through_json(tree: Any) -> Any:
    """The tree after it was written as text and read again."""
    structure, tensors = encode(tree)
    return decode(json.loads(json.dumps(structure, allow_nan=False)), {k: v.clone() for k, v in tensors.items()})


def any_bits(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """A tensor of random bytes, so of NaNs with payloads, infinities and subnormal numbers too."""
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)
    if dtype is torch.bool:
        data &= 1
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(any_bits, st.sampled_from(TORCH_DTYPES), shapes, st.integers(0, 99))
arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    *(st.sampled_from(NUMPY_DTYPES), shapes, st.integers(0, 99)),
)
texts = st.text(st.characters())  # lone surrogates too
hashable = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), texts, st.binary()),
        *(st.floats(allow_nan=False), st.complex_numbers(allow_nan=False), st.sampled_from(TORCH_DTYPES)),
        *(st.builds(torch.Size, shapes), st.sampled_from([torch.device("cpu"), torch.device("cuda", 1)])),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
leaves = st.one_of(
    *(hashable, st.floats(), st.complex_numbers(), tensors, arrays),
    arrays.filter(lambda array: array.size).map(lambda array: array.reshape(-1)[0]),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every kind of container around what ``inner`` gives."""
    mappings = st.dictionaries(texts | st.just("$") | hashable, inner, max_size=3)
    factories = st.sampled_from([list, int, float, dict, set, None])
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        mappings,
        mappings.map(OrderedDict),
        st.builds(defaultdict, factories, mappings),
        st.dictionaries(hashable, st.integers(), max_size=3).map(Counter),
        st.sets(hashable, max_size=3),
    )


@given(st.recursive(leaves, containers, max_leaves=12))
def test_any_tree_comes_back_as_it_was(tree: Any) -> None:
    """Types, order, dtypes, shapes and every bit of a state survive a checkpoint."""
    assert same(through_json(tree), tree)


@pytest.mark.parametrize("pattern", [0x7FF8000000000001, 0xFFF8000000000000, 0x7FF0000000000000, 0x8000000000000000])
def test_special_floats_keep_their_bits(pattern: int) -> None:
    """NaNs with a payload or a sign, infinities and the negative zero come back as the same bits."""
    value = struct.unpack(">d", struct.pack(">Q", pattern))[0]
    for back in (through_json(value), through_json(complex(value, 0.0)).real):
        assert struct.pack(">d", back) == struct.pack(">Q", pattern)


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0)[::3],
        torch.arange(4.0).expand(3, 4),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.nn.Parameter(torch.ones(2)).detach(),
    ],
)
def test_views_come_back_with_their_values(view: torch.Tensor) -> None:
    """However a tensor lies in memory, its elements are kept."""
    back = through_json({"a": view})["a"]
    assert back.dtype == view.dtype
    assert torch.equal(back, view)


def test_a_parameter_comes_back_as_a_tensor() -> None:
    """A parameter's numbers are kept as those of a plain tensor, which needs no gradient."""
    back = through_json(torch.nn.Parameter(torch.ones(2)))
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_shared_tensors_are_stored_once_and_shared_again() -> None:
    """Two names of the same memory take room once, and writing to one still changes the other after a resume."""
    shared = torch.arange(3.0)
    tree = {"a": shared, "b": [shared, shared.view(3)], "other": torch.arange(3.0)}
    _, stored = encode(tree)
    assert len(stored) == 2
    back = through_json(tree)
    back["a"][0] = 7
    assert back["b"][0][0] == back["b"][1][0] == 7
    assert back["other"][0] == 0


def test_tensors_that_overlap_in_part_keep_their_own_values() -> None:
    """Views of one memory that differ in place or shape are different tensors."""
    base = torch.arange(6.0)
    tree = {"all": base, "rows": base.view(2, 3), "end": base[3:], "bits": base.view(torch.int32)}
    assert same(through_json(tree), tree)


def test_names_of_tensors_tell_where_they_were() -> None:
    """Another tool that lists the tensors sees where each belongs; equal paths do not overwrite each other."""
    _, stored = encode({"a": {"b": [torch.ones(1)]}, "a/b": [torch.zeros(1)], "__metadata__": torch.ones(2)})
    assert list(stored) == ["a/b[0]", "a/b[0]#2", "__metadata__#2"]


Point = namedtuple("Point", "x y")


class Color(enum.IntEnum):
    RED = 1


class OwnDict(dict):  # type: ignore[type-arg]
    pass


@dataclasses.dataclass
class Box:
    side: int


class OwnTensor(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "value",
    [
        *(object(), len, Color.RED, Point(1, 2), Box(1), OwnDict(), bytearray(b"x"), range(3), defaultdict(lambda: 1)),
        *(
            np.array([object()]),
            np.zeros(2, dtype=">f4"),
            np.zeros(1, dtype="i4,f4"),
            np.datetime64("2020"),
            np.str_("x"),
        ),
        *(torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2).as_subclass(OwnTensor)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_another_kind_is_refused_with_its_path(value: Any) -> None:
    """What cannot come back as it was is refused at once, and the message says where it is and what is allowed."""
    tree = {"callbacks": {"ema": {"state": {"history": [0, 1, 2, value]}}}}
    with pytest.raises(
        CheckpointError, match=r"Received at callbacks/ema/state/history\[3\]: .*Allowed: None, bool"
    ) as e:
        encode(tree)
    assert type(value).__qualname__ in str(e.value)


def test_a_key_of_another_kind_is_refused_with_its_path() -> None:
    """A dict's key that cannot come back is named too."""
    with pytest.raises(CheckpointError, match=r"state/Point\(x=1, y=2\) \(the key\)"):
        encode({"state": {Point(1, 2): 0}})


def test_a_tree_that_contains_itself_is_refused() -> None:
    """A cycle is an error and no endless loop."""
    tree: list[Any] = []
    tree.append(tree)
    with pytest.raises(CheckpointError, match="contains itself"):
        encode(tree)


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
    {"$": "bytes", "v": "?"},
    {"$": "str", "v": "ff"},
    {"$": "torch.Size", "v": [-1]},
    {"$": "torch.Size", "v": [True]},
    {"$": "torch.dtype", "v": "nn"},
    {"$": "torch.device", "v": "no such device"},
    {"$": "torch.device", "v": "nonsense"},
    {"$": "defaultdict", "factory": "eval", "v": []},
    {"$": "defaultdict", "factory": ["list"], "v": []},
    {"$": "numpy", "dtype": "object", "v": "00" * 8},
    {"$": "numpy", "dtype": "float32", "v": "00"},
    {"$": "ndarray", "dtype": "float32", "v": 3},
    {"$": "ndarray", "dtype": "float32", "v": {"$": "tensor", "v": "halves"}},
    {"$": "tensor", "v": "missing"},
    {"$": "tensor", "v": {}},
    {"$": "tensor", "v": "halves", "complex": True},
    {"$": "tensor", "v": "halves", "dtype": "float8_e5m2", "shape": [3]},
    {"$": "tensor", "v": "bytes", "dtype": "float8_e5m2", "shape": [10**12]},
    {"$": "tensor", "v": "bytes", "dtype": "uint64", "shape": [1]},
    {"$": "tensor", "v": "bytes", "dtype": "uint16"},
    float("inf"),
    object(),
]


@pytest.mark.parametrize("node", HOSTILE, ids=lambda node: str(node)[:50])
def test_a_structure_that_trainlab_does_not_write_is_damaged(node: Any) -> None:
    """Nothing that a file says is guessed at, imported or executed: it is an error of one kind."""
    stored = {"halves": torch.ones(3).half(), "bytes": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(CheckpointDamagedError, match="Received"):
        decode({"a": [node]}, stored)


def test_deep_nesting_is_damaged() -> None:
    """A file that nests without end does not end the process."""
    node: Any = 0
    for _ in range(500):
        node = [node]
    with pytest.raises(CheckpointDamagedError, match="more than 100 deep"):
        decode(node, {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$", "v", "dtype", "shape", "factory", "complex", "a"]), inner, max_size=4)
        | st.builds(
            lambda tag, v: {"$": tag, "v": v},
            st.sampled_from(
                ["int", "float", "complex", "bytes", "str", "tuple", "dict", "set", "tensor", "numpy", "ndarray"]
            ),
            inner,
        )
    ),
    max_leaves=10,
)


@given(json_values)
def test_any_json_is_decoded_or_damaged(node: Any) -> None:
    """Whatever JSON a file holds, reading gives a tree or the one error, never another one."""
    with contextlib.suppress(CheckpointDamagedError):
        decode(node, {"x": torch.ones(2)})


def test_the_tensors_given_to_encode_are_not_changed() -> None:
    """Making a checkpoint leaves the live state alone."""
    live = torch.randn(3, requires_grad=True)
    before = bits(live)
    encode({"a": live})
    assert live.requires_grad
    assert bits(live) == before
