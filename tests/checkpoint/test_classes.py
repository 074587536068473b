import dataclasses
import enum
import json
import sys
import types
from collections import namedtuple
from typing import Any

import pytest

from tests.checkpoint.trees import Box, Interval, Level, Mode, Permission, Point, Slotted
from trainlab.checkpoint.classes import classes_in, register_class
from trainlab.checkpoint.tree import decode, encode
from trainlab.errors import CheckpointMismatchError, InvalidTypeError


def test_registered_classes_are_restored() -> None:
    """A class that was registered, also by decorator, is stored and restored without any live member of it."""

    @register_class
    @dataclasses.dataclass
    class Config:
        mode: Any

    @register_class
    class Speed(enum.Enum):
        FAST = 1

    tree = [Config(Speed.FAST)]
    structure, tensors = encode(tree)
    assert decode(json.loads(json.dumps(structure)), tensors) == tree


def test_a_class_defined_again_takes_the_place_of_the_first() -> None:
    """In a notebook, where a cell is run again, a member comes back as one of the newest class."""

    def define(value: int) -> Any:
        class Speed(enum.Enum):
            FAST = value

        return register_class(Speed)

    first = define(1)
    structure, _ = encode(first.FAST)
    second = define(2)
    assert decode(structure, {}) is second.FAST


def test_classes_of_live_objects_come_before_registered_ones() -> None:
    """A member comes back as one of the class that the object being restored uses."""

    def define() -> Any:
        class Speed(enum.Enum):
            FAST = 1

        return Speed

    registered, live = register_class(define()), define()
    structure, _ = encode(live.FAST, classes_in([live.FAST]))
    assert decode(structure, {}, classes_in([live.FAST])) is live.FAST
    assert decode(structure, {}) is registered.FAST


def test_a_class_of_the_script_is_found_in_the_next_run() -> None:
    """A class of the program itself, whose module is ``__main__`` in every run, is restored."""

    def run() -> Any:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec("import enum\nclass Speed(enum.Enum):\n    FAST = 1", namespace)
        return namespace["Speed"].FAST

    saved, resumed = run(), run()
    structure, _ = encode(saved, classes_in(saved))
    assert structure["class"] == "__main__:Speed"
    assert decode(structure, {}, classes_in(resumed)) is resumed


@pytest.mark.parametrize("wrong", [int, dict, tuple, object, Mode.FAST, Point(1, 2), "Mode", None, len])
def test_only_classes_that_are_data_can_be_registered(wrong: Any) -> None:
    """What is no enum, named tuple or dataclass is refused when it is registered, not when it is read."""
    with pytest.raises(InvalidTypeError, match="Only enums, named tuples and dataclasses"):
        register_class(wrong)


def test_a_class_with_other_content_than_its_fields_cannot_be_registered() -> None:
    """A dataclass that is also a dict would come back empty, so it is refused."""

    @dataclasses.dataclass
    class Growing(dict):  # type: ignore[type-arg]
        size: int = 0

    with pytest.raises(InvalidTypeError, match="derives from a built-in class"):
        register_class(Growing)


def test_classes_are_found_wherever_they_are() -> None:
    """Members in keys, sets, fields, slots and other members are found, through cycles too."""
    loop: list[Any] = [Interval(Level.LOW)]
    loop.append(loop)
    tree = {Mode.FAST: [{Permission.READ}], "a": Box(Point(loop, slice(Slotted(1), None)))}
    found = classes_in(tree)
    assert set(found.values()) == {Mode, Permission, Box, Point, Interval, Level, Slotted}
    assert all(name == f"{cls.__module__}:{cls.__qualname__}" for name, cls in found.items())


class Strange:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")


class StrangeType(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)

    def __hash__(cls) -> int:
        raise RuntimeError("hash")


class StrangeMember(metaclass=StrangeType):
    pass


@dataclasses.dataclass(init=False)
class Unset:
    field: int


def test_strange_objects_are_passed_over() -> None:
    """Whatever a user's object does when it is looked at, the classes beside it are found."""
    tree = [Strange(), type.__call__(StrangeMember), Unset(), types.SimpleNamespace(a=Mode), Mode, sys, Level.LOW]
    assert set(classes_in(tree).values()) == {Unset, Level}


def test_a_tree_without_end_is_searched_to_a_bound() -> None:
    """Nesting that never ends takes neither the stack nor all the time."""
    tree: Any = Level.LOW
    for _ in range(100_000):
        tree = [tree]
    assert classes_in(tree) == {}
    for _ in range(99_900):
        tree = tree[0]
    assert classes_in(tree) == {"tests.checkpoint.trees:Level": Level}


def test_an_unknown_class_is_not_imported() -> None:
    """A name in a checkpoint imports nothing, and finds no class of a module that is already imported."""
    sys.modules.pop("antigravity", None)
    for name in ("antigravity:Anything", "tests.checkpoint.trees:Mode", "os:PathLike", "signal:Signals"):
        with pytest.raises(CheckpointMismatchError, match="not known here") as e:
            decode({"state": [{"$": "enum", "class": name, "v": "FAST"}]}, {})
        assert f"Received at state[0]: {name}" in str(e.value)
        assert "trainlab.checkpoint.register_class" in str(e.value)
    assert "antigravity" not in sys.modules


def test_a_member_that_is_gone_is_named() -> None:
    """An enum that lost a member does not fit, and the message names both."""
    for stored, shown in (("FASTER", "'FASTER'"), (3, "0x3")):
        node = {"$": "enum", "class": "tests.checkpoint.trees:Mode", "v": stored}
        with pytest.raises(CheckpointMismatchError, match=f"{shown} of tests.checkpoint.trees:Mode"):
            decode([node], {}, classes_in(Mode.SLOW))


def test_flags_that_are_gone_are_named() -> None:
    """A combination with a flag that the class no longer has does not fit."""
    node = {"$": "enum", "class": "tests.checkpoint.trees:Permission", "v": 9}
    with pytest.raises(CheckpointMismatchError, match="0x9 of tests.checkpoint.trees:Permission"):
        decode(node, {}, classes_in(Permission.READ))


def test_fields_that_changed_are_listed() -> None:
    """A dataclass or named tuple whose fields changed does not fit, and the message lists missing and unknown ones."""
    Old = namedtuple("Old", "x older oldest")
    structure, _ = encode({"a": Old(1, 2, 3)}, classes_in(Old(1, 2, 3)))
    name = structure["a"]["class"]
    with pytest.raises(CheckpointMismatchError, match=r"Received at a: .*missing: y; unknown: older, oldest\."):
        decode(structure, {}, {name: Point})
    structure["a"]["$"] = "dataclass"
    with pytest.raises(CheckpointMismatchError, match=r"missing: side, area; unknown: x, older, oldest\."):
        decode(structure, {}, {name: Box})


def test_a_class_that_became_another_kind_does_not_fit() -> None:
    """An enum that is now a dataclass is a difference that is told."""
    structure, _ = encode(Mode.SLOW, classes_in(Mode.SLOW))
    with pytest.raises(CheckpointMismatchError, match="was of kind enum and now is dataclass"):
        decode(structure, {}, {structure["class"]: Box})
