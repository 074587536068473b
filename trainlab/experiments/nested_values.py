"""What lies inside of a parameter's value, in lists, dicts and models: secrets, masks, and keys that are no fields."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, SecretBytes, SecretStr

from trainlab.experiments.annotations import is_model, members
from trainlab.experiments.parameters import looks_secret
from trainlab.experiments.suggestions import did_you_mean
from trainlab.experiments.values import MASK, secret_text

__all__ = ["masked_place", "place_in", "secrets_in", "unknown_keys"]

_ITEMS = (list, tuple, set, frozenset)
_SECRETS = (SecretStr, SecretBytes)
# What a password in a URL has become.
_MASK_IN_URL = f":{MASK}@"
_DEEPEST = 64


def secrets_in(value: Any, annotation: Any = Any, depth: int = 0) -> list[str]:
    """The secrets inside of a value: what is one by its type, and what stands under a key that looks like one.

    Args:
        value: as it was given, or as it was validated.
        annotation: its type. Default: any.
        depth: how deep in another it is. Default 0.

    Returns:
        Their texts.
    """
    kinds = members(annotation)
    if isinstance(value, _SECRETS) or any(kind in _SECRETS for kind in kinds):
        return [*secret_text(value)]
    if depth > _DEEPEST:
        return []
    if isinstance(value, _ITEMS):
        of_items = [part for kind in kinds for part in get_args(kind)]
        return [text for item in value for kind in of_items or [Any] for text in secrets_in(item, kind, depth + 1)]
    found: list[str] = []
    for key, inner in _entries(value):
        if looks_secret(str(key), is_number=isinstance(inner, Real)):
            is_number = isinstance(inner, Real) and not isinstance(inner, bool)
            found += [str(inner)] if is_number else secret_text(inner)
        for kind in _types_below(kinds, str(key)) or [Any]:
            found += secrets_in(inner, kind, depth + 1)
    return found


def masked_place(value: Any) -> str | None:
    """Where in a value of a params file a secret is masked.

    Args:
        value: it.

    Returns:
        Such as "[0].password", "" for the value itself; None if none is.
    """
    if isinstance(value, str):
        return "" if value == MASK or _MASK_IN_URL in value else None
    if isinstance(value, Mapping):
        inside = [(f".{key}", inner) for key, inner in value.items()]
    else:
        inside = [(f"[{place}]", item) for place, item in enumerate(value)] if isinstance(value, (list, tuple)) else []
    for step, inner in inside:
        rest = masked_place(inner)
        if rest is not None:
            return step + rest
    return None


def unknown_keys(given: Any, made: Any, place: str) -> Iterator[str]:
    """Say which keys of given mappings are no fields of the models that were made of them, and were dropped.

    A model that says itself what becomes of them (``extra``), or that looks at them before pydantic does, is left.

    Args:
        given: a parameter's value before it was validated.
        made: the same after it.
        place: what it is called.

    Yields:
        Sentences.
    """
    if isinstance(given, _ITEMS) and isinstance(made, (list, tuple)) and len(given) == len(made):
        for index, (one, other) in enumerate(zip(given, made, strict=True)):
            yield from unknown_keys(one, other, f"{place}[{index}]")
    if not isinstance(given, Mapping):
        return
    if isinstance(made, Mapping):
        for key, inner in given.items():
            if key in made:
                yield from unknown_keys(inner, made[key], f"{place}.{key}")
    if isinstance(made, BaseModel):
        yield from _unknown_of_model(given, made, place)


def place_in(name: str, steps: Sequence[Any], value: Any) -> str | None:
    """The place of an error of pydantic inside of a value.

    Args:
        name: of the parameter.
        steps: as pydantic has them, with the names of a union's members among them.
        value: what was given.

    Returns:
        Such as "stages[0].size"; None if there is no key or field on the way.
    """
    shown, has_field = name, False
    for count, step in enumerate(steps):
        is_last = count == len(steps) - 1
        if isinstance(step, int) and isinstance(value, (list, tuple)) and step < len(value):
            shown, value = f"{shown}[{step}]", value[step]
        elif isinstance(value, Mapping) and step in value:
            shown, value, has_field = f"{shown}.{step}", value[step], True
        elif isinstance(value, Mapping) and is_last and isinstance(step, str) and step.isidentifier():
            shown, has_field = f"{shown}.{step}", True  # it is missing
    return shown if has_field else None


def _entries(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, BaseModel):
        return [(name, getattr(value, name)) for name in type(value).model_fields]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name, None)) for each in dataclasses.fields(value)]
    return [*value.items()] if isinstance(value, Mapping) else []


def _types_below(kinds: Sequence[Any], key: str) -> list[Any]:
    """The types that a key of a mapping has, of a union's members all."""
    found = []
    for kind in kinds:
        if is_model(kind):
            fields = kind.model_fields.items()
            found += [info.annotation for name, info in fields if key == name or key in _aliases(info)]
        elif dataclasses.is_dataclass(kind) or hasattr(kind, "__required_keys__"):
            found += [hint for name, hint in get_type_hints(kind, include_extras=True).items() if name == key]
        elif len(get_args(kind)) == 2:
            found.append(get_args(kind)[1])
    return found


def _aliases(info: Any) -> list[str]:
    """The names that pydantic takes a field under, beside its own; of a path into nested data the first step."""
    found = []
    for alias in (info.alias, info.validation_alias):
        for choice in getattr(alias, "choices", None) or [alias]:
            first = choice.path[0] if hasattr(choice, "path") else choice
            found += [first] if isinstance(first, str) else []
    return found


def _unknown_of_model(given: Mapping[Any, Any], made: BaseModel, place: str) -> Iterator[str]:
    model = type(made)
    names: dict[str, str] = {}
    for name, info in model.model_fields.items():
        names.update(dict.fromkeys([name, *_aliases(info)], name))
    validators = model.__pydantic_decorators__.model_validators.values()
    is_closed = model.model_config.get("extra") is None and all(each.info.mode == "after" for each in validators)
    for key, inner in given.items():
        if key in names:
            yield from unknown_keys(inner, getattr(made, names[key], None), f"{place}.{key}")
        elif is_closed:
            meant = did_you_mean(str(key), names)
            yield f"{place} has no {str(key)!r}.{meant} It can have: {', '.join(names)}."
