"""What pydantic says about a value, in a person's words."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import PydanticSchemaGenerationError, ValidationError

from trainlab.errors import InvalidValueError, did_you_mean
from trainlab.experiments.annotations import choice_text, choices_of
from trainlab.experiments.nested_values import place_in
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.values import MASK

__all__ = ["allowed_value", "check_default", "fact_of", "facts_of"]

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
    "list_type": "must be a list; in YAML [a, b]",
    "dict_type": "must be a dict; in YAML {{key: value}}",
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
        texts = [choice_text(choice) for choice in choices]
        if texts:
            received = error.get("input")
            meant = did_you_mean(received, texts) if isinstance(received, str) and not parameter.is_secret else ""
            return f"must be one of {', '.join(texts)}{meant and f' ({meant.strip()})'}"
    sentence = _SENTENCES.get(kind)
    if sentence is not None:
        return sentence.format(**error.get("ctx", {}))
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.removeprefix("Input ").rstrip(".")


def allowed_value(parameter: Parameter, value: Any) -> tuple[Any, str | None]:
    """The allowed value that a value stands for.

    Args:
        parameter: the parameter.
        value: of its type.

    Returns:
        The value, or of several a collection of the same kind; and what is wrong with it, or None.
    """
    allowed = parameter.allowed_values
    if allowed is None or value is None:
        return value, None
    found = []
    for item in value if parameter.multiple else [value]:
        same = [one for one in allowed if one == item or str(one).lower() == str(item).lower()]
        if not same:
            return value, f"must be one of {', '.join(map(str, allowed))}"
        found.append(same[0])
    if not parameter.multiple:
        return found[0], None
    return (type(value)(found) if isinstance(value, (tuple, set, frozenset, deque)) else found), None


def check_default(parameter: Parameter, default: Any, subject: str) -> Any:
    """Check a default, which pydantic does not.

    Args:
        parameter: whose it is.
        default: it.
        subject: what it is called in the error, such as "The default of 'lr'".

    Returns:
        What the parameter's type makes of it.

    Raises:
        InvalidValueError: it cannot be used.
    """
    try:
        value, problem = allowed_value(parameter, parameter.adapter.validate_python(default))
    except PydanticSchemaGenerationError:
        return default  # a type that only a model's configuration allows
    except ValidationError as error:
        value, problem = None, facts_of(error, parameter, default)
    if problem is not None:
        received = MASK if parameter.is_secret else repr(default)
        raise InvalidValueError(f"{subject} cannot be used: {problem}. Received: {received}.")
    return value
