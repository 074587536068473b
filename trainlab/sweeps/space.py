"""Space: the parameters that a search chooses, as Optuna draws from them."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidTypeError, InvalidValueError, TrainlabError, did_you_mean
from trainlab.experiments.annotations import allows_none, members
from trainlab.experiments.model_fields import Branch, Node
from trainlab.experiments.search_space import Search
from trainlab.experiments.sources import Sources
from trainlab.experiments.values import as_plain

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.parameters import Parameter

__all__ = ["Space"]

# A grid is made whole in memory.
_LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Space:
    """What a search chooses; of a union of models the fields of the variant that is chosen.

    Attributes:
        searches: by the parameter's name.
        distributions: the same as Optuna's.
        nodes: the experiment's parameters and models.
        named: the parameters that the call searches, whether they declare it or not.
        given: what else is given, by the parameter's name.
    """

    searches: Mapping[str, Search]
    distributions: Mapping[str, "BaseDistribution"]
    nodes: Sequence[Node]
    named: frozenset[str]
    given: Mapping[str, Any]

    @classmethod
    def of(cls, experiment: "Experiment", fixed: Mapping[str, Any], space: Mapping[str, Search] | None) -> "Space":
        """The space that the experiment declares, less what is fixed, and with what the call adds or says otherwise.

        Args:
            experiment: whose parameters they are.
            fixed: the parameters that are given, nested or not. What a params file that they name has is fixed, too.
            space: by the parameter's name; None for none.

        Returns:
            The space.

        Raises:
            InvalidTypeError: ``space`` holds anything but ``trainlab.Search``.
            InvalidValueError: a parameter is unknown, both fixed and searched, or cannot be drawn so; or there is none.
        """
        asked = _checked(space)
        known = {parameter.name: parameter for parameter in experiment.parameters}
        sources = Sources(experiment.nodes, experiment.parameters)
        sources.add_call(fixed)
        sources.add_params_file()
        has_value = set(sources.given)
        if unknown := [name for name in asked if name not in known]:
            raise InvalidValueError(
                f"The search's space has a parameter that {experiment.path!r} does not have. Received: {unknown[0]!r}."
                f"{did_you_mean(unknown[0], known) or ' It has: ' + ', '.join(known) + '.'}"
            )
        if twice := sorted(has_value & asked.keys()):
            raise InvalidValueError(
                f"A parameter is either searched or given a value. Received: both for {', '.join(twice)}. "
                "Take it out of the space, or out of the parameters."
            )
        declared = {name: one.search for name, one in known.items() if one.search is not None}
        searches = {name: one for name, one in {**declared, **asked}.items() if name not in has_value}
        distributions = {name: _distribution(known[name], one) for name, one in searches.items()}
        sources.add_environment(None)
        sources.add_defaults(experiment.defaults)
        given = {name: one.value for name, one in sources.given.items()}
        found = cls(searches, distributions, tuple(experiment.nodes.values()), frozenset(asked), given)
        return found._reachable(experiment, known)

    def _reachable(self, experiment: "Experiment", known: Mapping[str, "Parameter"]) -> "Space":
        """The space without the fields of variants that are never chosen, each searched as its own variant says."""
        searches: dict[str, Search] = {}
        for point in self._branches():
            for node in self._searched(self.nodes, point):
                own = getattr(node, "search", None)
                search = self.searches[node.name] if node.name in self.named or own is None else own
                if searches.setdefault(node.name, search) != search:
                    raise InvalidValueError(
                        f"{node.name} declares another Search in each variant, and a search over them needs one. "
                        f"Received: {searches[node.name]} and {search}. Pass space={{{node.name!r}: "
                        "trainlab.Search(...)}, or rename one of them."
                    )
        if lost := sorted(self.named - searches.keys()):
            raise InvalidValueError(
                f"A parameter is searched that belongs to {' or '.join(known[lost[0]].only_with)}, and that is not "
                f"chosen. Received: {lost[0]!r}. Give that value, or search it too; or take {lost[0]!r} out of the "
                "space."
            )
        if not searches:
            raise InvalidValueError(
                f"There is nothing to search: {experiment.path!r} declares no parameter with "
                "search=trainlab.Search(...) that is not given a value. Declare one, or pass "
                "space={'lr': trainlab.Search(1e-5, 1e-1, log=True)}."
            )
        distributions = {name: _distribution(known[name], one) for name, one in searches.items()}
        return Space(searches, distributions, self.nodes, self.named, self.given)

    def check(self, experiment: "Experiment", fixed: Mapping[str, Any]) -> None:
        """See that the experiment takes the ends of all ranges, and all choices.

        Args:
            experiment: it.
            fixed: the other parameters.

        Raises:
            InvalidValueError: it does not.
        """
        tried: set[tuple[str, str]] = set()
        for point in self._branches():
            shown = ", ".join(f"{name}={value!r}" for name, value in point.items())
            _try(experiment, {**fixed, **point}, shown)
            for name in point.keys() - set(_discriminators(self.nodes)):
                for value in _ends(self.distributions[name]):
                    if (name, repr(value)) not in tried:
                        tried.add((name, repr(value)))
                        shown = f"{name}={value!r}, with the other parameters as they are"
                        _try(experiment, {**fixed, **point, name: value}, shown)

    def some(self) -> dict[str, Any]:
        """Any one point of the space, by the parameter's name."""
        return self._branches()[0]

    def draw(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Let a trial's sampler choose; what it has chosen before stays.

        Args:
            trial: Optuna's.

        Returns:
            The values by the parameter's name.
        """
        drawn: dict[str, Any] = {}
        # Which variant is chosen counts for what is drawn after it.
        for node in self._searched(self.nodes, drawn):
            drawn[node.name] = _suggested(trial, node.name, self.distributions[node.name])
        return drawn

    def is_whole(self, params: Mapping[str, Any]) -> bool:
        """Tell whether all has been drawn for a trial.

        Args:
            params: what has been, by the parameter's name.

        Returns:
            Whether nothing is left.
        """
        return all(node.name in params for node in self._searched(self.nodes, params))

    def _searched(self, nodes: Iterable[Node], chosen: Mapping[str, Any]) -> Iterator[Node]:
        """What is searched, in order; of a union the fields of the variant that ``chosen`` has by then."""
        for node in nodes:
            is_declared = getattr(node, "search", None) is not None and node.name in self.searches
            if is_declared or node.name in self.named:
                yield node
            if isinstance(node, Branch) and self.given.get(node.name, "") is not None:
                yield from self._searched(node.children.values(), chosen)
                if (variant := node.variants.get(self._tag(node, chosen))) is not None:
                    yield from self._searched(variant.children.values(), chosen)

    def _tag(self, union: Branch, chosen: Mapping[str, Any]) -> str:
        name = f"{union.name}.{union.discriminator}"
        default = getattr(union.get_default(), union.discriminator, None) if union.variants else None
        tag = chosen.get(name, self.given.get(name, default))
        return str(getattr(tag, "value", tag))

    def _branches(self) -> list[dict[str, Any]]:
        """A point for each choice of variants, by the parameter's name."""
        unions = set(_discriminators(self.nodes))
        points: list[dict[str, Any]] = []
        begun: list[dict[str, Any]] = [{}]
        while begun:
            point = begun.pop()
            node = next((one for one in self._searched(self.nodes, point) if one.name not in point), None)
            if node is None:
                points.append(point)
                continue
            values = _ends(self.distributions[node.name])
            values = values[::-1] if node.name in unions else values[:1]
            begun += [{**point, node.name: value} for value in values]
        return points

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
        unions = set(_discriminators(self.nodes))
        grids = [
            {name: [value] if name in unions else axes[name] for name, value in point.items()}
            for point in self._branches()
        ]
        size = sum(math.prod(map(len, grid.values())) for grid in grids)
        if size > _LARGEST_GRID:
            raise InvalidValueError(f"A grid has at most {_LARGEST_GRID} points. Received: a space of {size}.")
        points = [dict(zip(one, values, strict=True)) for one in grids for values in itertools.product(*one.values())]
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
        if None in choices and parameter.default is not None and not allows_none(parameter.annotation):
            raise InvalidValueError(
                f"{parameter.name} cannot be None, which counts as not given. Received: {search}. Take None out, or "
                "give the parameter a type such as float | None."
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
    kinds = members(parameter.annotation)
    if float in kinds:
        return False
    return int in kinds or all(number is None or isinstance(number, int) for number in (search.low, search.high))


def _discriminators(nodes: Iterable[Node]) -> Iterator[str]:
    """The names of the parameters that choose a variant."""
    for node in nodes:
        if isinstance(node, Branch):
            if node.variants:
                yield f"{node.name}.{node.discriminator}"
            yield from _discriminators([*node.children.values(), *node.variants.values()])


def _try(experiment: "Experiment", params: Mapping[str, Any], shown: str) -> None:
    try:
        experiment.read(params)
    except TrainlabError as error:
        raise InvalidValueError(f"The search would try {shown}, and the experiment refuses: {error}") from error


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
