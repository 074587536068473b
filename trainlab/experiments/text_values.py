"""Texts of a command line or of the environment as the values that they stand for."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

from pydantic import PydanticSchemaGenerationError, SecretBytes, SecretStr, TypeAdapter, ValidationError

from trainlab.errors import InvalidValueError
from trainlab.experiments.annotations import (
    Converter,
    allows_none,
    choices_of,
    form_of,
    item_types,
    members,
    metadata,
    stripped,
)
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.params_file import parse_yaml
from trainlab.experiments.values import as_plain

__all__ = ["adapter_of", "from_environment", "from_json", "from_words", "option_words", "with_members"]

_NONE = {"none", "null"}
# Of the types of a union, those that are tried first; texts and paths take anything, and come last.
_ORDER = {int: 0, float: 1}
_TAKES_ANYTHING = {str, bytes, SecretStr, SecretBytes}
_LAST = 3


def adapter_of(annotation: Any) -> TypeAdapter[Any]:
    """What validates values of a type; the same one for the same type."""
    try:
        # As texts, for to Python int | str is str | int.
        return _cached_adapter(annotation, repr(annotation))
    except TypeError:  # with a list in it, which is no key
        return TypeAdapter(annotation)


@lru_cache(maxsize=512)
def _cached_adapter(annotation: Any, text: str) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def from_words(parameter: Parameter, words: list[str]) -> Any:
    """The value of an option's words; what cannot be understood stays text, for the validation to refuse.

    Args:
        parameter: whose option it is.
        words: what followed it, one word but for lists and dicts.

    Returns:
        The value, not validated yet.
    """
    if parameter.form == "words":
        return _from_items(parameter.annotation, words)
    if parameter.form == "pairs":
        return _from_pairs(parameter.annotation, words)
    return _from_text(parameter.annotation, words[0])


def from_environment(parameter: Parameter, text: str) -> Any:
    """The value of an environment variable's text: items are divided by commas.

    Args:
        parameter: that declares the variable.
        text: what it holds, not empty.

    Returns:
        The value, not validated yet.
    """
    if parameter.form in {"words", "pairs"} and text.lstrip()[:1] not in {"[", "{"}:
        return from_words(parameter, [word.strip() for word in text.split(",")])
    if parameter.form == "words":
        return _from_yaml(parameter.annotation, text)
    return from_words(parameter, [text])


def option_words(parameter: Parameter, value: Any) -> list[str]:
    """The words of a command line that give a parameter a value.

    Args:
        parameter: it.
        value: as plain data.

    Returns:
        The option and the value, each item of a list with an option of its own; none for a missing value that is also
        the default.
    """
    option = parameter.option
    if value is None:
        return [] if parameter.is_flag or not parameter.has_default else [f"{option}=none"]
    if parameter.is_flag:
        return [option if value else f"--no-{option[2:]}"]
    if parameter.form == "words" and isinstance(value, list):
        return [f"{option}={_word(item)}" for item in value] or [option]
    is_nested = isinstance(value, (Mapping, list))
    return [f"{option}={json.dumps(value) if is_nested or parameter.form == 'yaml' else _word(value)}"]


def _word(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def with_members(annotation: Any, value: Any) -> Any:
    """A value of a file or a call as its type has it, where it is written as on a command line.

    Args:
        annotation: the type.
        value: what was given.

    Returns:
        The same; but names and plain values of an enum's members have become these, and texts the keys of a dict.
    """
    kinds = members(annotation)
    arguments = get_args(kinds[0]) if len(kinds) == 1 else ()
    origin = get_origin(kinds[0]) if arguments else None
    if not isinstance(origin, type):
        return _member(annotation, kinds, value)
    if type(value) in {list, tuple} and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        last = len(arguments) - (2 if arguments[-1] is Ellipsis else 1)
        return type(value)(with_members(arguments[min(place, last)], item) for place, item in enumerate(value))
    if isinstance(value, dict) and issubclass(origin, Mapping):
        of_values = arguments[1] if len(arguments) == 2 else int  # a Counter counts
        return {_key(arguments[0], key): with_members(of_values, inner) for key, inner in value.items()}
    return value


def _member(annotation: Any, kinds: list[Any], value: Any) -> Any:
    choices = [choice for kind in kinds for choice in choices_of(kind) or [] if isinstance(choice, Enum)]
    for member in choices:
        if value == member.value or (isinstance(value, (str, list, dict)) and value == as_plain(member.value)):
            return member
    if isinstance(value, str) and str not in kinds:
        return next((member for member in choices if member.name == value), value)
    return value


def _key(annotation: Any, key: Any) -> Any:
    """A key of a dict; one that is no text is written as one in JSON, and often in YAML."""
    if not isinstance(key, str) or {str, Any}.intersection(map(stripped, members(annotation))):
        return key
    if form_of(annotation) == "word":
        return _from_text(annotation, key)
    with suppress(InvalidValueError):
        return _hashable(parse_yaml(key))
    return key


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def from_json(parameter: Parameter, value: Any, *, is_text: bool) -> Any:
    """What pydantic makes of a value as JSON, where it takes it as that alone.

    In Python a strict type takes no list for a tuple and no text for a path, which neither a file nor a command line
    can have.

    Args:
        parameter: whose value it is.
        value: of a file or a command line.
        is_text: whether it is a text, or made of texts, so that it cannot be of a strict type.

    Returns:
        What was made, or else the value itself.
    """
    is_strict = any(getattr(item, "strict", None) for item in metadata(parameter.annotation))
    if value is None or (parameter.form in {"word", "flag"} and not is_strict):
        return value
    try:
        # The bare type, for what the field adds to it is validated with the field.
        bare = adapter_of(stripped(parameter.annotation))
        if _is_valid(bare, value, strict=is_strict or None):
            return value
        text = json.dumps(value, default=as_plain)
        return bare.validate_json(text, strict=True if is_strict and not is_text else None)
    except (PydanticSchemaGenerationError, ValidationError, TypeError, ValueError):
        return value


def _from_items(annotation: Any, words: list[str]) -> Any:
    if len(words) == 1 and words[0].lower() in _NONE and allows_none(annotation):
        return None
    kinds = item_types(annotation) or [str]
    return [_from_text(kinds[min(place, len(kinds) - 1)], word) for place, word in enumerate(words)]


def _from_pairs(annotation: Any, words: list[str]) -> Any:
    if len(words) == 1 and (words[0].lstrip().startswith("{") or words[0].lower() in _NONE):
        return _from_yaml(annotation, words[0])
    key_type, value_type = get_args(members(annotation)[0])
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidValueError(f"takes key=value pairs, or {{key: value}}. Received: {word!r}")
        found[_from_text(key_type, key)] = _from_text(value_type, value)
    return found


def _from_yaml(annotation: Any, text: str) -> Any:
    if text.lower() in _NONE and allows_none(annotation):
        return None
    candidates = [text]
    # What is no YAML may be a text that is meant as it stands.
    with suppress(InvalidValueError):
        candidates.insert(0, parse_yaml(text))
    adapter = adapter_of(annotation)
    return next((value for value in candidates if _is_valid(adapter, value)), candidates[0])


def _from_text(annotation: Any, text: str) -> Any:
    if any(isinstance(item, Converter) for item in metadata(annotation)):
        return text
    if form_of(annotation) == "yaml":
        return _from_yaml(annotation, text)
    kinds = members(annotation)
    if text.lower() in _NONE and allows_none(annotation) and str not in kinds:
        return None
    if len(kinds) > 1:
        return _from_text_of_union(annotation, kinds, text)
    found = _choice(kinds[0], text) if kinds else text
    return _lax(kinds[0], found) if any(getattr(item, "strict", None) for item in metadata(annotation)) else found


def _lax(kind: Any, text: str) -> Any:
    """The value of a text for a type that takes no text: a command line has nothing else."""
    try:
        return adapter_of(kind).validate_python(text)
    except ValidationError:
        return text


def _from_text_of_union(annotation: Any, kinds: list[Any], text: str) -> Any:
    for kind in sorted(kinds, key=_rank):
        value = _from_text(kind, text)
        if _is_valid(adapter_of(kind), value):
            return value if kind in _TAKES_ANYTHING else adapter_of(kind).validate_python(value)
    return text


def _rank(kind: Any) -> int:
    if choices_of(kind) is not None:
        return -1
    plain = stripped(kind)
    return _LAST if plain in _TAKES_ANYTHING else _ORDER.get(plain, 2)


def _choice(kind: Any, text: str) -> Any:
    """The choice of a Literal or an enum that a text names: by its value or its name, at last in any case."""
    choices = choices_of(kind)
    if choices is None:
        return text
    names: Mapping[str, Any] = kind.__members__ if get_origin(kind) is not Literal else {}
    by_text = {str(getattr(choice, "value", choice)): choice for choice in reversed(choices)}
    for known in (by_text, names):
        if text in known:
            return known[text]
    lower = {key.lower(): choice for known in (names, by_text) for key, choice in known.items()}
    return lower.get(text.lower(), text)


def _is_valid(adapter: TypeAdapter[Any], value: Any, *, strict: bool | None = None) -> bool:
    try:
        adapter.validate_python(value, strict=strict)
    except ValidationError:
        return False
    return True
