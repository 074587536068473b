"""What is recorded of a run's values, so that they can be read again from the record."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from trainlab.experiments.sameness import is_same
from trainlab.experiments.values import LEFT_OUT, Values

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment

__all__ = ["Recorded", "recorded"]


@dataclass(frozen=True)
class Recorded:
    """A run's values as its files hold them.

    Attributes:
        params: as plain data, secrets masked.
        left_out: defaults that are left out of ``params``, for they would be read as others there; by name.
        differing: the parameters that are read as other values than the run has.
    """

    params: dict[str, Any]
    left_out: dict[str, Any]
    differing: list[str]


def recorded(experiment: "Experiment", values: Values) -> Recorded:
    """Find out how values are to be recorded: as they are, or if they are not read back so, as they were given.

    Args:
        experiment: whose they are.
        values: the values.

    Returns:
        What is recorded.
    """
    instead: dict[str, Any] = {}
    while True:  # what cannot be read at all hides what is read as something else
        differing = _differing(experiment, values, instead)
        others = {name: _other_form(values, name) for name in differing if name not in instead}
        others = {name: form for name, form in others.items() if form is not None}
        if not others:
            break
        instead |= others
    for name in differing:
        instead.pop(name, None)
    whole = values.plain()
    left_out = {name: _at(whole, name) for name, value in instead.items() if value is LEFT_OUT}
    return Recorded(values.plain(instead), left_out, differing)


def _other_form(values: Values, name: str) -> Any:
    """What may be recorded for a value that is not read back; None if there is nothing else."""
    if name in values.inputs:
        return values.inputs[name]
    return LEFT_OUT if values.origins.get(name) == "default" else None


def _differing(experiment: "Experiment", values: Values, instead: dict[str, Any]) -> list[str]:
    """The parameters that are read back as other values; where only a model as a whole can be named all of its."""
    plain = values.plain(instead, reveals=True)
    plain.pop("params_file", None)
    again, failed = experiment.read_back(plain)
    if again is None:
        found = failed or {""}
    elif values.model is None:
        found = {name for name, value in values.params.items() if not is_same(value, again.params.get(name))}
    else:
        single = values.params.keys() - type(values.model).model_fields.keys()
        found = {name for name in single if not is_same(values.params[name], again.params.get(name))}
        found |= {*_changed(values, values.model, again.model, "")}
    found.discard("params_file")
    names = [*values.origins]
    below = {name for name in names for whole in found if not whole or name == whole or name.startswith(f"{whole}.")}
    return [name for name in names if name in below]


def _changed(values: Values, one: Any, other: Any, name: str) -> Iterator[str]:
    """The parameters, or the models as a whole, that differ."""
    is_nested = (not name or name in values.fields) and isinstance(one, BaseModel) and type(one) is type(other)
    if not is_nested:
        yield from () if is_same(one, other) else (name,)
        return
    fields = values.fields.get(name, [*type(one).model_fields])
    inner = [_changed(values, getattr(one, key), getattr(other, key), f"{name}.{key}".lstrip(".")) for key in fields]
    found = [changed for each in inner for changed in each]
    yield from found
    if not found and not is_same(one, other):
        yield name  # in what is no parameter, such as further keys


def _at(plain: Any, name: str) -> Any:
    for step in name.split("."):
        plain = plain.get(step) if isinstance(plain, dict) else None
    return plain
