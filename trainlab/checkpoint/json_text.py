"""JSON as the standard has it, from files that nobody vouches for."""

import json
import re
from typing import Any

__all__ = ["parse_json"]

# All integers of 64 bits have fewer digits, and a number of millions of digits takes minutes to read.
_MOST_DIGITS = 20
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes | bytearray) -> Any:
    """Read JSON: no key twice, no NaN, no integer beyond 20 digits, no half of a character.

    Args:
        data: UTF-8.

    Returns:
        The value. Numbers beyond the range of a float are infinite.

    Raises:
        ValueError: It is no such JSON, or nested too deep.
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_short_integer
        )
        if _HALF_CHARACTER.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError, which is a ValueError
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _short_integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
