"""Whether a state dict fits what it is to be loaded into."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from trainlab.checkpoint.parts import Parts
from trainlab.errors import CheckpointMismatchError

__all__ = ["KeyDifferences", "compare_keys", "match_keys", "shown"]

_SHOWN = 20


class KeyDifferences(NamedTuple):
    """The keys in which a state dict differs from the one that is wanted.

    Attributes:
        missing: wanted and not there.
        unknown: there and not wanted.
        misshapen: of another shape.
        retyped: of the same shape and another dtype.
    """

    missing: list[str]
    unknown: list[str]
    misshapen: list[str]
    retyped: list[str]


def compare_keys(expected: Mapping[str, torch.Tensor], found: "Mapping[str, torch.Tensor | Parts]") -> KeyDifferences:
    """Compare two state dicts by their keys, shapes and dtypes.

    Args:
        expected: What is wanted.
        found: What is there.

    Returns:
        The keys that differ, each kind in the order of its state dict.
    """
    both = [key for key in expected if key in found]
    misshapen = [key for key in both if expected[key].shape != found[key].shape]
    return KeyDifferences(
        missing=[key for key in expected if key not in found],
        unknown=[key for key in found if key not in expected],
        misshapen=misshapen,
        retyped=[
            key for key in both if expected[key].dtype != found[key].dtype and expected[key].shape == found[key].shape
        ],
    )


def match_keys(
    expected: Mapping[str, torch.Tensor], found: "Mapping[str, torch.Tensor | Parts]", what: str, *, dtypes: bool = True
) -> None:
    """Check that a state dict has the keys, shapes and dtypes that are wanted.

    Args:
        expected: The state dict of the object that is to be loaded.
        found: The one from the checkpoint.
        what: What is loaded, for the message, such as ``model 'net'``.
        dtypes: Whether the dtypes count, too: a cast on the way would make a resumed run another one. Default True.

    Raises:
        CheckpointMismatchError: Keys are missing, unknown, of another shape or dtype; it lists them.
    """
    differences = compare_keys(expected, found)
    groups = {
        "missing": differences.missing,
        "unknown": differences.unknown,
        "of another shape": [
            f"{key} ({list(found[key].shape)} instead of {list(expected[key].shape)})" for key in differences.misshapen
        ],
        "of another dtype": [
            f"{key} ({found[key].dtype} instead of {expected[key].dtype})" for key in differences.retyped if dtypes
        ],
    }
    told = [f"{kind}: {shown(keys)}" for kind, keys in groups.items() if keys]
    if told:
        raise CheckpointMismatchError(
            f"The checkpoint does not fit {what}. In the checkpoint, keys are {'; '.join(told)}. "
            "Build the model as it was when the checkpoint was written, or load another checkpoint."
        )


def shown(names: Iterable[str]) -> str:
    """List names for a message.

    Args:
        names: Any number of them.

    Returns:
        The first 20, and how many more there are.
    """
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
