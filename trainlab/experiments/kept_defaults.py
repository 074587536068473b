"""Checks of the defaults of a model's fields, which pydantic hands on as they are."""

from typing import Any

from pydantic import PydanticSchemaGenerationError, ValidationError

from trainlab.errors import InvalidValueError
from trainlab.experiments.facts import check_default, facts_of
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.values import MASK

__all__ = ["check_field_default", "check_kept_default"]


def check_field_default(parameter: Parameter, default: Any) -> None:
    """Check the default of a field.

    Args:
        parameter: the field.
        default: its default.

    Raises:
        InvalidValueError: its type does not take it.
    """
    check_default(parameter, default, f"The default of {parameter.name!r}")


def check_kept_default(parameter: Parameter, default: Any) -> None:
    """Check a default that pydantic hands on as it is.

    Args:
        parameter: the field.
        default: its default.

    Raises:
        InvalidValueError: it is not of the field's type.
    """
    check_field_default(parameter, default)
    try:
        parameter.adapter.validate_python(default, strict=True)
    except PydanticSchemaGenerationError:
        return  # a type that only a model's configuration allows
    except ValidationError as error:
        received = MASK if parameter.is_secret else repr(default)
        raise InvalidValueError(
            f"The default of {parameter.name!r} is not of its type, and pydantic hands on a default as it is: "
            f"{facts_of(error, parameter, default)}. Received: {received}."
        ) from None
