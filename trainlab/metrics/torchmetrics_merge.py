"""One state of a torchmetrics object, made of those of several ranks."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["merge_states"]


def merge_states(metric: Any, of_ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Reduce what a metric accumulated on several ranks, each state as its ``dist_reduce_fx`` asks for.

    The ranks need not have made equally many updates: one that made none is left out, and "mean" weighs by updates.
    Where each update appended one item to every list, the ranks take turns in the lists, so that these are in the order
    of the undealt data; else the lists follow each other in the order of the ranks.

    Args:
        metric: the ``torchmetrics.Metric``, of which only the reductions and defaults are read.
        of_ranks: for each rank ``states`` by name, ``updates``, and what else is kept with them.

    Returns:
        The same for all of them together; everything else is that of the first rank that accumulated anything.

    Source: ``torchmetrics.Metric._sync_dist`` and ``_reduce_states``.
    """
    taking_part = [one for one in of_ranks if _has_accumulated(metric, one)] or list(of_ranks[:1])
    first = taking_part[0]
    if len(taking_part) == 1:
        return first
    updates = [one["updates"] for one in taking_part]
    by_name = {name: [one["states"][name] for one in taking_part] for name in first["states"]}
    lists = [state for states in by_name.values() for state in zip(states, updates, strict=True)]
    in_turn = all(len(state) == made for state, made in lists if isinstance(state, list))
    states = {name: _reduced(metric._reductions[name], found, updates, in_turn) for name, found in by_name.items()}
    return {**first, "states": states, "updates": sum(updates)}


def _has_accumulated(metric: Any, one: dict[str, Any]) -> bool:
    # Wrappers of other metrics do not count their updates, and may have states nevertheless.
    return one["updates"] > 0 or any(_differs(value, metric._defaults[name]) for name, value in one["states"].items())


def _differs(value: Any, default: Any) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(default, torch.Tensor):
        return not torch.equal(value.cpu(), default.cpu())
    return bool(value) if isinstance(value, list) else True


def _reduced(reduction: Any, states: list[Any], updates: list[int], in_turn: bool) -> Any:
    from torchmetrics.utilities.data import dim_zero_cat, dim_zero_mean

    if any(isinstance(state, list) for state in states):
        items = _joined([state if isinstance(state, list) else [state] for state in states], in_turn)
        return items if reduction in (None, dim_zero_cat) else reduction(items)
    if reduction is dim_zero_cat:
        return torch.cat(states)
    if reduction is dim_zero_mean and len(set(updates)) > 1:
        return sum(state * made for state, made in zip(states, updates, strict=True)) / sum(updates)
    stacked = torch.stack(states)
    return stacked if reduction is None else reduction(stacked)


def _joined(lists: list[list[Any]], in_turn: bool) -> list[Any]:
    if not in_turn:
        return [item for items in lists for item in items]
    missing = object()
    return [item for turn in itertools.zip_longest(*lists, fillvalue=missing) for item in turn if item is not missing]
