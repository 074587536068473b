"""What a checkpoint holds of hyperparameters: all but the secrets."""

import copy
from numbers import Real
from typing import Any

from trainlab.runs.masking import MASK, Masking
from trainlab.runs.yaml_text import masked

__all__ = ["without_secrets"]


def without_secrets(value: Any, masking: Masking) -> Any:
    """Give a value with its secrets masked, and otherwise as it is: tuples stay tuples.

    Args:
        value: nested dicts, lists and tuples of anything. What stands under a key that looks like that of a secret is
            masked, as in ``params.yaml``.
        masking: knows other secrets by their text.

    Returns:
        A new value, as far as there is something to mask; objects are the same.
    """
    if isinstance(value, dict):
        shown = copy.copy(value)  # of its class, such as OrderedDict
        for key, inner in value.items():
            shown[key] = MASK if _is_secret(key, inner) else without_secrets(inner, masking)
        return shown
    if type(value) in (list, tuple):
        return type(value)(without_secrets(item, masking) for item in value)
    return masking.text(value) if type(value) is str else value


def _is_secret(key: Any, value: Any) -> bool:
    kept = value if value is None or isinstance(value, Real | str) else "of this no more than its kind matters"
    return masked({key: kept}) == {str(key): MASK}
