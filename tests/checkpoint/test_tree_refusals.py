import dataclasses
import datetime
import enum
import re
import zoneinfo
from collections import defaultdict, deque, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoint.trees import Box, Frozen, Mode, Named, Point, Slotted, raw
from trainlab.checkpoint.classes import classes_in
from trainlab.checkpoint.tree import encode
from trainlab.errors import CheckpointError


class OwnDict(dict):  # type: ignore[type-arg]
    pass


class OwnTensor(torch.Tensor):
    pass


class Zone(datetime.tzinfo):
    pass


@dataclasses.dataclass
class Growing(dict):  # type: ignore[type-arg]
    size: int = 0


class Hidden:
    __slots__ = ("secret",)


@dataclasses.dataclass
class Hiding(Hidden):
    size: int = 0


def with_attribute(value: Any) -> Any:
    value.__dict__["cache"] = 1
    return value


def refused(value: Any) -> str:
    """The message with which a value deep inside of a tree is refused."""
    tree = {"callbacks": {"ema": {"state": {"history": [0, 1, 2, value]}}}}
    with pytest.raises(
        CheckpointError, match=r"Received at callbacks/ema/state/history\[3\]: .*Allowed: None, bool"
    ) as e:
        encode(tree, classes_in(tree))
    return str(e.value)


@pytest.mark.parametrize(
    "value",
    [
        *(object(), len, OwnDict(), defaultdict(lambda: 1), Growing(), Hiding(), iter([]), Mode, re.compile("")),
        *(np.array([object()]), np.zeros(2, dtype=">f4"), np.zeros(1, dtype="i4,f4"), np.longdouble(1), np.void(b"x")),
        *(np.ma.masked_array([1.0]), torch.ones(2, device="meta"), torch.ones(2).as_subclass(OwnTensor)),
        *(datetime.datetime(2024, 1, 1, tzinfo=Zone()), torch.Size([-1]), Zone()),
        *(with_attribute(Box(1)), with_attribute(raw(Frozen, left=1)), with_attribute(tuple.__new__(Named, (1,)))),
        *(raw(Slotted, item=1), tuple.__new__(Point, (1,))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_another_kind_is_refused_with_its_path(value: Any) -> None:
    """What cannot come back as it was is refused at once, and the message says where it is and what is allowed."""
    assert type(value).__qualname__ in refused(value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: torch.eye(2).to_sparse_csr(), "layout torch.sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "dtype torch.qint8"),
        (lambda: torch.eye(2).to_sparse().to("meta"), "on meta"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_tensor_of_another_kind_is_refused(make: Any, told: str) -> None:
    """A tensor that files do not hold is refused, and the message tells what is the matter with it."""
    message = refused(make())
    assert told in message
    assert "torch.Tensor" in message


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (len, "the top"),
        ([len], "[0]"),
        ({"a": ({"b"}, len)}, "a[1]"),
        ({"a": deque([len])}, "a[0]"),
        ({"a": {len}}, "a{}"),
        ({"a": {(1, len)}}, "a{}[1]"),
        ({"a": Point(1, len)}, "a/y"),
        ({"a": Box([len])}, "a/side[0]"),
        ({"a": slice(1, len)}, "a[1]"),
        ({0: {"b": len}}, "0/b"),
        ({"state": {Point(1, (2, len)): 0}}, "state/Point(x=1, y=(2, <built-in function len>)) (the key)/y[1]"),
        ({"state": {"x/y": {1.5: len}}}, "state/x/y/1.5"),
        ({10**9999: len}, f"{hex(10**9999)[:40]}…"),
        ({"a": {torch.ones(1): 1}}, "a/tensor([1.]) (the key)"),
        ({"a": {(torch.ones(1),)}}, "a{}[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_place_has_a_path(tree: Any, path: str) -> None:
    """Whatever contains it, a value that cannot be kept is found by the path in the message."""
    with pytest.raises(CheckpointError, match=re.escape(f"Received at {path}: ")):
        encode(tree, classes_in(tree))


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (np.zeros(2, dtype=">f4"), "newbyteorder('=')"),
        (datetime.datetime(2024, 1, 1, tzinfo=Zone()), ".astimezone(datetime.timezone.utc)"),
        (with_attribute(Box(1)), "attributes that are no fields: cache"),
        (raw(Box, side=1), "'area'"),
        ({torch.ones(1)}, "Use a name or a number as the key"),
        (torch.ones(2, device="meta"), "sparse ones in the COO layout"),
        (Hiding(), "slots that are no fields, secret"),
    ],
)
def test_a_refusal_says_what_to_do(value: Any, advice: str) -> None:
    """Where there is another way to keep a value, the message tells it."""
    if isinstance(value, Box) and "cache" not in vars(value):
        del type(value).area  # a default of the class would stand in for the field
    try:
        with pytest.raises(CheckpointError, match=re.escape(advice)):
            encode({"a": value}, classes_in(value))
    finally:
        Box.area = 0


def test_a_zone_with_rules_is_refused() -> None:
    """A time zone whose rules change with the machine's database is refused, and the way out told."""
    try:
        zone = zoneinfo.ZoneInfo("Europe/Berlin")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("needs the time zone database")
    with pytest.raises(CheckpointError, match=r"zoneinfo.ZoneInfo\. Allowed"):
        encode(datetime.datetime(2024, 1, 1, tzinfo=zone))


def test_a_class_that_a_resume_would_not_find_is_refused() -> None:
    """A member of an enum, named tuple or dataclass is refused at save unless its class is known at load."""
    Pair = namedtuple("Pair", "a b")

    class Color(enum.Enum):
        RED = 1

    @dataclasses.dataclass
    class Config:
        color: Any

    for value, name in ((Pair(1, 2), "Pair"), (Color.RED, "Color"), (Config(1), "Config")):
        with pytest.raises(CheckpointError, match="it is not registered") as e:
            encode({"state": {"mode": [value]}})
        qualname = type(value).__qualname__
        assert f"Received at state/mode[0]: tests.checkpoint.test_tree_refusals:{qualname}" in str(e.value)
        assert f"`trainlab.checkpoint.register_class({qualname})` or return plain data" in str(e.value)
        assert name in qualname
        encode({"state": {"mode": [value]}}, classes_in(value))


def test_two_classes_of_one_name_are_not_mixed_up() -> None:
    """A member of a class whose name belongs to another class is refused: it would come back as one of that."""

    def make(value: int) -> Any:
        class Color(enum.Enum):
            RED = value

        return Color.RED

    old, new = make(1), make(2)
    with pytest.raises(CheckpointError, match=r"another class is registered under its name\. Received at \[1\]"):
        encode([new, old], classes_in([new, old]))


def test_a_tree_that_contains_itself_is_refused() -> None:
    """A cycle is an error and no endless loop."""
    tree: list[Any] = []
    tree.append(tree)
    with pytest.raises(CheckpointError, match="contains itself"):
        encode(tree)


def test_a_combination_of_very_many_flags_is_refused() -> None:
    """A flag too large to be read in a bounded time is refused when it is written, not when it is needed."""

    class Wide(enum.IntFlag):
        A = 1

    with pytest.raises(CheckpointError, match="too many flags"):
        encode(Wide(2**5000), classes_in(Wide.A))
