"""What belongs to the running experiment, asked for anywhere."""

import copy
import inspect
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.experiments.running_programs import asks, only_run
from trainlab import new_seed, output_dir, params
from trainlab.errors import InvalidStateError, InvalidValueError
from trainlab.runs.current import current_run
from trainlab.runs.sent_run import VARIABLE


@pytest.fixture
def during(tmp_path: Path) -> Any:
    """Call a function while an experiment runs, and give what it returns."""

    def call(function: Any, **values: Any) -> Any:
        experiment = trainlab.experiment(name="train")(lambda given: function())
        return experiment.run({"output_dir": tmp_path, **values})

    return call


def test_before_a_run_there_is_a_clear_error() -> None:
    """output_dir, params and new_seed say before a run that there is none, and what to do; their repr says so too."""
    for ask in (lambda: output_dir / "x", lambda: str(output_dir), lambda: os.fspath(output_dir), lambda: params["lr"]):
        with pytest.raises(InvalidStateError, match="No experiment is running.*@trainlab.experiment"):
            ask()
    for ask in (lambda: output_dir.name, lambda: len(params), lambda: "lr" in params, new_seed):  # type: ignore[assignment]
        with pytest.raises(InvalidStateError, match="No experiment is running"):
            ask()
    assert "before a run" in repr(output_dir) and "before a run" in repr(params)
    assert not inspect.isfunction(output_dir) and isinstance(params, Mapping)


def test_output_dir_is_a_path(during: Any) -> None:
    """In a run output_dir does what a pathlib.Path does, for open and os.path and shutil too."""

    def check() -> Path:
        folder = Path(str(output_dir))
        assert isinstance(output_dir, Path) and isinstance(output_dir, os.PathLike)
        assert output_dir == folder and folder == output_dir and hash(output_dir) == hash(folder)
        assert output_dir / "a" == folder / "a" and output_dir.joinpath("a", "b") == folder / "a" / "b"
        assert {folder: 1}[output_dir] == 1 and sorted([output_dir / "b", output_dir])[0] == folder
        assert not output_dir < folder and output_dir <= folder and folder >= output_dir > folder.parent
        assert os.path.join(output_dir, "a") == f"{folder}/a" and Path(output_dir, "a") == folder / "a"
        assert (
            f"{output_dir}" == str(folder) and bytes(output_dir) == bytes(folder) and repr(output_dir) == repr(folder)
        )
        with open(output_dir / "a", "w") as file:
            file.write("x")
        shutil.copy(output_dir / "a", output_dir / "b")
        assert (output_dir / "b").read_text() == "x" and output_dir.is_absolute() and output_dir.name == folder.name
        assert type(pickle.loads(pickle.dumps(output_dir))) is type(folder) and copy.deepcopy(output_dir) == folder
        return folder

    assert during(check).is_dir()


def test_params_are_those_of_the_run(during: Any) -> None:
    """In a run params is a mapping of all parameters by name, which changes nothing when it is copied."""

    def check() -> None:
        assert params["cuda"] is False and {**params} == dict(params) and "random_seed" in params
        assert len(params) == len(list(params)) and pickle.loads(pickle.dumps(params)) == dict(params)
        assert params.get("nothing", 3) == 3

    during(check, cuda=False)


def test_seeds_are_drawn_as_asked(during: Any) -> None:
    """new_seed gives as many random bits as asked for, and refuses to give none."""

    def check() -> list[int]:
        with pytest.raises(InvalidValueError, match="nbits is an int of at least 1. Received: 0"):
            new_seed(0)
        return [new_seed(1) for _ in range(20)] + [new_seed(200)]

    *bits, large = during(check, random_seed=1)
    assert set(bits) == {0, 1} and large > 2**128
    assert during(check, random_seed=1) == [*bits, large]


def test_threads_and_children_of_all_kinds_know_the_run(tmp_path: Path) -> None:
    """A thread, a forked, a spawned and an exec'ed process see folder, parameters and seeds; only the run's owns it."""
    found = asks.run({"output_dir": tmp_path, "lr": 0.5})
    folder = only_run(tmp_path, "asks")
    assert {name: one["output_dir"] for name, one in found.items()} == dict.fromkeys(found, str(folder))
    assert {one["lr"] for one in found.values()} == {0.5}
    assert [name for name, one in found.items() if one["own"]] == ["main", "thread"]
    assert found["spawn"]["seed"] == found["exec"]["seed"] == found["main"]["seed"] != found["thread"]["seed"]
    assert VARIABLE not in os.environ and current_run() is None


@pytest.mark.parametrize(("value", "reason"), [("x" * 200_000, "too large"), (lambda: 0, "cannot be pickled")])
def test_parameters_that_cannot_be_sent_are_told_where_they_are_missed(during: Any, value: Any, reason: str) -> None:
    """A child of a run whose parameters are huge, or cannot be pickled, knows output_dir, and says what is missing."""
    code = (
        "from trainlab import output_dir, params\n"
        "print(output_dir)\n"
        "try: params['lr']\n"
        "except RuntimeError as error: print(error)\n"
    )

    def check() -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return str(output_dir), done.stdout

    experiment = trainlab.experiment(name="train")(trainlab.parameter("lr", object)(lambda given: check()))
    folder, said = experiment.run({"output_dir": during(lambda: output_dir.parent.parent), "lr": value})
    assert said.splitlines()[0] == folder and reason in said.splitlines()[1]


def test_a_child_may_run_an_experiment_of_its_own(during: Any, tmp_path: Path) -> None:
    """A process that a run starts is not in that run's way: it runs another experiment, and then is a child again."""
    code = (
        "import trainlab\n"
        "before = str(trainlab.output_dir)\n"
        "@trainlab.experiment\n"
        "def other(params): return str(trainlab.output_dir)\n"
        f"inside = other.run({{'output_dir': {str(tmp_path / 'others')!r}}})\n"
        "print(before, inside, trainlab.output_dir)\n"
    )

    def check() -> list[str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return [str(output_dir), *done.stdout.split()]

    own, before, inside, after = during(check)
    assert own == before == after and Path(inside).parent == tmp_path / "others/other"


def test_a_variable_that_no_run_has_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAINLAB_EXPERIMENT with something else in it is an error that names it, and no wrong folder."""
    monkeypatch.setenv(VARIABLE, "train")
    with pytest.raises(InvalidStateError, match="TRAINLAB_EXPERIMENT is set by a run.*Received: 'train'"):
        str(output_dir)
