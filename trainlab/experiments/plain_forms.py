"""How values are recorded: as plain data that is read back to the same values, if there is any."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pydantic import PydanticSchemaGenerationError, ValidationError
from pydantic_core import PydanticSerializationError

from trainlab.errors import InvalidValueError
from trainlab.experiments.annotations import stripped
from trainlab.experiments.given import Given, Rank
from trainlab.experiments.nested_values import unknown_keys
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.sameness import is_same
from trainlab.experiments.text_values import adapter_of
from trainlab.experiments.values import as_plain

__all__ = ["given_form", "plain_form"]


def plain_form(parameter: Parameter, value: Any, given: Any) -> Any:
    """A value as plain data.

    Args:
        parameter: whose it is.
        value: the value.
        given: what was given for it, as plain data; None for the default.

    Returns:
        The first that is read back to the value: the data of it under the names that pydantic takes, what pydantic
        itself writes to JSON, or what was given; if none is, the first.
    """
    first = as_plain(value)
    return next((form for form in _forms(parameter, value, first, given) if _gives(parameter, form, value)), first)


def given_form(parameter: Parameter, given: Any) -> Any:
    """What was given for a parameter, as plain data; a text of a command line as what it stands for."""
    if not isinstance(given, str):
        return as_plain(given)
    try:
        return as_plain(adapter_of(stripped(parameter.annotation)).validate_python(given))
    except (PydanticSchemaGenerationError, ValidationError):
        return given


def _forms(parameter: Parameter, value: Any, first: Any, given: Any) -> Iterator[Any]:
    yield first
    with suppress(PydanticSchemaGenerationError, PydanticSerializationError, TypeError, ValueError):
        yield as_plain(parameter.adapter.dump_python(value, mode="json", by_alias=True, warnings=False))
    if given is not None:
        yield given


def _gives(parameter: Parameter, form: Any, value: Any) -> bool:
    given = Given(form, Rank.FILE, "", "")
    try:
        raw = given.value_for(parameter)
        found = parameter.adapter.validate_python(given.input_for(parameter, raw))
    except (PydanticSchemaGenerationError, ValidationError, InvalidValueError):
        return False
    return is_same(found, value) and not any(unknown_keys(raw, found, ""))
