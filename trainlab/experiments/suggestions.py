"""What was meant, where a name is not known."""

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Say which known name was meant.

    Args:
        given: the name that is not known.
        known: those that are.

    Returns:
        Such as " Did you mean --learning-rate?"; "" where none is near.
    """
    plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(given), list(plain), n=1, cutoff=0.6)
    return f" Did you mean {plain[near[0]]}?" if near else ""


def _plain(name: str) -> str:
    # Dashes that all options begin with would make them alike.
    return name.replace("_", "-").lstrip("-").lower()
