"""What a type says about how its values are given on a command line."""

import types
from collections import Counter, OrderedDict, abc, defaultdict, deque
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, RootModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

__all__ = [
    "Converter",
    "allows_none",
    "choice_text",
    "choices_of",
    "form_of",
    "is_kind_of",
    "is_model",
    "item_count",
    "item_types",
    "members",
    "metadata",
    "stripped",
]

_LISTS = {list, tuple, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet, abc.Iterable}
_LISTS |= {abc.Collection, deque}
_MAPPINGS = {dict, abc.Mapping, abc.MutableMapping, defaultdict, OrderedDict, Counter}


def stripped(annotation: Any) -> Any:
    """A type without what ``Annotated`` and a type alias put around it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def metadata(annotation: Any) -> list[Any]:
    """What ``Annotated`` tells about a type, that inside a pydantic ``Field`` included."""
    if get_origin(annotation) is not Annotated:
        return []
    found: list[Any] = []
    for item in annotation.__metadata__:
        found += [item, *item.metadata] if isinstance(item, FieldInfo) else [item]
    return found + metadata(get_args(annotation)[0])


def members(annotation: Any) -> list[Any]:
    """The types of a union, None left out; the type itself if it is none."""
    annotation = stripped(annotation)
    if get_origin(annotation) in {Union, types.UnionType}:
        return [member for part in get_args(annotation) for member in members(part)]
    return [] if annotation in {None, type(None)} else [annotation]


def allows_none(annotation: Any) -> bool:
    """Whether None is one of a type's values."""
    annotation = stripped(annotation)
    if get_origin(annotation) in {Union, types.UnionType}:
        return any(allows_none(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        return None in get_args(annotation)
    return annotation in {None, type(None), Any, object}


def is_kind_of(annotation: Any, parent: type) -> bool:
    """Whether a type is a class that derives from another; ``list[int]`` is none, which Python 3.10 takes for one."""
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, parent)


def is_model(annotation: Any) -> bool:
    """Whether a type is a pydantic model with fields."""
    return is_kind_of(annotation, BaseModel) and not is_kind_of(annotation, RootModel)


def item_types(annotation: Any) -> list[Any] | None:
    """The types of a list's items: one for all of them, or of a tuple of a fixed length one for each.

    Args:
        annotation: a type; one of ``T | None`` counts as T.

    Returns:
        The types; None if this is no list, set or tuple, or its items are not single values.
    """
    kinds = members(annotation)
    if len(kinds) != 1:
        return None
    origin, arguments = get_origin(kinds[0]) or kinds[0], [*get_args(kinds[0])]
    if origin not in _LISTS:
        return None
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = arguments[:1]
    arguments = arguments or [str if origin is not tuple else Any]
    return arguments if all(form_of(item) == "word" for item in arguments) else None


def item_count(annotation: Any) -> int | None:
    """How many items a tuple of a fixed length has; None for any number."""
    (kind,) = members(annotation)
    arguments = get_args(kind)
    is_fixed = get_origin(kind) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    return len(arguments) if is_fixed else None


class Converter:
    """A user's function that makes a value of a text, as a part of a type: ``Annotated[Any, Converter(function)]``.

    Args:
        function: it; of a class also what is no text and no object of it is made one.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """How pydantic validates it."""
        return core_schema.no_info_plain_validator_function(self._convert)

    def _convert(self, value: Any) -> Any:
        is_class = isinstance(self.function, type)
        if not isinstance(value, str) and not (is_class and not isinstance(value, self.function)):  # type: ignore[arg-type]
            return value
        try:
            return self.function(value)
        except (ValueError, AssertionError):
            raise
        except Exception as error:
            # What pydantic tells of a value; torch.device raises RuntimeError.
            raise ValueError(f"{type(error).__name__}: {error}") from error


def form_of(annotation: Any) -> str:
    """How a value of a type is given on a command line.

    Args:
        annotation: the type.

    Returns:
        "word" (one word), "words" (one for each item), "pairs" (``key=value`` words) or "yaml" (one word of YAML).
    """
    if any(isinstance(item, Converter) for item in metadata(annotation)):
        return "word"
    forms = [_form_of_one(kind) for kind in members(annotation)]
    if len(forms) == 1:
        return "yaml" if forms == ["words"] and item_types(annotation) is None else forms[0]
    return "word" if all(form == "word" for form in forms) else "yaml"


def _form_of_one(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin in _LISTS:
        return "words"
    if origin in _MAPPINGS:
        arguments = get_args(kind)
        is_plain = all(form_of(part) == "word" for part in arguments)
        return "pairs" if len(arguments) == 2 and is_plain else "yaml"
    if origin in {Any, object} or isinstance(origin, TypeVar):
        return "yaml"
    if not isinstance(origin, type) or origin in {SecretStr, SecretBytes} or issubclass(origin, Enum):
        return "word"
    is_record = is_dataclass(origin) or hasattr(origin, "__required_keys__") or hasattr(origin, "_fields")
    return "yaml" if is_record or issubclass(origin, BaseModel) else "word"


def choices_of(annotation: Any) -> list[Any] | None:
    """The values of a ``Literal`` or the members of an enum; None for any other type."""
    kinds = members(annotation)
    if not kinds or not all(get_origin(kind) is Literal or _is_enum(kind) for kind in kinds):
        return None
    return [
        choice for kind in kinds for choice in (list(kind) if _is_enum(kind) else get_args(kind)) if choice is not None
    ]


def choice_text(choice: Any) -> str:
    """The text that a choice of a ``Literal`` or a member of an enum is given as: of a member its value."""
    return str(getattr(choice, "value", choice))


def _is_enum(kind: Any) -> bool:
    return is_kind_of(kind, Enum)
