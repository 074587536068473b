"""What the main function of an experiment takes: a dict, a dict and the context, or a pydantic model."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_origin

from pydantic import BaseModel

from trainlab.errors import InvalidTypeError
from trainlab.experiments.annotations import is_model, stripped

__all__ = ["model_of", "takes_context"]

_TAKES = "An experiment's main function takes (params), (params, context), or one pydantic model: main(config: Config)."


def model_of(main: Callable[..., Any], namespace: Mapping[str, Any]) -> type[BaseModel] | None:
    """The pydantic model that a main function takes.

    Args:
        main: the function.
        namespace: where names of annotations are looked up that are none of the function's module.

    Returns:
        The class; None if it takes a dict.

    Raises:
        InvalidTypeError: it takes something else.
    """
    name = _first(main)
    annotation: Any = None
    if name in getattr(main, "__annotations__", {}):
        annotation = stripped(_resolved(main, name, namespace))
    if is_model(annotation):
        found: type[BaseModel] = annotation
        return found
    origin = get_origin(annotation) or annotation
    is_dict = origin in {None, Any, object} or hasattr(origin, "__required_keys__")
    if is_dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return None
    raise InvalidTypeError(f"{_TAKES} Received: {main.__qualname__}({name}: {annotation!r}).")


def takes_context(main: Callable[..., Any]) -> bool:
    """Whether a main function takes a context as its second argument.

    Args:
        main: the function.

    Returns:
        True if so.
    """
    return len(_positional(main)) == 2


def _first(main: Callable[..., Any]) -> str:
    if not inspect.isfunction(main):
        raise InvalidTypeError(f"An experiment is made of a function. Received: {main!r}.")
    parameters = inspect.signature(main).parameters.values()
    positional = _positional(main)
    needed = [item for item in parameters if item.default is item.empty and item.kind is not item.VAR_KEYWORD]
    if not 1 <= len(positional) <= 2 or len(needed) > len(positional):
        raise InvalidTypeError(f"{_TAKES} Received: {main.__qualname__}{inspect.signature(main)}.")
    return positional[0]


def _positional(main: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(main).parameters.values()
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [item.name for item in parameters if item.kind in kinds]


def _resolved(main: Callable[..., Any], name: str, namespace: Mapping[str, Any]) -> Any:
    """The type of an argument; its name as a text (``from __future__ import annotations``) is looked up."""
    annotation = main.__annotations__[name]
    if not isinstance(annotation, str):
        return annotation
    inner = dict(zip(main.__code__.co_freevars, main.__closure__ or (), strict=False))
    cells = {key: cell.cell_contents for key, cell in inner.items()}
    try:
        return eval(annotation, main.__globals__, {**namespace, **cells})  # as typing.get_type_hints does
    except NameError as error:
        raise InvalidTypeError(
            f"The type of {name} in {main.__qualname__} cannot be found where the function is defined: {error}. Import "
            f"or define it before the function, outside of `if TYPE_CHECKING`. Received: {annotation!r}."
        ) from error
