import datetime
import json
import pathlib
import struct
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from tests.checkpoint.samples import bits
from tests.checkpoint.trees import Bits, Box, Frozen, Mode, Permission, Point, raw, same, trees
from trainlab.checkpoint.classes import classes_in
from trainlab.checkpoint.tree import decode, encode
from trainlab.errors import CheckpointError


def through_json(tree: Any) -> Any:
    """The tree after it was written as text and read again."""
    classes = classes_in(tree)
    structure, tensors = encode(tree, classes)
    text = json.dumps(structure, allow_nan=False)
    return decode(json.loads(text), {name: value.clone() for name, value in tensors.items()}, classes)


@given(trees)
def test_any_tree_comes_back_as_it_was(tree: Any) -> None:
    """Types, order, dtypes, shapes and every bit of a state survive a checkpoint."""
    assert same(through_json(tree), tree)


@given(trees)
def test_the_structure_is_the_same_through_json(tree: Any) -> None:
    """Nothing is lost when the structure becomes text, and nothing of it is shared with the live state."""
    structure, tensors = encode(tree, classes_in(tree))
    assert json.loads(json.dumps(structure, allow_nan=False)) == structure
    assert all(name.encode() for name in tensors)
    assert all(type(stored) is torch.Tensor and not stored.requires_grad for stored in tensors.values())


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
    (stored,) = encode({"a": view})[1].values()
    assert not (stored.is_conj() or stored.is_neg())  # as no file holds such views
    back = through_json({"a": view})["a"]
    assert back.dtype == view.dtype
    assert torch.equal(back, view)


@pytest.mark.parametrize("needs_grad", [True, False])
def test_a_parameter_comes_back_as_a_parameter(needs_grad: bool) -> None:
    """A parameter in a state is one again, trained or frozen as it was."""
    back = through_json(torch.nn.Parameter(torch.ones(2), requires_grad=needs_grad))
    assert type(back) is torch.nn.Parameter
    assert back.requires_grad is needs_grad


def test_tied_parameters_are_one_object_again() -> None:
    """A parameter in two places, and the tensor in its memory, still change together after a resume."""
    weight = torch.nn.Parameter(torch.ones(2))
    back = through_json([weight, {"tied": weight}, weight.detach(), torch.nn.Parameter(weight.detach(), False)])
    assert back[0] is back[1]["tied"]
    with torch.no_grad():
        back[0][0] = 7
    assert [float(tensor[0]) for tensor in back[2:]] == [7, 7]
    assert [tensor.requires_grad for tensor in (back[0], *back[2:])] == [True, False, False]


@pytest.mark.parametrize("zone", [None, datetime.timezone.utc, datetime.timezone(datetime.timedelta(hours=-2), "X")])
def test_times_keep_their_zone_and_side_of_a_change_of_clocks(zone: datetime.timezone | None) -> None:
    """Of an hour that occurs twice the second one comes back, in the zone and with the zone's name."""
    moment = datetime.datetime(2024, 10, 27, 2, 30, 0, 1, zone, fold=1)
    for time in (moment, moment.timetz()):
        back = through_json(time)
        assert (repr(back), back.fold, back.tzname()) == (repr(time), 1, time.tzname())


def test_a_path_is_never_changed() -> None:
    """A path whose text older versions of Python read as another one comes back as it was, or is refused."""
    odd = pathlib.PureWindowsPath("./c:a")
    if odd == pathlib.PureWindowsPath(str(odd)):
        assert through_json(odd) == odd
    else:
        with pytest.raises(CheckpointError, match="read as another path"):
            encode(odd)


def test_half_summed_sparse_gradients_come_back() -> None:
    """The gradients of an embedding that are summed and not yet applied go on to the same sum."""
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    for words in ([1, 1, 3], [3, 0]):
        embedding(torch.tensor(words)).sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    assert not gradient.is_coalesced()
    back = through_json({"a": gradient, "b": gradient})
    assert same(back["a"], gradient)
    assert back["a"] is back["b"]
    assert torch.equal(back["a"].to_dense(), gradient.to_dense())


def test_shared_tensors_are_stored_once_and_shared_again() -> None:
    """Two names of the same memory take room once, and writing to one still changes the other after a resume."""
    shared = torch.arange(3.0)
    tree = {"a": shared, "b": [shared, shared.view(3)], "c": shared.numpy(), "other": torch.arange(3.0)}
    _, stored = encode(tree)
    assert len(stored) == 2
    back = through_json(tree)
    back["a"][0] = 7
    assert back["b"][0][0] == back["b"][1][0] == back["c"][0] == 7
    assert back["other"][0] == 0


def test_tensors_that_overlap_in_part_keep_their_own_values() -> None:
    """Views of one memory that differ in place or shape are different tensors."""
    base = torch.arange(6.0)
    tree = {"all": base, "rows": base.view(2, 3), "end": base[3:], "bits": base.view(torch.int32)}
    assert same(through_json(tree), tree)


def test_a_tensor_freed_while_encoding_is_not_taken_for_another() -> None:
    """Tensors that exist for a moment only, as in the copy of an array, are each stored."""
    tree = [np.full((2, 3), i, order="F") for i in range(50)]
    assert same(through_json(tree), tree)


def test_unusual_arrays_come_back() -> None:
    """Read-only arrays, ones that go backwards or have gaps, and texts that end in NULs are stored like any other."""
    fixed = np.arange(4.0)
    fixed.flags.writeable = False
    tree = [fixed, np.arange(4)[::-1], np.arange(6)[::2], np.array(["é", "zz"])[::-1], np.array(3.5), np.str_("a\0")]
    assert same(through_json(tree), tree)


def test_names_of_tensors_tell_where_they_were() -> None:
    """Another tool that lists the tensors sees where each belongs; equal paths do not overwrite each other."""
    one = torch.ones(1)
    tree = {
        "a": {"b": [one]},
        "a/b": [one * 2],
        "__metadata__": torch.ones(2),
        0: {(1, "x"): one * 3},
        "p": Point(one * 4, deque([one * 5])),
        "sparse": torch.eye(2).to_sparse(),
        "\ud800": one * 6,
        10**9999: one * 7,
    }
    _, stored = encode(tree, classes_in(tree))
    assert [name[:30] for name in stored] == [
        *("a/b[0]", "a/b[0]#2", "__metadata__#2", "0/(1, 'x')", "p/x", "p/y[0]"),
        *("sparse/values", "sparse/indices", "\\ud800", f"{hex(10**9999)[:30]}"),
    ]


def test_methods_of_a_class_are_not_run() -> None:
    """A dataclass comes back with its fields as they were, though its ``__post_init__`` would refuse or change them."""
    box = Box(3)
    box.area = "own"
    assert through_json(box).area == "own"
    frozen = raw(Frozen, left="forbidden", right=1)
    assert through_json(frozen) == frozen


def test_members_of_enums_are_the_very_same() -> None:
    """A member comes back by its name, whatever its value; flags in any combination."""
    assert through_json(Mode.FAST) is Mode.FAST
    assert encode(Mode.QUICK, classes_in(Mode.QUICK))[0]["v"] == "FAST"
    for flags in (Permission(0), Permission.READ, Permission.READ | Permission.WRITE, Bits.A | 64):
        assert through_json(flags) is flags


def test_the_format_stays_what_it_is() -> None:
    """Structures of earlier checkpoints read the same, and new ones are what the documentation tells."""
    tree = {
        "t": (1, 2.5),
        "s": {1},
        "f": float("-inf"),
        "n": np.float32(1.5),
        "a": np.zeros(2),
        3: torch.ones(1).cfloat(),
    }
    structure = [
        ["t", {"$": "tuple", "v": [1, 2.5]}],
        ["s", {"$": "set", "v": [1]}],
        ["f", {"$": "float", "v": "-inf"}],
        ["n", {"$": "numpy", "dtype": "float32", "v": "0000c03f"}],
        ["a", {"$": "ndarray", "dtype": "float64", "v": {"$": "tensor", "v": "a"}}],
        [3, {"$": "tensor", "v": "3", "complex": True}],
    ]
    assert encode(tree)[0] == {"$": "dict", "v": structure}
    new = [Point(1, Mode.SLOW), deque([1], 2), np.array(["a"]), np.datetime64(1, "s"), slice(None, 1, None)]
    assert encode(new, classes_in(new))[0] == [
        {
            "$": "namedtuple",
            "class": "tests.checkpoint.trees:Point",
            "v": {"x": 1, "y": {"$": "enum", "class": "tests.checkpoint.trees:Mode", "v": "SLOW"}},
        },
        {"$": "deque", "maxlen": 2, "v": [1]},
        {"$": "ndarray", "dtype": "<U1", "v": {"$": "tensor", "v": "[2]"}},
        {"$": "numpy", "dtype": "<M8[s]", "v": "0100000000000000"},
        {"$": "slice", "v": [None, 1, None]},
    ]


def test_sets_are_written_in_one_order() -> None:
    """The same state makes the same file, though the order of a set depends on its history."""
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)
    assert encode(one) == encode(other)


def test_the_tensors_given_to_encode_are_not_changed() -> None:
    """Making a checkpoint leaves the live state alone."""
    live = torch.randn(3, requires_grad=True)
    before = bits(live)
    encode({"a": live})
    assert live.requires_grad
    assert bits(live) == before


def test_the_last_level_that_is_written_can_be_read() -> None:
    """A state as deep as is allowed comes back, whatever stands at the bottom."""
    for bottom in (np.zeros(1), torch.nn.Parameter(torch.ones(1)), 1.5, [], {}):
        tree: Any = bottom
        for _ in range(100):
            tree = [tree]
        assert same(through_json(tree), tree)
