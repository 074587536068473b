"""Plain data as YAML text, for people to read; secrets are masked."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from trainlab.runs.masking import MASK, mask_passwords
from trainlab.runs.plain_numbers import standard_json

__all__ = ["mask_command", "masked", "secrets_of_text", "to_yaml"]

_ALWAYS_SECRET = {"authorization", "credential", "credentials", "passphrase", "passwd", "password", "passwords", "pwd"}
_ALWAYS_SECRET |= {"secret", "secrets"}
_SECRET_AT_THE_END = {"accesskey", "apikey", "authtoken", "key", "keys", "token", "tokens"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# YAML 1.1 reads these as something else than the string that they are.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
# Not printable in YAML, or a line break to it, although JSON lets it stand.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
# In {password: abc}, or in db.password=abc.
_NAME = re.compile(r"""(\w[\w.-]*)["']?\s*[:=]\s*""")
_VALUE = re.compile(r"""\{[^}]*\}?|\[[^\]]*\]?|"[^"]*"?|'[^']*'?|[^\s,;&}\]][^,;&}\]\n]*""")
_DEEPEST = 64


def to_yaml(values: Mapping[Any, Any]) -> str:
    """Write a mapping as YAML in block style, with secrets masked.

    Numbers, strings, booleans and None keep their types; tuples and sets become lists, anything else its ``str``.

    Args:
        values: Nested mappings, lists and scalars. A value whose key looks like one of a secret
            (``password``, ``api_key``, ``token``; but not a number such as ``num_tokens``) is shown as ``***``.

    Returns:
        The text, ending in a newline.
    """
    if not values:
        return "{}\n"
    return "\n".join(_mapping_lines(values, 0)) + "\n"


def masked(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Give nested values as a JSON file can hold them, with secrets masked as ``to_yaml`` masks them.

    Args:
        values: nested mappings, lists and scalars; other objects become their ``str``.

    Returns:
        New dicts and lists.
    """
    return {str(key): _plain(_masked(key, value), 1) for key, value in values.items()}


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {str(key): _plain(_masked(key, inner), depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
        return [_plain(inner, depth + 1) for inner in value]
    return str(value)


def mask_command(arguments: list[str]) -> list[str]:
    """A command line with the values of options that look like secrets masked, and the passwords of URLs.

    Args:
        arguments: As in ``sys.argv``; both ``--api-key=VALUE`` and ``--api-key VALUE`` are recognised.

    Returns:
        A new list.
    """
    shown: list[str] = []
    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("-"):
            shown.append(f"{name}={_masked(name, value)}" if equals else argument)
            option = "" if equals else name
        else:
            shown.append(str(_masked(option, argument)))
            option = ""
    return [_mask_pairs(mask_passwords(str(argument))) for argument in shown]


def secrets_of_text(text: str) -> list[str]:
    """The values in a text such as ``{password: abc}`` that stand under names of secrets.

    Args:
        text: it, which need not be YAML.

    Returns:
        The values.
    """
    values = (text[start:end].strip().strip("\"'") for start, end in _places_of_secrets(text))
    return [value for value in values if value]


def _mask_pairs(argument: str) -> str:
    if "{" not in argument and re.search(r"\s", argument):
        return argument  # a sentence may have "key: ..." in it
    for start, end in reversed([*_places_of_secrets(argument)]):
        argument = f"{argument[:start]}{MASK}{argument[end:]}"
    return argument


def _places_of_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secrets begin and end in a text."""
    place = 0
    while (name := _NAME.search(text, place)) is not None:
        place = name.end()
        value = _VALUE.match(text, place)
        if value is not None and _masked(name[1], value[0]) != value[0]:
            yield value.span()
            place = value.end()


def _masked(key: Any, value: Any) -> Any:
    words = [word.lower() for word in _WORD.findall(str(key))]
    if not words or value is None:
        return value
    if _ALWAYS_SECRET & set(words):
        return MASK
    is_number = isinstance(value, Real) or (isinstance(value, str) and value.replace(".", "", 1).isdigit())
    return MASK if words[-1] in _SECRET_AT_THE_END and not is_number else value


def _mapping_lines(values: Mapping[Any, Any], depth: int) -> Iterator[str]:
    for key, value in values.items():
        yield from _item_lines(f"{'  ' * depth}{_key(key)}:", _masked(key, value), depth)


def _item_lines(start: str, value: Any, depth: int) -> Iterator[str]:
    """The lines of ``key: value`` or ``- value``, of which ``start`` is the part before the value."""
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    is_mapping = isinstance(value, Mapping)
    # What is nested deeper than any parameters, or in itself, is shown by its str.
    if not (is_mapping or isinstance(value, (list, tuple))) or depth >= _DEEPEST:
        yield f"{start} {_scalar(value)}"
    elif not value:
        yield f"{start} {'{}' if is_mapping else '[]'}"
    else:
        yield start
        if is_mapping:
            yield from _mapping_lines(value, depth + 1)
        else:
            for item in value:
                yield from _item_lines(f"{'  ' * (depth + 1)}-", item, depth + 1)


def _key(key: Any) -> str:
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key) and key.lower() not in _RESERVED:
        return key
    return _scalar(key)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Integral):
        return str(standard_json(int(value)))
    if isinstance(value, Real):
        return _number(float(value))
    text = json.dumps(value if isinstance(value, str) else str(value), ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _number(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    # YAML 1.1 takes 1e-05 for a string and 1.0e-05 for a number.
    return text if "e" not in text or "." in text else text.replace("e", ".0e")
