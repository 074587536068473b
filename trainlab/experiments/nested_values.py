"""What lies inside of a parameter's value, in lists, dicts and models: secrets, masks, and keys that are no fields."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, get_args, get_type_hints

from pydantic import RootModel, SecretBytes, SecretStr

from trainlab.errors import did_you_mean
from trainlab.experiments.aliases import paths_of
from trainlab.experiments.annotations import is_kind_of, is_model, members
from trainlab.experiments.parameters import looks_secret
from trainlab.experiments.values import MASK, secret_text
from trainlab.runs.masking import passwords_of

__all__ = ["masked_place", "place_in", "secrets_in", "unknown_keys"]

_ITEMS = (list, tuple, set, frozenset, deque)
_SECRETS = (SecretStr, SecretBytes)
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
    kinds = _unrooted(annotation)
    if isinstance(value, str):
        found = [*passwords_of(value)] if "=" in value or "://" in value else []
        return found + ([*secret_text(value)] if any(kind in _SECRETS for kind in kinds) else [])
    if isinstance(value, _SECRETS) or any(kind in _SECRETS for kind in kinds):
        return [*secret_text(value)]
    if depth > _DEEPEST:
        return []
    named = [kind for kind in kinds if is_kind_of(kind, tuple) and hasattr(kind, "_fields")]
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and named:
        return secrets_in(dict(zip(named[0]._fields, value, strict=False)), named[0], depth)
    if isinstance(value, _ITEMS) and not hasattr(value, "_fields"):
        of_items = [part for kind in kinds for part in get_args(kind)]
        return [text for item in value for kind in of_items or [Any] for text in secrets_in(item, kind, depth + 1)]
    found = []
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
        # As a password in a URL, or where another secret's text stood in it.
        return "" if MASK in value else None
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
    """Say which keys of given mappings are no fields of what was made of them, and were dropped.

    A model that says itself what becomes of them (``extra``), or that looks at them before pydantic does, is left.

    Args:
        given: a parameter's value before it was validated.
        made: the same after it.
        place: what it is called.

    Yields:
        Sentences.
    """
    if isinstance(made, RootModel):
        yield from unknown_keys(given, made.root, place)
    elif isinstance(given, _ITEMS) and isinstance(made, (list, tuple, deque)) and len(given) == len(made):
        for index, (one, other) in enumerate(zip(given, made, strict=True)):
            yield from unknown_keys(one, other, f"{place}[{index}]")
    elif isinstance(given, Mapping) and isinstance(made, Mapping):
        for key, inner in given.items():
            if key in made:
                yield from unknown_keys(inner, made[key], f"{place}.{key}")
            elif len(made) < len(given):  # a dict takes all, under keys of its type; a TypedDict its own
                yield _unknown(place, key, [str(known) for known in made])
    elif isinstance(given, Mapping):
        yield from _unknown_of_fields(given, made, place)


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
    """The keys and values inside of a value; those of a field under each name that it may be given by."""
    if isinstance(value, RootModel):
        return [("root", value.root)]
    if isinstance(value, type):
        return []
    found = [
        (key, getattr(value, name, None))
        for name, paths in (paths_of(type(value)) or {}).items()
        for key in dict.fromkeys([name, *(step for path in paths for step in path)])
    ]
    found += (getattr(value, "__pydantic_extra__", None) or {}).items()
    return found + ([*value.items()] if isinstance(value, Mapping) else [])


def _types_below(kinds: Sequence[Any], key: str) -> list[Any]:
    """The types that a key of a mapping has, of a union's members all."""
    found = []
    for kind in kinds:
        paths = paths_of(kind)
        if paths is not None or hasattr(kind, "__required_keys__"):
            hints = _hints(kind)
            names = [name for name in hints if key == name or any(key in path for path in (paths or {}).get(name, []))]
            found += [hints[name] for name in names]
        elif len(get_args(kind)) == 2:
            found.append(get_args(kind)[1])
    return found


def _hints(kind: Any) -> dict[str, Any]:
    """The types of the fields of a class."""
    if is_model(kind):
        return {name: info.annotation for name, info in kind.model_fields.items()}
    try:
        return get_type_hints(kind, include_extras=True)
    except NameError:  # of a class inside of a function
        return {}


def _unrooted(annotation: Any) -> list[Any]:
    """The types of a union, with those of a RootModel's value for it."""
    found = []
    for kind in members(annotation):
        is_root = is_kind_of(kind, RootModel) and kind is not RootModel
        found += _unrooted(kind.model_fields["root"].annotation) if is_root else [kind]
    return found


def _unknown_of_fields(given: Mapping[Any, Any], made: Any, place: str) -> Iterator[str]:
    paths = paths_of(type(made))
    if paths is None:
        return
    names = {path[0]: name for name, places in paths.items() for path in places}
    for key, inner in given.items():
        if key in names:
            yield from unknown_keys(inner, getattr(made, names[key], None), f"{place}.{key}")
        elif _is_closed(type(made)):
            yield _unknown(place, key, [str(name) for name in names])


def _is_closed(kind: Any) -> bool:
    """Whether a class drops what is no field of its own without having said so."""
    config = getattr(kind, "model_config", None) or getattr(kind, "__pydantic_config__", None) or {}
    decorators = getattr(kind, "__pydantic_decorators__", None)
    validators = decorators.model_validators.values() if decorators is not None else []
    return config.get("extra") is None and all(each.info.mode == "after" for each in validators)


def _unknown(place: str, key: Any, known: list[str]) -> str:
    return f"{place} has no {str(key)!r}.{did_you_mean(str(key), known)} It can have: {', '.join(known)}."
