"""Params files: values of parameters as YAML, JSON or TOML."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidValueError

__all__ = ["parse_yaml", "read_params_file"]


def read_params_file(path: str | Path) -> dict[str, Any]:
    """Read a file of parameters; which form it has is told by its ending, YAML where that says nothing.

    YAML is read as version 1.2 has it: ``1e-3`` is a number, and ``no``, ``on`` and ``yes`` are texts.

    Args:
        path: the file.

    Returns:
        What it holds, as it stands.

    Raises:
        InvalidValueError: it is missing, cannot be read, or holds no mapping, or a key twice.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidValueError(f"The params file cannot be read: {error.strerror}. Received: {place}.") from error
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"The params file is no text in UTF-8: {error}. Received: {place}.") from error
    found = _parse(text, place)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise InvalidValueError(
            f"A params file holds `name: value` lines. Received: a {type(found).__name__}, in {place}."
        )
    return dict(found)


def _parse(text: str, place: Path) -> Any:
    try:
        if place.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_unique)
        if place.suffix.lower() == ".toml":
            return _toml(text)
        return parse_yaml(text)
    except InvalidValueError as error:
        raise InvalidValueError(f"{place}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{place} cannot be read: {error}.") from error


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]
    return tomllib.loads(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InvalidValueError(f"{key!r} stands there twice. Take one of them out.")
        found[key] = value
    return found


def parse_yaml(text: str) -> Any:
    """Read YAML as version 1.2 has it; no code in it is run.

    Args:
        text: the document.

    Returns:
        Its data.

    Raises:
        InvalidValueError: it is no YAML, holds more than one document, or a key twice; says in which line.
    """
    import yaml

    from trainlab.experiments.yaml_loader import Loader

    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise InvalidValueError(f"{error.problem or error.context}{where}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidValueError(f"no YAML: {error}.") from error
