"""What the main function of an experiment takes: a dict, a dict and the context, or a pydantic model."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
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
    first, *others = _checked(main)
    annotation = _resolved(main, first, namespace)
    if any(is_model(_named(main, other, namespace)) for other in others):
        raise InvalidTypeError(f"{_TAKES} A model stands first. Received: {main.__qualname__}{_signature(main)}.")
    if is_model(annotation):
        found: type[BaseModel] = annotation
        return found
    origin = get_origin(annotation) or annotation
    is_dict = origin in {None, Any, object} or hasattr(origin, "__required_keys__")
    if is_dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return None
    raise InvalidTypeError(f"{_TAKES} Received: {main.__qualname__}({first.name}: {annotation!r}).")


def takes_context(main: Callable[..., Any]) -> bool:
    """Whether a main function takes a context as its second argument.

    Args:
        main: the function.

    Returns:
        True if so.
    """
    return len(_positional(main)) == 2


def _checked(main: Callable[..., Any]) -> list[inspect.Parameter]:
    """The one or two arguments of a main function that can be run."""
    if not inspect.isfunction(main):
        raise InvalidTypeError(f"An experiment is made of a function. Received: {main!r}.")
    if inspect.iscoroutinefunction(main) or inspect.isasyncgenfunction(main) or inspect.isgeneratorfunction(main):
        raise InvalidTypeError(
            "A call of an `async def`, or of a function with `yield`, runs nothing of it. Make the main function a "
            f"plain one, which calls this one by asyncio.run(...) or a loop. Received: {main.__qualname__}."
        )
    parameters = _signature(main).parameters.values()
    positional = _positional(main)
    needed = [item for item in parameters if item.default is item.empty and item.kind is not item.VAR_KEYWORD]
    if not 1 <= len(positional) <= 2 or len(needed) > len(positional):
        raise InvalidTypeError(f"{_TAKES} Received: {main.__qualname__}{_signature(main)}.")
    return positional


def _positional(main: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [item for item in _signature(main).parameters.values() if item.kind in kinds]


def _signature(main: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        # A name that is imported under `if TYPE_CHECKING` alone is then no error yet.
        return inspect.signature(main, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(main)


def _resolved(main: Callable[..., Any], argument: inspect.Parameter, namespace: Mapping[str, Any]) -> Any:
    """The type of an argument; its name as a text (``from __future__ import annotations``) is looked up."""
    text = _text(argument)
    if text is None:
        return None if argument.annotation is argument.empty else stripped(argument.annotation)
    try:
        found = eval(text, main.__globals__, _names(main, namespace))  # as typing.get_type_hints does
    except NameError as error:
        raise InvalidTypeError(
            f"The type of {argument.name} in {main.__qualname__} cannot be found where the function is defined: "
            f"{error}. Import or define it before the function, outside of `if TYPE_CHECKING`. Received: {text!r}."
        ) from error
    return stripped(found)


def _named(main: Callable[..., Any], argument: inspect.Parameter, namespace: Mapping[str, Any]) -> Any:
    """The same if it is there or is a mere name: that of a context's class would load torch to be evaluated."""
    text = _text(argument)
    return argument.annotation if text is None else {**main.__globals__, **_names(main, namespace)}.get(text)


def _text(argument: inspect.Parameter) -> str | None:
    """The text of an annotation that is not evaluated yet; None if it is."""
    text = getattr(argument.annotation, "__forward_arg__", argument.annotation)
    return text if isinstance(text, str) else None


def _names(main: Callable[..., Any], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What the function sees beside the names of its module."""
    names = {**namespace}
    for name, cell in zip(main.__code__.co_freevars, main.__closure__ or (), strict=False):
        with suppress(ValueError):  # it gets its value later, as the function's own name does
            names[name] = cell.cell_contents
    return names
