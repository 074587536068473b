"""param_matrix: every combination of some values."""

import itertools
from typing import Any

__all__ = ["param_matrix"]


def param_matrix(**values: Any) -> list[dict[str, Any]]:
    """Combine each value of each parameter with each of the others.

    Args:
        **values: by parameter. A list or a tuple holds alternatives; anything else, a string too, is the same in all
            combinations. For a parameter that is a list itself, pass a list of lists.

    Returns:
        A dict for each combination, in the order of the arguments, the last varying fastest. One empty dict without
        arguments; nothing where a list is empty.
    """
    alternatives = [value if isinstance(value, list | tuple) else (value,) for value in values.values()]
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*alternatives)]
