"""The decorators that declare parameters."""

import functools
import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, TypeVar, Union

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.experiments.annotations import Converter, form_of, item_types, members, metadata
from trainlab.experiments.declared import Declared
from trainlab.experiments.facts import allowed_value, check_default, facts_of
from trainlab.experiments.model_fields import is_secret
from trainlab.experiments.parameters import Parameter, check_name
from trainlab.experiments.search_space import Search
from trainlab.experiments.text_values import with_members

__all__ = ["ParamGroup", "ParameterDecorator", "allowed_value", "declared_of", "param_group", "parameter"]

_ATTRIBUTE = "__trainlab_parameters__"
Target = TypeVar("Target")


class ParameterDecorator:
    """Declares one parameter for a function, an experiment or a group.

    Args:
        parameter: the parameter.

    Attributes:
        parameter: it.
    """

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter

    def __call__(self, target: Target) -> Target:
        """Declare it.

        Args:
            target: a function, an experiment or a group.

        Returns:
            The same.

        Raises:
            InvalidValueError: there is one of its name already.
        """
        declared_of(target).add([self.parameter])
        return target


class ParamGroup:
    """Declares several parameters, which stand under one heading in ``--help``.

    Args:
        name: the heading.
        help: the text below it.
        parameters: the parameters.
    """

    def __init__(self, name: str, help: str, parameters: list[Parameter]) -> None:
        self.name, self.help = name, help
        self.parameters = [replace(parameter, group=name) for parameter in parameters]

    def __call__(self, target: Target) -> Target:
        """Declare them.

        Args:
            target: a function, an experiment or a group.

        Returns:
            The same.

        Raises:
            InvalidValueError: one of the names is there already.
        """
        declared_of(target).add(self.parameters, (self.name, self.help))
        return target


def declared_of(target: Any) -> Declared:
    """What is declared for a function, an experiment or a group.

    Args:
        target: it.

    Returns:
        The object that decorators add to.

    Raises:
        InvalidTypeError: it is none of these.
    """
    found = getattr(target, _ATTRIBUTE, None)
    if isinstance(found, Declared):
        return found
    if not callable(target):
        raise InvalidTypeError(f"Parameters are declared for a function or an experiment. Received: {target!r}.")
    declared = Declared(of=getattr(target, "__qualname__", repr(target)))
    setattr(target, _ATTRIBUTE, declared)
    return declared


def parameter(
    name: str,
    type: Any = str,
    default: Any = None,
    required: bool = False,
    allowed_values: Iterable[Any] | None = None,
    is_flag: bool = False,
    multiple: bool = False,
    allow_from_file: bool = True,
    envvar: str | bool | None = None,
    help: str | None = None,
    default_help: str | None = None,
    hidden: bool = False,
    search: Search | None = None,
) -> ParameterDecorator:
    """Declare a parameter of an experiment; stands above or below ``@trainlab.experiment``.

    Args:
        name: a Python name; the option is ``--name``, with dashes for underscores.
        type: a type that pydantic knows (``int``, ``Path``, ``Literal["a", "b"]``, ``Annotated[int, Field(ge=1)]``), or
            a function that makes a value of a text. Default ``str``.
        default: the value where none is given, or a function that makes it anew for each run. Default None.
        required: whether a run without a value is an error; a default is one. Default False.
        allowed_values: the only values, compared as text in any case; they become those of ``type``, or of the items
            of a list, and stay what they are where it is not given. Default: all that the type takes.
        is_flag: whether it is given as ``--name`` or ``--no-name``; its default is then False. Default False.
        multiple: whether it is a list, given as ``--name a b c``. Default False.
        allow_from_file: whether a params file may set it; where not, the file's value is ignored. Default True.
        envvar: the environment variable that it is read from; True for its own name in capitals. Default: none.
        help: what it is for.
        default_help: what ``--help`` shows for the default. Default: the default.
        hidden: whether ``--help`` leaves it out. Default False.
        search: what a search may try. Default: as ``type`` says, in ``Annotated[float, Search(1e-5, 1e-1)]``.

    Returns:
        The decorator, which ``param_group`` takes too.

    Raises:
        InvalidValueError: the name or the default cannot be used, or options contradict each other.
        InvalidTypeError: the type is none.
    """
    check_name(name)
    if is_flag and (allowed_values is not None or multiple):
        raise InvalidValueError(f"The flag {name!r} has no value, so no allowed_values and no multiple.")
    if search is not None and not isinstance(search, Search):
        raise InvalidTypeError(f"search of {name!r} is a trainlab.Search. Received: {search!r}.")
    annotation = _annotation(name, bool if is_flag else type, multiple)
    searched = [item for item in metadata(annotation) if isinstance(item, Search)]
    factory = default if callable(default) else None
    allowed = _allowed(name, allowed_values)
    found = Parameter(
        name=name,
        annotation=annotation,
        default=(False if is_flag and default is None else None if factory else default),
        default_factory=factory,
        required=bool(required),
        is_flag=is_flag,
        multiple=multiple or form_of(annotation) == "words",
        allow_from_file=allow_from_file,
        envvar=_variable(name, envvar),
        help=help or "",
        default_help=default_help,
        hidden=hidden,
        is_secret=is_secret(name, members(annotation)),
        search=search or next(iter(searched), None),
    )
    if allowed is not None and type is str:
        found = replace(found, allowed_values=allowed)  # without a type they have those of their own
    elif allowed is not None:
        found = replace(found, allowed_values=tuple(_of_its_type(found, value) for value in allowed))
    if found.default is not None:
        # That of a function is checked when a run begins.
        check_default(found, found.default, f"The default of the parameter {name!r}")
    return ParameterDecorator(found)


def param_group(name: str, *parameters: Any, help: str = "") -> ParamGroup:
    """Declare parameters that stand under one heading in ``--help``; the values are flat in the dict.

    Args:
        name: the heading.
        parameters: what ``parameter(...)`` returns, at least one; a text before them is the help.
        help: the text below the heading. Default none.

    Returns:
        The decorator.

    Raises:
        InvalidTypeError: something else was given.
        InvalidValueError: a name is there twice.
    """
    given = [*parameters]
    if given and isinstance(given[0], str):
        help = given.pop(0)
    wrong = [item for item in given if not isinstance(item, ParameterDecorator)]
    if not isinstance(name, str) or not name or wrong or not given:
        received = repr(wrong[0]) if wrong else f"name {name!r} and {len(given)} parameters"
        raise InvalidTypeError(
            f'A group is param_group("name", "help", parameter(...), parameter(...)). Received: {received}.'
        )
    Declared(of=f"param_group({name!r})").add([item.parameter for item in given])
    return ParamGroup(name, help, [item.parameter for item in given])


def _annotation(name: str, type_: Any, multiple: bool) -> Any:
    # To pydantic a function is a call to be validated.
    is_function = inspect.isroutine(type_) or isinstance(type_, functools.partial)
    try:
        TypeAdapter(Annotated[Any, Converter(type_)] if is_function else type_)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, TypeError):
        if not callable(type_):
            raise InvalidTypeError(
                f"The type of {name!r} is a type, or a function that makes a value of a text. Received: {type_!r}."
            ) from None
        is_function = True
    if is_function:
        type_ = Annotated[Any, Converter(type_)]
    return list[type_] if multiple else type_


def _allowed(name: str, values: Iterable[Any] | None) -> tuple[Any, ...] | None:
    if values is None:
        return None
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidTypeError(f"allowed_values of {name!r} is a list. Received: {values!r}.")
    found = tuple(values)
    if not found:
        raise InvalidValueError(f"allowed_values of {name!r} is empty, so that no value would be allowed.")
    return found


def _of_its_type(parameter: Parameter, allowed: Any) -> Any:
    """An allowed value as the parameter's type has it, or the items of its list."""
    kinds = item_types(parameter.annotation) if parameter.multiple else None
    annotation: Any = parameter.annotation if kinds is None else Union[tuple(kinds)]  # noqa: UP007
    try:
        return TypeAdapter(annotation).validate_python(with_members(annotation, allowed))
    except ValidationError as error:
        facts = facts_of(error, replace(parameter, annotation=annotation))
    raise InvalidValueError(f"allowed_values of {parameter.name!r} cannot be used: {facts}. Received: {allowed!r}.")


def _variable(name: str, envvar: str | bool | None) -> str | None:
    if envvar is None or envvar is False:
        return None
    found = name.upper() if envvar is True else envvar
    if not isinstance(found, str) or not found or "=" in found or "\0" in found:
        raise InvalidValueError(f"envvar of {name!r} is the name of a variable, or True. Received: {envvar!r}.")
    return found
