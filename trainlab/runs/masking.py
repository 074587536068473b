"""Masking: secrets that are known by their text are kept out of all that is written."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

__all__ = ["MASK", "Masking"]

MASK = "***"
# What is shorter stands in too many other words.
_SHORTEST_ANYWHERE = 4


class Masking:
    """Replaces secrets by ``***``, however they are quoted: as in ``repr``, JSON or a URL.

    Args:
        secrets: the texts; empty ones are left out. One of less than four characters is replaced only where it stands
            as a word of its own.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        patterns = [_pattern(form) for form in sorted(forms, key=len, reverse=True)]
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


def _forms(secret: str) -> set[str]:
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
    }


def _pattern(form: str) -> str:
    return re.escape(form) if len(form) >= _SHORTEST_ANYWHERE else rf"(?<!\w){re.escape(form)}(?!\w)"
