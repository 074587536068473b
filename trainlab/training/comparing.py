"""What all ranks of a run have to be given alike, compared before anything is trained."""

import hashlib
from collections.abc import Mapping
from typing import Any

from trainlab.errors import PeerFailedError
from trainlab.schedule import Plan
from trainlab.training.agreement import disagreement
from trainlab.training.context import TrialContext
from trainlab.training.differences import made_with
from trainlab.training.trial import Trial
from trainlab.training.wrapped import inner_module

__all__ = ["compare_ranks"]

_LONGEST = 200


def compare_ranks(
    trial: Trial, context: TrialContext, loader: Any, validation_loader: Any, plan: Plan, options: Mapping[str, Any]
) -> None:
    """See that the ranks were given the same: models, hyperparameters, data, schedule; a single process has no peers.

    Args:
        trial: the user's Trial.
        context: its context, with everything that is wrapped.
        loader: the training loader.
        validation_loader: that of the validation, or None.
        plan: when what is due.
        options: the other arguments of ``fit``.

    Raises:
        DisagreementError: a rank has something otherwise than rank 0; it names the rank, and both.
    """
    if context.distributed.size == 1:
        return
    mine = {what: _short(value) for what, value in _given(trial, context, loader, validation_loader).items()}
    mine |= {what: _short(value) for what, value in {**vars(plan), **options}.items() if not what.startswith("_")}
    of_ranks = context.distributed.allgather(mine)
    for rank, theirs in enumerate(of_ranks):
        for what in of_ranks[0] | theirs:
            first, other = of_ranks[0].get(what), theirs.get(what)
            if first != other:
                error = disagreement(what, rank, other, first)
                if rank != context.distributed.rank:  # so that one rank tells, and the others only what it told
                    error.__cause__ = PeerFailedError(f"Rank {rank} differs in: {what}.")
                raise error


def _given(trial: Trial, context: TrialContext, loader: Any, validation_loader: Any) -> dict[str, Any]:
    models = zip(context.model_names, context.models, strict=True)
    return {
        **made_with(trial, context, loader),
        "hyperparameters": context.given_hparams,
        "experiment configuration": context.given_exp_conf,
        **{f"model {name!r}": _layout(inner_module(model)) for name, model in models},
        **{f"optimizer {name!r}": _groups(one.optimizer) for name, one in context.wrapped_optimizers.items()},
        "records in the validation data set": _length(getattr(validation_loader, "dataset", None)),
        "validation batch size": getattr(validation_loader, "batch_size", None),
        "wrapped reducers": context.reducers.told,
        "device type": context.device.type,
        "parallel": context.parallel.name,
        "uneven": context.uneven,
    }


def _layout(module: Any) -> dict[str, Any]:
    return {name: (tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in module.named_parameters()} | {
        name: (tuple(b.shape), str(b.dtype)) for name, b in module.named_buffers()
    }


def _groups(optimizer: Any) -> Any:
    groups = [
        {key: value for key, value in group.items() if key != "params"} | {"parameters": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return type(optimizer).__qualname__, groups


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _short(value: Any) -> str:
    """A value as a person reads it; a long one is told apart by a digest."""
    text = repr(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
