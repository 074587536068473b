import collections
import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from trainlab.data import data_length, pin, to_device

CPU = torch.device("cpu")
# Tensors can be moved there without a GPU, and it can be seen that they were.
META = torch.device("meta")


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Sample:
    image: torch.Tensor
    name: Any
    derived: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("made anew")
        object.__setattr__(self, "derived", self.image + 1)


class Movable:
    def __init__(self, device: Any = None) -> None:
        self.device = device

    def to(self, device: Any) -> "Movable":
        return Movable(device)


@pytest.mark.parametrize(
    "there", [torch.ones(2), [torch.ones(2), torch.zeros(1)], (torch.ones(2), torch.zeros(1)), []], ids=repr
)
def test_what_is_there_is_returned_itself(there: Any) -> None:
    """A batch that is on the device already costs nothing: it is the very same object."""
    assert to_device(there, CPU) is there


def test_structures_come_back_as_they_were() -> None:
    """Tensors in dicts, lists, tuples, named tuples, dataclasses and movable objects move, and the structure stays."""
    data = {
        "list": [torch.ones(2), (torch.ones(1), [torch.ones(3)])],
        "pair": Pair(torch.ones(1), {"x": torch.ones(2)}),
        "sample": Sample(torch.ones(2), Movable()),
        "ordered": collections.OrderedDict(b=torch.ones(1), a=torch.ones(1)),
        "default": collections.defaultdict(list, x=torch.ones(1)),
    }
    moved = to_device(data, META)
    assert list(moved) == list(data)
    assert moved["list"][0].device == moved["list"][1][0].device == moved["list"][1][1][0].device == META
    assert type(moved["list"][1]) is tuple
    assert type(moved["pair"]) is Pair
    assert moved["pair"].second["x"].device == META
    assert moved["sample"].image.device == moved["sample"].derived.device == moved["sample"].name.device == META
    assert data["sample"].image.device == CPU
    assert type(moved["ordered"]) is collections.OrderedDict
    assert list(moved["ordered"]) == ["b", "a"]
    assert moved["default"].default_factory is list
    assert moved["default"]["x"].device == META


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "complex64", "int8", "int64", "uint8", "bool", ">f4"]
)
def test_arrays_become_tensors(dtype: str) -> None:
    """Arrays of numbers become tensors with the same values, also read-only, reversed and foreign-endian ones."""
    array = np.array([1, 0, 1]).astype(dtype)[::-1]
    array.flags.writeable = False
    moved = to_device([array], CPU)[0]
    assert isinstance(moved, torch.Tensor)
    assert moved.tolist() == array.tolist()


def test_one_warning_for_each_unmovable_type(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be moved comes back as it is, with one warning per type, also over several calls."""
    warned: set[type] = set()
    text_array = np.array(["a", "b"])
    data = ["text", "more", 3, text_array, Pair, None]
    with caplog.at_level(logging.WARNING, logger="trainlab.data"):
        moved = to_device(data, CPU, warned=warned)
        to_device({"x": ("again", 4)}, CPU, warned=warned)
    assert all(after is before for after, before in zip(moved, data, strict=True))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(warned) == 5
    assert all("not able to move data" in message for message in messages)


def test_a_device_may_be_named() -> None:
    """A device given by its name does."""
    assert to_device(torch.ones(1), "meta").device == META


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        (torch.ones(3, 2), 3),
        (np.ones((4, 1)), 4),
        ({"x": torch.ones(5), "y": 1}, 5),
        ([torch.ones(2), 3], 2),
        (({"x": [torch.ones(6)]},), 6),
        (torch.ones(0, 2), 0),
    ],
)
def test_data_length(batch: Any, length: int) -> None:
    """The number of records is the length of the first array or tensor."""
    assert data_length(batch) == length


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ({}, ValueError),
        ([], ValueError),
        ((), ValueError),
        ("text", TypeError),
        (3, TypeError),
        (["text"], TypeError),
        (torch.ones(()), TypeError),
    ],
)
def test_data_length_refuses(batch: Any, error: type[Exception]) -> None:
    """An empty structure is a ValueError, anything without a length of its own a TypeError."""
    with pytest.raises(error, match="get_batch_length"):
        data_length(batch)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_structures() -> None:
    """Every tensor of a structure is copied into page-locked memory, and nothing else is touched."""
    data = {"x": [torch.ones(2), "text"], "pair": Pair(torch.ones(1), 3)}
    pinned = pin(data)
    assert pinned["x"][0].is_pinned()
    assert pinned["pair"].first.is_pinned()
    assert pinned["x"][1] == "text"
    assert pinned["pair"].second == 3
