"""Space: the parameters that a search chooses, as Optuna draws from them."""

import difflib
import itertools
import math
import random
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from trainlab.errors import InvalidTypeError, InvalidValueError, TrainlabError
from trainlab.experiments.search_space import Search
from trainlab.experiments.sources import Sources
from trainlab.experiments.values import as_plain

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.parameters import Parameter

__all__ = ["Space", "given_names"]

# A grid is made whole in memory.
_LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Space:
    """What a search chooses.

    Attributes:
        searches: by the parameter's name.
        distributions: the same as Optuna's.
    """

    searches: Mapping[str, Search]
    distributions: Mapping[str, "BaseDistribution"]

    @classmethod
    def of(cls, experiment: "Experiment", fixed: Iterable[str], space: Mapping[str, Search] | None) -> "Space":
        """The space that the experiment declares, less what is fixed, and with what the call adds or says otherwise.

        Args:
            experiment: whose parameters they are.
            fixed: the names of those that are given a value.
            space: by the parameter's name; None for none.

        Returns:
            The space.

        Raises:
            InvalidTypeError: ``space`` holds anything but ``trainlab.Search``.
            InvalidValueError: a parameter is unknown, both fixed and searched, or cannot be drawn so; or there is none.
        """
        given = _checked(space)
        known = {parameter.name: parameter for parameter in experiment.parameters}
        fixed = set(fixed)
        if unknown := [name for name in given if name not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            raise InvalidValueError(
                f"The search's space has a parameter that {experiment.path!r} does not have. Received: {unknown[0]!r}. "
                + (f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(known)}.")
            )
        if twice := sorted(fixed & given.keys()):
            raise InvalidValueError(
                f"A parameter is either searched or given a value. Received: both for {', '.join(twice)}. "
                "Take it out of the space, or out of the parameters."
            )
        declared = {name: one.search for name, one in known.items() if one.search is not None and name not in fixed}
        searches = {**declared, **given}
        if not searches:
            raise InvalidValueError(
                f"There is nothing to search: {experiment.path!r} declares no parameter with "
                "search=trainlab.Search(...) that is not given a value. Declare one, or pass "
                "space={'lr': trainlab.Search(1e-5, 1e-1, log=True)}."
            )
        distributions = {name: _distribution(known[name], search) for name, search in searches.items()}
        return cls(searches, distributions)

    def check(self, experiment: "Experiment", fixed: Mapping[str, Any]) -> None:
        """See that the experiment takes the ends of all ranges, and all choices.

        Args:
            experiment: it.
            fixed: the other parameters.

        Raises:
            InvalidValueError: it does not.
        """
        some = self.some()
        for name, one in self.distributions.items():
            for value in _ends(one):
                try:
                    experiment.read({**fixed, **some, name: value})
                except TrainlabError as error:
                    raise InvalidValueError(
                        f"The search would try {name}={value!r}, with the other parameters as they are, and the "
                        f"experiment refuses: {error}"
                    ) from error

    def some(self) -> dict[str, Any]:
        """Any one point of the space, by the parameter's name."""
        return {name: _ends(one)[0] for name, one in self.distributions.items()}

    def draw(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Let a trial's sampler choose; what it has chosen before stays.

        Args:
            trial: Optuna's.

        Returns:
            The values by the parameter's name.
        """
        return {name: _suggested(trial, name, one) for name, one in self.distributions.items()}

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """All combinations, in an order that depends on the seed, so that the first ones are all over the space.

        Args:
            seed: the search's.

        Returns:
            The values by the parameter's name.

        Raises:
            InvalidValueError: a parameter has no end of values, or there are too many combinations.
        """
        axes = {name: _points(name, self.searches[name], one) for name, one in self.distributions.items()}
        size = math.prod(map(len, axes.values()))
        if size > _LARGEST_GRID:
            raise InvalidValueError(f"A grid has at most {_LARGEST_GRID} points. Received: a space of {size}.")
        points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        random.Random(seed).shuffle(points)
        return points

    def differing_from(self, before: Mapping[str, str]) -> tuple[str, str]:
        """What another space has otherwise, for people.

        Args:
            before: the other one as ``told`` gave it.

        Returns:
            Of this one, and of that: such as "x=Search(0.0, 1.0)".
        """
        mine = self.told()
        names = [name for name in sorted({*mine, *before}) if mine.get(name) != before.get(name)]
        return _shown(mine, names), _shown(before, names)

    def told(self) -> dict[str, str]:
        """The space as text, to compare it with another's."""
        from optuna.distributions import distribution_to_json

        return {name: distribution_to_json(one) for name, one in sorted(self.distributions.items())}


def given_names(experiment: "Experiment", params: Mapping[str, Any]) -> set[str]:
    """The names of the parameters that a call, or the params file that it names, gives a value.

    Args:
        experiment: whose parameters they are.
        params: by name, nested or not.

    Returns:
        Such as {"optimizer.lr"}. What is wrong with them is not looked at.
    """
    sources = Sources(experiment._nodes(), experiment.parameters)
    sources.add_call(params)
    sources.add_params_file()
    return set(sources.given)


def _checked(space: Any) -> dict[str, Search]:
    if space is None:
        return {}
    if not isinstance(space, Mapping) or not all(isinstance(one, Search) for one in space.values()):
        raise InvalidTypeError(
            f"space is a dict of trainlab.Search by the parameter's name. Received: {space!r}. "
            "Write space={'lr': trainlab.Search(1e-5, 1e-1, log=True)}."
        )
    return dict(space)


def _distribution(parameter: "Parameter", search: Search) -> "BaseDistribution":
    from optuna import distributions

    if search.choices is not None:
        choices = [as_plain(choice) for choice in search.choices]
        if odd := [choice for choice in choices if not isinstance(choice, bool | int | float | str | None)]:
            raise InvalidValueError(
                f"A search's choices are numbers, texts, True, False or None. Received: {odd[0]!r} for "
                f"{parameter.name}. Choose by a name, and look it up in the experiment."
            )
        return distributions.CategoricalDistribution(choices)
    low, high, step = search.low, search.high, search.step
    assert low is not None and high is not None  # Search has checked it; kept for the type checker
    if _is_int(parameter, search):
        if any(number is not None and number != int(number) for number in (low, high, step)):
            raise InvalidValueError(f"{parameter.name} is a whole number, and so are its Search's. Received: {search}.")
        width = 1 if step is None else int(step)
        high = low + (high - low) // width * width
        return distributions.IntDistribution(int(low), int(high), log=search.log, step=width)
    if step is not None:
        high = _steps(float(low), high, step)[-1]
    return distributions.FloatDistribution(float(low), float(high), log=search.log, step=step)


def _is_int(parameter: "Parameter", search: Search) -> bool:
    kinds = _kinds(parameter.annotation)
    if float in kinds:
        return False
    return int in kinds or all(number is None or isinstance(number, int) for number in (search.low, search.high))


def _kinds(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in {Union, types.UnionType}:
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def _ends(one: Any) -> list[Any]:
    return list(one.choices) if hasattr(one, "choices") else [one.low, one.high]


def _shown(told: Mapping[str, str], names: Iterable[str]) -> str:
    from optuna.distributions import json_to_distribution

    one = {name: json_to_distribution(told[name]) for name in names if name in told}
    return ", ".join(f"{name}={_search_of(one[name])}" if name in one else f"no {name}" for name in names)


def _search_of(one: Any) -> str:
    if hasattr(one, "choices"):
        return f"Search(choices={list(one.choices)!r})"
    is_stepped = one.step is not None and not (one.step == 1 and isinstance(one.step, int))
    more = (f", step={one.step!r}" if is_stepped else "") + (", log=True" if one.log else "")
    return f"Search({one.low!r}, {one.high!r}{more})"


def _suggested(trial: Any, name: str, one: Any) -> Any:
    if hasattr(one, "choices"):
        return trial.suggest_categorical(name, one.choices)
    if type(one).__name__ == "IntDistribution":
        return trial.suggest_int(name, one.low, one.high, step=one.step, log=one.log)
    return trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log)


def _points(name: str, search: Search, one: Any) -> list[Any]:
    if hasattr(one, "choices"):
        return list(one.choices)
    if one.step is None or one.log:
        raise InvalidValueError(
            f"A grid needs a step or choices for each parameter. Received: {search} for {name}. Add step=, list "
            "choices=, or use another sampler."
        )
    return _steps(one.low, one.high, one.step)


def _steps(low: float, high: float, step: float) -> list[Any]:
    """The values of a range, as a person counts them: 0, 0.1, 0.2, 0.3."""
    first, last, width = (Decimal(str(number)) for number in (low, high, step))
    kind = type(low)
    return [kind(first + number * width) for number in range(int((last - first) // width) + 1)]
