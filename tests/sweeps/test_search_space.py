"""What a search chooses, made of what an experiment declares."""

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from typing_extensions import TypeAliasType

import trainlab
from tests.sweeps.search_programs import bowl, layered, varied
from trainlab import Experiment, Search
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.sweeps.space import Space


def test_what_is_declared_is_searched() -> None:
    """Parameters that declare a Search are searched, whole numbers as whole numbers, but for those that are given."""
    assert Space.of(bowl, {}, None).distributions == {"x": FloatDistribution(-5, 5), "y": IntDistribution(-5, 5)}
    assert list(Space.of(bowl, {"x": 1.0}, None).distributions) == ["y"]


def test_fields_of_nested_models_are_searched() -> None:
    """A space names the fields of nested models with a dot, and choices are kept as they are."""
    space = {"optimizer.lr": Search(1e-5, 1e-1, log=True), "optimizer.name": Search(choices=["adam", "sgd"])}
    found = Space.of(layered, {}, space)
    assert found.distributions == {
        "optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True),
        "optimizer.name": CategoricalDistribution(["adam", "sgd"]),
    }
    found.check(layered, {"depth": 3})


def test_a_range_ends_at_its_last_step() -> None:
    """Of a range that its step does not divide the last step is the end, and Optuna has nothing to warn of."""
    space = {"x": Search(0, 1, step=0.3), "y": Search(1, 8, step=3)}
    found = Space.of(bowl, {}, space).distributions
    assert found["x"] == FloatDistribution(0, 0.9, step=0.3)
    assert found["y"] == IntDistribution(1, 7, step=3)


def test_a_params_file_fixes_what_it_names(tmp_path: Any) -> None:
    """What the params file of a call gives is not searched."""
    (tmp_path / "some.yaml").write_text("x: 2.0\n")
    assert "x" not in Space.of(bowl, {"params_file": str(tmp_path / "some.yaml")}, None).distributions


@pytest.mark.parametrize(
    ("experiment", "fixed", "space", "told"),
    [
        (bowl, {}, {"z": Search(0, 1)}, "does not have. Received: 'z'"),
        (bowl, {}, {"shfit": Search(0, 1)}, "Did you mean shift"),
        (bowl, {"x": 1.0}, {"x": Search(0, 1)}, "both for x"),
        (layered, {}, None, "nothing to search"),
        (bowl, {}, {"y": Search(0, 1.5)}, "y is a whole number"),
        (bowl, {}, {"x": Search(choices=[[1], [2]])}, "numbers, texts, True, False or None. Received: \\[1\\]"),
    ],
)
def test_a_space_that_cannot_be_searched(experiment: Experiment, fixed: Any, space: Any, told: str) -> None:
    """A space that cannot be searched is refused before anything runs, with what was given and what to do."""
    with pytest.raises(InvalidValueError, match=told):
        Space.of(experiment, fixed, space)


def test_a_space_of_something_else() -> None:
    """A space of anything but trainlab.Search is refused with an example of the right thing."""
    with pytest.raises(InvalidTypeError, match=r"trainlab.Search\(1e-5, 1e-1, log=True\)"):
        Space.of(bowl, {}, {"x": (0, 1)})  # type: ignore[dict-item]  # the mistake


def test_values_that_the_experiment_refuses() -> None:
    """A range whose end the experiment refuses is told before the first trial, with the experiment's reason."""
    found = Space.of(layered, {}, {"optimizer.lr": Search(0.0, 1.0)})
    with pytest.raises(InvalidValueError, match=r"would try optimizer.lr=0.0(.|\n)*above 0"):
        found.check(layered, {})


def test_variants_are_searched_as_they_are_chosen() -> None:
    """Of a union of models the fields of the chosen variant are searched, each as that variant declares it."""
    of_default = Space.of(varied, {}, None)
    assert of_default.distributions == {
        "optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True),
        "depth": IntDistribution(1, 2),
    }
    of_other = Space.of(varied, {"optimizer": {"kind": "sgd"}}, None)
    assert of_other.distributions["optimizer.lr"] == FloatDistribution(0.5, 1)
    assert list(of_other.distributions) == ["optimizer.lr", "optimizer.momentum", "depth"]
    for found, fixed in ((of_default, {}), (of_other, {"optimizer.kind": "sgd"})):
        found.check(varied, fixed)


def test_variants_are_chosen_by_a_search() -> None:
    """Where a search chooses the variant, only its fields are drawn, and a grid is the union of those of each."""
    space = {
        "optimizer.kind": Search(choices=["adam", "sgd"]),
        "optimizer.lr": Search(choices=[0.1, 0.2]),
        "depth": Search(choices=[1]),
    }
    found = Space.of(varied, {}, space)
    found.check(varied, {})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [found.draw(study.ask()) for _ in range(20)]
    assert {one["optimizer.kind"] for one in drawn} == {"adam", "sgd"}
    for one in [*drawn, *found.grid(0)]:
        assert ("optimizer.momentum" in one) == (one["optimizer.kind"] == "sgd")
        varied.read(one)
        assert found.is_whole(one)
        assert not found.is_whole({"optimizer.kind": "sgd", "optimizer.lr": 0.1, "depth": 1})
    assert len(found.grid(0)) == 2 + 2 * 2


@pytest.mark.parametrize(
    ("fixed", "space", "told"),
    [
        ({}, {"optimizer.momentum": Search(0, 1)}, "belongs to optimizer.kind=sgd, and that is not chosen"),
        ({}, {"optimizer.kind": Search(choices=["adam", "sgd"])}, "declares another Search in each variant"),
        ({}, {"optimizer.kind": Search(choices=["adam", "lion"])}, "must be one of adam, sgd. Received: 'lion'"),
    ],
)
def test_variants_that_cannot_be_searched(fixed: Any, space: Any, told: str) -> None:
    """What belongs to a variant that is never chosen, and two spaces for one name, are refused with what to do."""
    with pytest.raises(InvalidValueError, match=told):
        Space.of(varied, fixed, space).check(varied, fixed)


def test_the_parameter_that_is_refused_is_named() -> None:
    """Of several parameters that which the experiment refuses is blamed, and not the first one."""
    space = {"shift": Search(choices=[1.0, "far"]), "x": Search(0, 1)}
    with pytest.raises(InvalidValueError, match=r"would try shift='far', with the others?(.|\n)*shift(.|\n)*'far'"):
        Space.of(bowl, {}, space).check(bowl, {})
    space = {"x": Search(0, 1), "shift": Search(choices=["far"])}
    with pytest.raises(InvalidValueError, match=r"would try x=0.0, y=-5, shift='far', and(.|\n)*Received: 'far'"):
        Space.of(bowl, {}, space).check(bowl, {})


def test_none_is_no_choice_of_what_cannot_be_none() -> None:
    """None, which would count as not given, is refused for a parameter that has another default and no such type."""
    with pytest.raises(InvalidValueError, match="shift cannot be None, which counts as not given"):
        Space.of(bowl, {}, {"shift": Search(choices=[None, 1.0])})


def test_a_name_for_a_type_is_that_type() -> None:
    """A range of whole numbers for a type that is another name of float draws any number between."""

    @trainlab.experiment
    @trainlab.parameter("x", TypeAliasType("Rate", float), default=1.0)
    def aliased(params: dict[str, Any]) -> None:
        """Takes a float by another name."""

    assert Space.of(aliased, {}, {"x": Search(1, 10)}).distributions == {"x": FloatDistribution(1, 10)}


def test_a_grid_has_each_point_once() -> None:
    """A grid is all combinations, each once, shuffled alike for the same seed."""
    space = {"x": Search(0, 1, step=0.5), "y": Search(1, 4), "shift": Search(choices=[0.0, 1.0])}
    found = Space.of(bowl, {}, space)
    grid = found.grid(3)
    assert len({tuple(point.items()) for point in grid}) == len(grid) == 3 * 4 * 2
    assert grid == found.grid(3) != found.grid(4)
    with pytest.raises(InvalidValueError, match="A grid needs a step or choices"):
        Space.of(bowl, {}, None).grid(0)
