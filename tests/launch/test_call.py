"""Call: a function and its arguments on their way to another process."""

import functools
import pickle
import sys
import threading
import types
from typing import Any

import pytest

from tests.launch.programs import Counter, given
from trainlab.errors import InvalidTypeError, LaunchError
from trainlab.launch import Call


def sent(call: "Call[Any]") -> Any:
    """What the call gives once it has gone through bytes."""
    return pickle.loads(call.to_bytes())()


def test_a_call_survives_the_way() -> None:
    """Functions, partials, methods, objects and lambdas give on the other side what they give here."""
    around = 5
    assert sent(Call(given, (1,), {"a": 2})) == (0, (1,), {"a": 2})
    assert sent(Call(functools.partial(given, 1), (2,))) == (0, (1, 2), {})
    assert sent(Call(Counter(3).add, (4,))) == 7
    assert sent(Call(Counter(3), (4,))) == 7
    assert sent(Call(lambda number: number + around, (4,))) == 9


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (given, "given"),
        (functools.partial(functools.partial(given, 1), 2), "given"),
        (Counter(1).add, "add"),
        (Counter(1), "Counter"),
        (lambda: 1, "lambda"),
    ],
)
def test_a_call_has_a_name_for_people(function: Any, name: str) -> None:
    """The name, which is also a folder's, is that of the function itself."""
    assert Call(function).name == name


def test_what_cannot_be_called_is_refused() -> None:
    """Something else than a function is named with its type."""
    with pytest.raises(InvalidTypeError, match=r"Received: 'train' \(str\)"):
        Call("train")  # type: ignore[arg-type]


def test_what_cannot_be_sent_is_named() -> None:
    """An argument that no pickle holds is an error that says what to do with such things."""
    with pytest.raises(LaunchError, match=r"given cannot be sent .*TypeError: cannot pickle '_thread\.lock' object"):
        Call(given, (threading.Lock(),)).to_bytes()


def test_without_cloudpickle_a_lambda_is_told_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cloudpickle is not installed, the error for a lambda names the line that installs it."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(LaunchError, match=r"lambda cannot be sent .*pip install 'trainlab\[notebook\]'"):
        Call(lambda: 1).to_bytes()


def test_a_prompt_is_told_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of a program that is in no file go by value, so that a new process need not find the program."""
    prompt = types.ModuleType("__main__")
    exec("def typed():\n    return 41", prompt.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", prompt)
    content = Call(prompt.__dict__["typed"]).to_bytes()
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert pickle.loads(content)() == 41
