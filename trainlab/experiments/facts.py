"""What pydantic says about a value, in a person's words."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainlab.experiments.annotations import choices_of
from trainlab.experiments.nested_values import place_in
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.suggestions import did_you_mean

__all__ = ["fact_of", "facts_of"]

_SENTENCES = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be yes or no",
    "bool_type": "must be yes or no",
    "string_type": "must be a text; in a file, quotes make a number one",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "none_required": "must be none",
}


def facts_of(error: ValidationError, parameter: Parameter, given: Any = None) -> str:
    """Say what is wrong with one parameter's value.

    Args:
        error: pydantic's.
        parameter: whose value it is.
        given: the value, for the places in it. Default: they are told by numbers alone.

    Returns:
        Without a full stop.
    """
    found = []
    for item in error.errors(include_url=False):
        places = [str(part + 1) for part in item["loc"] if isinstance(part, int)]
        where = f"item {'.'.join(places)} " if places else ""
        place = place_in(parameter.name, item["loc"], given)
        where = where if place is None else f"{place} "
        found.append(where + fact_of(dict(item), parameter))
    return "; ".join(dict.fromkeys(found))


def fact_of(error: Mapping[str, Any], parameter: Parameter | None) -> str:
    """Say one thing that is wrong.

    Args:
        error: one of pydantic's.
        parameter: whose value it is; None for a whole model.

    Returns:
        Without a full stop.
    """
    kind = error["type"]
    if kind in {"literal_error", "enum"} and parameter is not None:
        choices = choices_of(parameter.annotation) or []
        texts = [str(getattr(choice, "value", choice)) for choice in choices]
        if texts:
            received = error.get("input")
            meant = did_you_mean(received, texts) if isinstance(received, str) and not parameter.is_secret else ""
            return f"must be one of {', '.join(texts)}{'.' + meant.rstrip('?') + '?' if meant else ''}"
    sentence = _SENTENCES.get(kind)
    if sentence is not None:
        return sentence.format(**error.get("ctx", {}))
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.removeprefix("Input ").rstrip(".")
