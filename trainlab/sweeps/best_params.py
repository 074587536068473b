"""The parameters of a search that it does not choose, and best.yaml, which has them with those that it has chosen."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.runs.listing import value_at
from trainlab.runs.masking import MASK
from trainlab.runs.names import RECORD
from trainlab.runs.run_record import read_record
from trainlab.runs.yaml_text import masked, to_yaml
from trainlab.sweeps.reading import own_values
from trainlab.sweeps.search_result import folder_name
from trainlab.sweeps.space import Space
from trainlab.sweeps.trials import SearchTrial

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment

__all__ = ["fixed_values", "write_best"]

_ABSENT = object()


def fixed_values(experiment: "Experiment", fixed: Mapping[str, Any], space: Space) -> dict[str, str]:
    """The values of the experiment's own parameters that a search does not choose, to compare them with another call's.

    Args:
        experiment: it.
        fixed: the parameters that are given.
        space: what the search chooses.

    Returns:
        JSON by the parameter's name, with secrets masked; without what is drawn anew for each run.
    """
    values = experiment.read({**fixed, **space.some()})
    # Of the parameters that every experiment has, those that change what a run computes; but no seed that is drawn.
    found = own_values(experiment, values) | {"deterministic": json.dumps(values.params["deterministic"])}
    if values.origins["random_seed"] != "default":
        found["random_seed"] = json.dumps(values.params["random_seed"])
    return {name: value for name, value in found.items() if name not in space.distributions}


def write_best(experiment: "Experiment", folder: Path, best: SearchTrial, fixed: Mapping[str, Any]) -> Path:
    """Write the parameters of the best trial: the experiment's own, and of those that all have what was given.

    Args:
        experiment: it.
        folder: the search's.
        best: the trial.
        fixed: the parameters that are given; for a trial that ran on another machine.

    Returns:
        The file, ``best.yaml``.
    """
    record_file = folder / folder_name(best.number) / RECORD
    record = read_record(record_file, record_file) if record_file.exists() else {}
    plain, origins = record.get("params"), record.get("origins")
    if not plain or not origins:
        values = experiment.read({**fixed, **best.params})
        plain, origins = values.plain(), values.origins
    found: dict[str, Any] = {}
    by_hand: dict[str, Any] = {}
    for parameter in experiment.parameters:
        name, is_default = parameter.name, origins.get(parameter.name, "default") == "default"
        value = value_at(plain, name, _ABSENT)
        if name == "params_file" or value is _ABSENT or (is_default and (parameter.is_default or value == MASK)):
            continue
        if parameter.allow_from_file:
            found[name] = value
        elif not is_default:
            by_hand[name] = value
    text = _text(found, by_hand)
    path = folder / "best.yaml"
    # Several searchers may write it at once, each from a file of its own.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def _text(params: Mapping[str, Any], by_hand: Mapping[str, Any]) -> str:
    left_out: list[str] = []
    shown = _without_secrets(masked(_nested(params)), "", left_out)
    others = _without_secrets(masked(dict(by_hand)), "", left_out)
    told = f"# Left out, for they are secret: {', '.join(left_out)}\n" if left_out else ""
    if others:
        values = ", ".join(f"{name}={json.dumps(value)}" for name, value in others.items())
        told += f"# Left out, for no file may set them; give them yourself: {values}\n"
    return told + to_yaml(shown)


def _without_secrets(params: Mapping[str, Any], above: str, left_out: list[str]) -> dict[str, Any]:
    shown = {}
    for name, value in params.items():
        if value == MASK:
            left_out.append(above + name)
        elif isinstance(value, Mapping) and value:
            shown[name] = _without_secrets(value, f"{above}{name}.", left_out)
        else:
            shown[name] = value
    return shown


def _nested(params: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in params.items():
        *above, last = name.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return found
