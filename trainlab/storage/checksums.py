"""Checksums of files: XXH3 with 128 bits, which keeps pace with memory and lets other threads run meanwhile."""

import hashlib
from typing import Any, Protocol

import xxhash

__all__ = ["ALGORITHM", "Checksum", "is_checksum"]

ALGORITHM = "xxh3_128"
# By name: what makes the state, and the number of hexadecimal digits.
_ALGORITHMS: dict[str, tuple[Any, int]] = {
    ALGORITHM: (xxhash.xxh3_128, 32),
    "sha256": (hashlib.sha256, 64),
}


class _State(Protocol):
    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


class Checksum:
    """The checksum of bytes that come piece by piece.

    Args:
        algorithm: "xxh3_128" (default), or "sha256" for files of the first format version.
    """

    def __init__(self, algorithm: str = ALGORITHM) -> None:
        self._algorithm = algorithm
        self._state: _State = _ALGORITHMS[algorithm][0]()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in the next piece.

        Args:
            data: the bytes.
        """
        self._state.update(data)

    @property
    def text(self) -> str:
        """The checksum of all so far, as it stands in a manifest: ``algorithm:hexadecimal digits``."""
        return f"{self._algorithm}:{self._state.hexdigest()}"


def is_checksum(text: object) -> bool:
    """Tell whether a text is a checksum that can be compared.

    Args:
        text: whatever was read.

    Returns:
        True for ``algorithm:digits`` with a known algorithm, its number of digits, and lower case.
    """
    if not isinstance(text, str):
        return False
    algorithm, _, digits = text.partition(":")
    length = _ALGORITHMS[algorithm][1] if algorithm in _ALGORITHMS else -1
    return len(digits) == length and all(digit in "0123456789abcdef" for digit in digits)
