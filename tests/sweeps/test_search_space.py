"""What a search chooses, made of what an experiment declares."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tests.sweeps.search_programs import bowl, layered
from trainlab import Experiment, Search
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.sweeps.space import Space, given_names


def test_what_is_declared_is_searched() -> None:
    """Parameters that declare a Search are searched, whole numbers as whole numbers, but for those that are given."""
    assert Space.of(bowl, (), None).distributions == {"x": FloatDistribution(-5, 5), "y": IntDistribution(-5, 5)}
    assert list(Space.of(bowl, given_names(bowl, {"x": 1.0}), None).distributions) == ["y"]


def test_fields_of_nested_models_are_searched() -> None:
    """A space names the fields of nested models with a dot, and choices are kept as they are."""
    space = {"optimizer.lr": Search(1e-5, 1e-1, log=True), "optimizer.name": Search(choices=["adam", "sgd"])}
    found = Space.of(layered, (), space)
    assert found.distributions == {
        "optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True),
        "optimizer.name": CategoricalDistribution(["adam", "sgd"]),
    }
    found.check(layered, {"depth": 3})


def test_a_range_ends_at_its_last_step() -> None:
    """Of a range that its step does not divide the last step is the end, and Optuna has nothing to warn of."""
    space = {"x": Search(0, 1, step=0.3), "y": Search(1, 8, step=3)}
    found = Space.of(bowl, (), space).distributions
    assert found["x"] == FloatDistribution(0, 0.9, step=0.3)
    assert found["y"] == IntDistribution(1, 7, step=3)


def test_a_params_file_fixes_what_it_names(tmp_path: Any) -> None:
    """What the params file of a call gives is not searched."""
    (tmp_path / "some.yaml").write_text("x: 2.0\n")
    assert "x" in given_names(bowl, {"params_file": str(tmp_path / "some.yaml")})


@pytest.mark.parametrize(
    ("experiment", "fixed", "space", "told"),
    [
        (bowl, (), {"z": Search(0, 1)}, "does not have. Received: 'z'"),
        (bowl, (), {"shfit": Search(0, 1)}, "Did you mean 'shift'"),
        (bowl, ("x",), {"x": Search(0, 1)}, "both for x"),
        (layered, (), None, "nothing to search"),
        (bowl, (), {"y": Search(0, 1.5)}, "y is a whole number"),
        (bowl, (), {"x": Search(choices=[[1], [2]])}, "numbers, texts, True, False or None. Received: \\[1\\]"),
    ],
)
def test_a_space_that_cannot_be_searched(experiment: Experiment, fixed: Any, space: Any, told: str) -> None:
    """A space that cannot be searched is refused before anything runs, with what was given and what to do."""
    with pytest.raises(InvalidValueError, match=told):
        Space.of(experiment, fixed, space)


def test_a_space_of_something_else() -> None:
    """A space of anything but trainlab.Search is refused with an example of the right thing."""
    with pytest.raises(InvalidTypeError, match=r"trainlab.Search\(1e-5, 1e-1, log=True\)"):
        Space.of(bowl, (), {"x": (0, 1)})  # type: ignore[dict-item]  # the mistake


def test_values_that_the_experiment_refuses() -> None:
    """A range whose end the experiment refuses is told before the first trial, with the experiment's reason."""
    found = Space.of(layered, (), {"optimizer.lr": Search(0.0, 1.0)})
    with pytest.raises(InvalidValueError, match=r"would try optimizer.lr=0.0(.|\n)*above 0"):
        found.check(layered, {})


def test_a_grid_has_each_point_once() -> None:
    """A grid is all combinations, each once, shuffled alike for the same seed."""
    space = {"x": Search(0, 1, step=0.5), "y": Search(1, 4), "shift": Search(choices=[0.0, 1.0])}
    found = Space.of(bowl, (), space)
    grid = found.grid(3)
    assert len({tuple(point.items()) for point in grid}) == len(grid) == 3 * 4 * 2
    assert grid == found.grid(3) != found.grid(4)
    with pytest.raises(InvalidValueError, match="A grid needs a step or choices"):
        Space.of(bowl, (), None).grid(0)
