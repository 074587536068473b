"""What may be an experiment, and what it is sent as."""

import pickle
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

import trainlab
from tests.experiments.made import read
from trainlab.errors import InvalidTypeError, InvalidValueError


class Model(BaseModel):
    """What a main function can take."""


def test_an_experiment_is_named_like_its_function() -> None:
    """The name is the function's in lower case with dashes, or the given one if it can be a folder."""

    @trainlab.experiment
    def Train_All(params: dict[str, Any]) -> None:
        """Learns."""

    assert (Train_All.name, Train_All.path, Train_All.help) == ("train-all", "train-all", "Learns.")
    assert trainlab.experiment(name="x.1")(Train_All.main).name == "x.1"
    for name in ("", "a b", "a/b", "-a", "../a"):
        with pytest.raises(InvalidValueError, match="name of an experiment"):
            trainlab.experiment(name=name)(Train_All.main)


def model_last(context: Any, config: Model) -> None:
    """Has its arguments the wrong way round."""


@pytest.mark.parametrize(
    "main",
    [
        lambda: None,
        lambda a, b, c: None,
        lambda *, key: None,
        model_last,
        3,
        print,
    ],
)
def test_a_main_function_of_another_form_is_an_error(main: Any) -> None:
    """What is no function of (params), (params, context), a model, or a model and the context is refused at once."""
    with pytest.raises(InvalidTypeError, match="made of a function|main function takes"):
        trainlab.experiment(main)


def test_a_main_function_that_would_not_run_is_an_error() -> None:
    """A coroutine or a generator, of which a call runs nothing, is refused instead of recorded as finished."""

    async def coroutine(params: dict[str, Any]) -> None: ...

    def generator(params: dict[str, Any]) -> Any:
        yield params

    async def both(params: dict[str, Any]) -> Any:
        yield params

    for main in (coroutine, generator, both):
        with pytest.raises(InvalidTypeError, match=f"runs nothing of it.*Received: .*{main.__name__}"):
            trainlab.experiment(main)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated where they stand before Python 3.14")
def test_types_for_a_type_checker_alone_are_told() -> None:
    """A type that is there for type checkers alone may be the context's, and is told to be missing as a model."""
    text = "def train(params, context: Context): ...\ndef other(config: Config): ..."
    module: dict[str, Any] = {"__name__": "evaluated_late"}
    exec(text, module)
    assert trainlab.experiment(module["train"]).takes_context
    with pytest.raises(InvalidTypeError, match="The type of config in other cannot be found"):
        trainlab.experiment(module["other"])


@trainlab.experiment
def importable(params: dict[str, Any]) -> None:
    """Can be sent to another process."""


def test_an_experiment_pickles_by_reference() -> None:
    """Another process gets the very experiment that its module defines, and the values that were read."""
    assert pickle.loads(pickle.dumps(importable)) is importable
    values = importable.read(environ={})
    assert pickle.loads(pickle.dumps(values)) == values
    assert pickle.loads(pickle.dumps(importable.parameters))[0] == importable.parameters[0]


NOTEBOOK = """
from __future__ import annotations
import os
import cloudpickle
import trainlab
from pydantic import BaseModel, Field

class Config(BaseModel):
    xs: list[int] = Field(default_factory=lambda: [1])

@trainlab.parameter("above", int, 4)
@trainlab.experiment
@trainlab.parameter("below", lambda text: text[::-1])
def train(config: Config): ...

train.read(argv=["--below", "xyz"])
os.write(1, cloudpickle.dumps(train))
"""


def test_an_experiment_of_a_notebook_is_sent_whole() -> None:
    """What no other process can import is sent by value, with all of its parameters."""
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = read(pickle.loads(done.stdout), "--below", "abc", "--xs", "2").params
    assert (found["above"], found["below"], found["xs"]) == (4, "cba", [2])
