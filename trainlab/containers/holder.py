"""Holder: the parts of a container of a context, and nothing of what is done with them."""

from collections.abc import Iterable
from typing import Any

__all__ = ["Holder"]


class Holder:
    """What has parts, in a dict or a list.

    Attributes:
        _parts: the parts, by name or key, or in their order.
        _left_out: names of parts that are not saved.
        _grows: whether the parts, if all are data, are those that a saved state has, however many.
    """

    _parts: Any
    _left_out: frozenset[str] = frozenset()
    _grows = True

    def _keys(self) -> Iterable[Any]:
        """The names, keys or numbers of the parts."""
        return list(self._parts) if isinstance(self._parts, dict) else range(len(self._parts))

    def _taken(self, value: Any) -> Any:
        """What is kept of a value that is put in."""
        return value

    def _replace(self, parts: Any) -> None:
        """Put other parts in the place of all."""
        if isinstance(self._parts, dict):
            self._parts = {key: self._taken(value) for key, value in parts.items()}
        else:
            self._parts = [self._taken(value) for value in parts]
