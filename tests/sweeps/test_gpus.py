"""Gpus: who gets which, from lists of names as CUDA_VISIBLE_DEVICES has them."""

import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.sweeps.gpus import Gpus, gpus_for

NAMES = ["3", "GPU-8f2c", "MIG-1d0e", "0"]


@given(st.integers(1, 6), st.data())
def test_the_least_used_gpus_are_taken(count: int, data: st.DataObject) -> None:
    """In whatever order processes begin and end, a new one gets GPUs that no others have fewer users than."""
    names = [str(number) for number in range(count)]
    per_process = data.draw(st.integers(0, count))
    gpus, held, users = Gpus(names, per_process), [], Counter(dict.fromkeys(names, 0))
    for is_begin in data.draw(st.lists(st.booleans(), max_size=30)):
        if is_begin:
            taken = gpus.take()
            assert len(set(taken)) == per_process and list(taken) == [name for name in names if name in taken]
            free = [users[name] for name in names if name not in taken]
            assert all(users[name] <= min(free, default=users[name]) for name in taken)
            held.append(taken)
            users.update(taken)
        elif held:
            back = held.pop(data.draw(st.integers(0, len(held) - 1)))
            gpus.give_back(back)
            users.subtract(back)


def test_names_of_all_kinds_are_handed_on() -> None:
    """Numbers, UUIDs and instances of MIG reach a process as this one has them; the longest unused comes first."""
    gpus = Gpus(NAMES, 2)
    first = gpus.take()
    assert (first, gpus.take()) == (("3", "GPU-8f2c"), ("MIG-1d0e", "0"))
    assert gpus.environment(first) == {"CUDA_VISIBLE_DEVICES": "3,GPU-8f2c"}
    gpus.give_back(first)
    assert gpus.take() == first
    one = Gpus(NAMES, 1)
    taken = []
    for _ in range(5):
        taken.append(*one.take())
        one.give_back(taken[-1:])
    assert taken == [*NAMES, NAMES[0]]


def test_no_gpus_can_be_asked_for() -> None:
    """With 0 a process sees none of the GPUs that are there."""
    gpus = gpus_for(2, 0)
    assert gpus is not None and gpus.environment(gpus.take()) == {"CUDA_VISIBLE_DEVICES": ""}
    assert gpus_for(2, None) is None


@pytest.mark.parametrize("wrong", [3, -1])
def test_more_gpus_than_there_are_is_an_error(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for GPUs that are not there is told which are, and by which variable."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InvalidValueError, match=rf"num_gpus_per_process={wrong}.*2 \(5, 7\).*from 0 to 2"):
        Gpus(["5", "7"], wrong)
    with pytest.raises(InvalidValueError, match="none. Pass None"):
        Gpus([], 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(InvalidValueError, match="none, by CUDA_VISIBLE_DEVICES='-1'. Pass None"):
        Gpus([], 1)
    with pytest.raises(InvalidTypeError, match="is an int"):
        Gpus(["5"], True)


def test_sharing_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """More processes than GPUs share them, which is said before anything fails for want of memory."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    with caplog.at_level(logging.WARNING, "trainlab.sweeps"):
        assert gpus_for(2, 1) is not None and not caplog.messages
        gpus = gpus_for(3, 1)
    assert gpus is not None and [gpus.take() for _ in range(3)] == [("MIG-a",), ("MIG-b",), ("MIG-a",)]
    assert (
        "3 processes at once with 1 of 2 GPUs each share them" in caplog.text and "max_num_processes=2" in caplog.text
    )
