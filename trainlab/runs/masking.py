"""Masking: secrets that are known by their text are kept out of all that is written."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

__all__ = ["MASK", "Masking", "mask_passwords", "passwords_of"]

MASK = "***"
# What is shorter stands in too many other words.
_SHORTEST_ANYWHERE = 4
# To the last "@" before another URL begins, for a password may hold any character, quoted or not.
_IN_URL = re.compile(r"(?<=://)([^:/\n]*):((?:(?![\s'\"(,=]\w[\w+.-]*://).)*)@")
_IN_QUERY = re.compile(r"((?<=[?&;])(?:ssl)?(?:password|passwd|pwd)=)([^&\n]+)", re.IGNORECASE)
_BETWEEN_PIECES = re.compile(r"[@/:?&\s]")


class Masking:
    """Replaces secrets by ``***``, however they are quoted: as in ``repr``, JSON or a URL.

    Args:
        secrets: the texts; empty ones are left out. One of less than four characters is replaced only where it stands
            as a word of its own.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: set[str] = set()
        self._found: re.Pattern[str] | None = None
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Replace further secrets from now on.

        Args:
            secrets: the texts.
        """
        self._forms |= {form for secret in secrets if secret for form in _forms(secret)}
        patterns = [_pattern(form) for form in sorted(self._forms, key=len, reverse=True)]
        self._found = re.compile("|".join(patterns)) if patterns else None

    def text(self, text: str) -> str:
        """Give a text without the secrets.

        Args:
            text: it.
        """
        return text if self._found is None else self._found.sub(MASK, text)

    def data(self, value: Any) -> Any:
        """Give plain data without the secrets, in keys as in values.

        Args:
            value: nested mappings, lists and scalars; other objects are given as their ``str`` if it has a secret.
        """
        if self._found is None or value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self.data(key): self.data(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.data(item) for item in value]
        shown = str(value)
        masked = self.text(shown)
        return value if masked == shown else masked


def mask_passwords(text: str) -> str:
    """A text with the passwords of the URLs in it masked.

    Args:
        text: any.

    Returns:
        Such as "postgresql://user:***@host/name" or "sqlite:////a.db?password=***".
    """
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_URL.sub(rf"\1:{MASK}@", text))


def passwords_of(url: str) -> set[str]:
    """The passwords of a URL with the pieces that a driver may take them apart into, for a ``Masking``.

    Args:
        url: it.

    Returns:
        Texts, as they stand in the URL and unquoted.
    """
    whole = {match[2] for pattern in (_IN_URL, _IN_QUERY) for match in pattern.finditer(url)}
    whole |= {unquote_plus(one) for one in whole} | {unquote(one) for one in whole}
    pieces = {piece for one in whole for piece in _BETWEEN_PIECES.split(one) if len(piece) > 1}
    return whole | pieces


def _forms(secret: str) -> set[str]:
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
    }


def _pattern(form: str) -> str:
    return re.escape(form) if len(form) >= _SHORTEST_ANYWHERE else rf"(?<!\w){re.escape(form)}(?!\w)"
