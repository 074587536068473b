"""The names that pydantic takes the fields of models and dataclasses under."""

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, RootModel

__all__ = ["as_input", "paths_of", "put"]

Path = tuple[Any, ...]


def paths_of(kind: Any) -> dict[str, list[Path]] | None:
    """Where pydantic looks for the fields of a class.

    Args:
        kind: a class.

    Returns:
        By the field's name the places, of which the first that is there counts: keys, and in nested data the numbers
        of items, too. None if this is no model, dataclass or named tuple.
    """
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return {name: [(name,)] for name in kind._fields}
    is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
    if is_model and issubclass(kind, RootModel):
        return None
    fields = kind.model_fields if is_model else getattr(kind, "__pydantic_fields__", None)
    config = getattr(kind, "model_config" if is_model else "__pydantic_config__", None) or {}
    if fields is not None:
        return {name: _paths(name, info, config) for name, info in fields.items()}
    if not dataclasses.is_dataclass(kind):
        return None
    return {each.name: [(each.name,)] for each in dataclasses.fields(kind) if each.init}


def as_input(model: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What pydantic is given for a model, so that its fields get some values.

    Args:
        model: a model, a dataclass or a named tuple.
        values: by the fields' names.

    Returns:
        The same under the names that pydantic takes; keys that are no fields as they stand.
    """
    paths = paths_of(model) or {}
    data: dict[str, Any] = {}
    for name, value in values.items():
        put(data, paths[name][0] if name in paths else (name,), value)
    return data


def put(data: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value to its place in nested data; what is missing on the way is made.

    Args:
        data: the data, which is changed.
        path: keys, and numbers of items.
        value: the value.
    """
    inner: Any = data
    for step, after in pairwise(path):
        empty: Any = [] if isinstance(after, int) else {}
        _make_room(inner, step)
        if (inner.get(step) if isinstance(inner, dict) else inner[step]) is None:
            inner[step] = empty
        inner = inner[step]
    _make_room(inner, path[-1])
    inner[path[-1]] = value


def _make_room(inner: Any, step: Any) -> None:
    if isinstance(inner, list):
        inner += [None] * ((step + 1 if step >= 0 else -step) - len(inner))


def _paths(name: str, info: Any, config: Mapping[str, Any]) -> list[Path]:
    alias = info.validation_alias if info.validation_alias is not None else info.alias
    choices = getattr(alias, "choices", None) or ([] if alias is None else [alias])
    found = [tuple(choice.path) if hasattr(choice, "path") else (choice,) for choice in choices]
    if not found or config.get("validate_by_alias") is False:
        return [(name,)]
    takes_name = config.get("populate_by_name") or config.get("validate_by_name")
    return [*found, *([(name,)] if takes_name else [])]
