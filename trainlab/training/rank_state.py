"""What each of several ranks has of its own in a checkpoint, and what becomes of it on another number of ranks."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from trainlab.checkpoint import Checkpoint, only_parts, place_like
from trainlab.metrics import MetricStates
from trainlab.parallel import users_module
from trainlab.training.context import TrialContext

__all__ = ["own_of", "own_parts"]

_OWN = ("stateful", "stream", "rng_state")
# What the ranks have in common, and each a part of where parameters are sharded.
_SHARED = ("optimizers_state_dict", "gradients", "callbacks", "models_extra_state")

logger = logging.getLogger("trainlab.training")


def own_of(content: Mapping[str, Any], *, shards: bool) -> dict[str, Any]:
    """Pick what a rank other than the chief saves.

    Args:
        content: the whole state, as this rank has it.
        shards: whether parameters are parts of larger ones.

    Returns:
        Its own parts, and of what is shared by all ranks what it alone has a part of.
    """
    own = {key: content[key] for key in _OWN}
    if not shards:
        return {**own, "gradients": content["gradients"]}
    parts = {key: only_parts(content[key]) for key in _SHARED}
    return {**own, **{key: tree for key, tree in parts.items() if tree is not None}}


def own_parts(
    checkpoint: Checkpoint, classes: Mapping[str, type] | None, content: Mapping[str, Any], context: TrialContext
) -> dict[str, Any]:
    """Read what this rank had of its own, or has to get where the run goes on with another number of ranks.

    Args:
        checkpoint: the opened checkpoint.
        classes: the enums, named tuples and dataclasses that it may hold, besides registered ones.
        content: the state of the chief.
        context: the context of this rank.

    Returns:
        The parts by name; a rank that was not there has no ``rng_state``, an empty one.
    """
    rank, ranks = context.distributed.rank, context.distributed.size
    mine: Mapping[str, Any] = content
    if 0 < rank < checkpoint.ranks:
        mine = checkpoint.state(classes, rank=rank)
    own = {key: mine[key] for key in _OWN}
    if checkpoint.ranks == ranks:
        if not context.parallel.shards and _is_local(mine.get("gradients")):
            return {**own, "gradients": mine["gradients"]}
        of_another = mine if rank > 0 else checkpoint.state(classes, rank=1)
        if not _is_local(of_another.get("gradients")):
            return {**own, "gradients": content["gradients"]}  # exchanged already, and the same for all
    everyone = [content, *(checkpoint.state(classes, rank=other) for other in range(1, checkpoint.ranks))]
    gradients = _gradients([one.get("gradients") for one in everyone], context)
    if checkpoint.ranks == ranks:
        return {**own, "gradients": gradients}
    if rank >= checkpoint.ranks:
        own["rng_state"] = {}
    # The batch that one rank had fetched ahead is not the piece that it has of it now.
    own["stream"] = {**mine["stream"], "held": False, "held_rng": None}
    own["stateful"] = _stateful(own["stateful"], [one["stateful"] for one in everyone], context)
    return {**own, "gradients": gradients}


def _stateful(mine: dict[str, Any], of_ranks: list[dict[str, Any]], context: TrialContext) -> dict[str, Any]:
    merged = dict(mine)
    for name, one in context.stateful.items():
        if isinstance(one, MetricStates) and all(name in states for states in of_ranks):
            merged[name] = one.merge([states[name] for states in of_ranks], context.distributed.rank)
    return merged


def _is_local(gradients: Any) -> bool:
    """Tell gradients that a rank has for itself from those of sharded models, which were exchanged."""
    return isinstance(gradients, list) and all(
        isinstance(of_model, dict) and all(isinstance(gradient, torch.Tensor) for gradient in of_model.values())
        for of_model in gradients
    )


def _gradients(of_ranks: list[Any], context: TrialContext) -> list[dict[str, Any]]:
    """Half-accumulated gradients for another number of ranks: their mean over these must be what it was to be."""
    first: list[dict[str, Any]] = of_ranks[0]
    if not all(map(_is_local, of_ranks)):
        return first  # of sharded models, where they were exchanged already: each rank takes its part
    if not any(gradients for models in of_ranks for gradients in models):
        return first
    logger.info("Half-accumulated gradients of %d ranks are summed up for %d.", len(of_ranks), context.distributed.size)
    summed: list[dict[str, Any]] = []
    for number, model in enumerate(context.models):
        mean: dict[str, Any] = {}
        for name, parameter in users_module(model).named_parameters():
            found = [models[number][name] for models in of_ranks if name in models[number]]
            if not found:
                continue
            total = torch.stack([gradient.double() for gradient in found]).sum(0) / len(of_ranks)
            if context.parallel.shards:
                mean[name] = place_like(total.to(found[0].dtype), parameter)
            elif context.distributed.is_chief:
                mean[name] = (total * context.distributed.size).to(found[0].dtype)
        summed.append(mean)
    return summed
