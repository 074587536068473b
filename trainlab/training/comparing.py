"""What all ranks of a run have to be given alike, compared before anything is trained."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from trainlab.data import BatchStream
from trainlab.errors import DisagreementError, PeerFailedError
from trainlab.parallel import users_module
from trainlab.schedule import Plan
from trainlab.training.agreement import disagreement
from trainlab.training.context import TrialContext
from trainlab.training.differences import length_of, made_with
from trainlab.training.trial import Trial

__all__ = ["compare_ranks", "compare_weights"]

_LONGEST = 200
# Above what ranks on different hardware may differ by, far below what training apart does.
_ROUNDING = 1e-6


def compare_ranks(
    trial: Trial,
    context: TrialContext,
    streams: tuple[BatchStream, BatchStream | None],
    loaders: tuple[Any, Any],
    plan: Plan,
    options: Mapping[str, Any],
) -> None:
    """See that the ranks were given the same: models, hyperparameters, data, schedule; a single process has no peers.

    Args:
        trial: the user's Trial.
        context: its context, with everything that is wrapped.
        streams: of the batches to train on, and of those of the validation, or None.
        loaders: theirs.
        plan: when what is due.
        options: the other arguments of ``fit``.

    Raises:
        DisagreementError: a rank has something otherwise than rank 0; it names the rank, and both.
    """
    if context.distributed.size == 1:
        return
    mine = {what: _short(value) for what, value in _given(trial, context, streams, loaders).items()}
    mine |= {what: _short(value) for what, value in {**vars(plan), **options}.items() if not what.startswith("_")}
    of_ranks = context.distributed.allgather(mine)
    for rank, theirs in enumerate(of_ranks):
        for what in of_ranks[0] | theirs:
            first, other = of_ranks[0].get(what), theirs.get(what)
            if first != other:
                raise _of_rank(rank, context, disagreement(what, rank, other, first))


def compare_weights(context: TrialContext) -> None:
    """See that the ranks have not trained their models apart, as an optimizer stepped past the context lets them.

    The norm of each parameter is compared, up to the rounding by which ranks on different hardware may differ.

    Args:
        context: the context; its models are not sharded, or nothing is compared.

    Raises:
        DisagreementError: the weights of a rank are not those of rank 0; it names the model and the rank.
    """
    if context.parallel.shards or context.distributed.size == 1:
        return
    of_ranks = context.distributed.allgather([_norms(users_module(model)) for model in context.models])
    for rank, theirs in enumerate(of_ranks):
        for name, first, other in zip(context.model_names, of_ranks[0], theirs, strict=True):
            if not torch.allclose(first, other, rtol=_ROUNDING, atol=0.0, equal_nan=True):
                error = DisagreementError(
                    f"The weights of model {name!r} have grown apart: rank {rank} has others than rank 0 after batch "
                    f"{context.progress.batches_trained}. Gradients were not exchanged somewhere: call "
                    "context.backward and context.step_optimizer, set no gradient by hand, and add no parameter to an "
                    "optimizer or a model after it is wrapped."
                )
                raise _of_rank(rank, context, error)


def _of_rank(rank: int, context: TrialContext, error: DisagreementError) -> DisagreementError:
    """Let the rank that differs tell the error; those of the others follow from it."""
    if rank != context.distributed.rank:
        error.__cause__ = PeerFailedError(str(error))
    return error


@torch.no_grad()
def _norms(module: Any) -> torch.Tensor:
    """The norm of each trained parameter: one pass over the weights."""
    weights = [p for p in module.parameters() if p.requires_grad]
    return torch.stack([n.double() for n in torch._foreach_norm(weights)]).cpu() if weights else torch.zeros(0)


def _given(
    trial: Trial, context: TrialContext, streams: tuple[BatchStream, BatchStream | None], loaders: tuple[Any, Any]
) -> dict[str, Any]:
    models = zip(context.model_names, context.models, strict=True)
    return {
        **made_with(trial, context, loaders[0]),
        "hyperparameters": context.given_hparams,
        "experiment configuration": context.given_exp_conf,
        **{f"model {name!r}": _layout(users_module(model)) for name, model in models},
        **{f"optimizer {name!r}": _groups(one.optimizer) for name, one in context.wrapped_optimizers.items()},
        **_loading("training", loaders[0], streams[0]),
        **_loading("validation", loaders[1], streams[1]),
        "wrapped reducers": context.reducers.told,
        "device type": context.device.type,
        "parallel": context.parallel.name,
        "uneven": context.uneven,
    }


def _loading(role: str, loader: Any, stream: BatchStream | None) -> dict[str, Any]:
    """What decides the order and the number of batches."""
    if stream is None:
        return {}
    if stream.shards_itself:  # each rank has what it has
        return {f"records in the {role} data set": None, f"{role} batch size": getattr(loader, "batch_size", None)}
    return {
        f"class of the {role} loader": type(loader).__qualname__,
        f"records in the {role} data set": length_of(getattr(loader, "dataset", None)),
        f"{role} batch size": getattr(loader, "batch_size", None),
        f"drop_last of the {role} loader": getattr(loader, "drop_last", None),
        f"sampler of the {role} loader": type(getattr(loader, "sampler", None)).__qualname__,
        f"shuffle of the {role} loader": getattr(loader, "shuffle", None),
        f"length of the {role} loader": length_of(loader),
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


def _short(value: Any) -> str:
    """A value as a person reads it; a long one is told apart by a digest."""
    text = repr(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
