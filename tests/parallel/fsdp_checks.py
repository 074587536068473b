"""What is observed on each rank about models under FSDP2."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tests.parallel import scenarios as s
from tests.parallel.ddp_checks import counting, error_of, gathered
from tests.parallel.equality import shared
from tests.parallel.job import Job, mlp
from trainlab.distributed import DistributedContext
from trainlab.parallel import FSDPOptions


def observe() -> dict[str, Any]:
    """Called on each rank: make all observations."""
    with DistributedContext.from_torch_distributed() as distributed:

        def job(options: FSDPOptions | None = None) -> Job:
            return shared(("fsdp", options), distributed)

        return {check.__name__: check(job) for check in CHECKS}


def stays_the_users(job: Callable[..., Job]) -> list[bool]:
    run, model = job(FSDPOptions(wrap=(s.Block,))), s.Blocks()
    keys = list(model.state_dict())
    given = run.wrap(model)
    return [
        given is model,
        isinstance(given, s.Blocks),
        list(given.state_dict()) == keys,
        all(isinstance(parameter, DTensor) for parameter in given.parameters()),
        run.parallel.shards and run.parallel.collective_forward,
    ]


def collectives(job: Callable[..., Job]) -> list[int]:
    """How many gradients' exchanges each batch of an accumulation of 3 makes."""
    run = job()
    run.accumulation = 3
    model = run.wrap(mlp())
    optimizer = run.optimizer(model)
    run.start()
    counts, batches = [], run.batches(6)
    for _ in range(6):
        with counting("gloo:reduce_scatter", "gloo:_reduce_scatter_base", "gloo:all_reduce") as count:
            run.backward((model(next(batches)) ** 2).mean())
            run.step(optimizer)
        counts.append(count())
    return counts


def buffers(job: Callable[..., Job]) -> list[bool]:
    run = job()
    model = run.wrap(s.Normed())
    run.start()
    for x in run.batches(1):
        run.backward(model(x).mean())
    apart = torch.equal(*gathered(model.layers[1].running_mean))
    with run.parallel.evaluating():
        together = torch.equal(*gathered(model.layers[1].running_mean))
    return [apart, together]


def in_number_formats(job: Callable[..., Job]) -> list[str]:
    """The dtypes of a weight where it is computed with, of a gradient, and of the weight that is stepped."""
    run = job(FSDPOptions(param_dtype="bf16", reduce_dtype="fp32"))
    model, seen = s.TwoHeads().float(), []
    model.body.register_forward_hook(lambda part, *_: seen.append(str(part.weight.dtype)))
    run.wrap(model)
    run.start()
    for x in run.batches(1):
        run.backward(model(x.float(), 0).mean())
    return [*seen, str(model.body.weight.grad.dtype), str(model.body.weight.dtype)]


def errors(job: Callable[..., Job]) -> dict[str, str]:
    return {name: error_of(lambda call=call: call(job)) for name, call in ERRORS.items()}


def _trained(run: Job, model: nn.Module, use: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """Train a batch as the Trainer does, which has torch's errors told."""
    run.wrap(model)
    run.start()
    for x in run.batches(1):
        try:
            loss = use(model, x)
        except RuntimeError as error:
            raise run.parallel.translate(error) from error
        run.backward(loss)


def _method_called(job: Callable[..., Job]) -> None:
    _trained(job(), s.TwoHeads(), lambda model, x: model.encode(x).mean())


def _parameter_used(job: Callable[..., Job]) -> None:
    _trained(job(), mlp(), lambda model, x: model(x).mean() + (model[0].weight ** 2).sum())


def _part_called_first(job: Callable[..., Job]) -> None:
    run = job(FSDPOptions(wrap=(s.Block,)))
    _trained(run, s.Blocks(), lambda model, x: model.blocks[0](x[:, :1].expand(-1, 5)).mean() + model(x).mean())


def _gradient_of_gradient(job: Callable[..., Job]) -> None:
    s.penalty(job())


def _never_exchanged(job: Callable[..., Job]) -> None:
    run = job()
    run.accumulation = 2
    one, other = run.wrap(mlp(1)), run.wrap(mlp(2))
    optimizer = run.optimizer(other)
    run.start()
    for number in range(2):
        for x in run.batches(1):
            run.backward(one(x).mean() + (other(x).mean() if number == 0 else 0.0))
            run.step(optimizer)


def _tied_apart(job: Callable[..., Job]) -> None:
    model = s.Blocks()
    model.blocks[1].norm.weight = model.blocks[0].norm.weight
    job(FSDPOptions(wrap=(s.Block,))).wrap(model)


def _nothing_to_wrap(job: Callable[..., Job]) -> None:
    run = job(FSDPOptions(wrap=(s.Block, nn.Conv2d)))
    run.wrap(s.Blocks())
    run.start()


def _different_models(job: Callable[..., Job]) -> None:
    run = job()
    run.wrap(mlp(out=1 + run.rank))


def _lbfgs(job: Callable[..., Job]) -> None:
    run = job()
    run.optimizer(run.wrap(mlp()), kind=torch.optim.LBFGS, lr=0.1)


ERRORS: dict[str, Callable[[Callable[..., Job]], Any]] = {
    "method": _method_called,
    "parameter": _parameter_used,
    "part_first": _part_called_first,
    "gradient_of_gradient": _gradient_of_gradient,
    "never_exchanged": _never_exchanged,
    "tied_apart": _tied_apart,
    "nothing_to_wrap": _nothing_to_wrap,
    "different": _different_models,
    "lbfgs": _lbfgs,
    "no_forward": lambda job: job().wrap(nn.ModuleList([mlp()])),
    "sparse": lambda job: job().wrap(nn.Sequential(nn.Embedding(3, 2, sparse=True))),
    "lazy": lambda job: job().wrap(nn.LazyLinear(2)),
    "shard_size": lambda job: job(FSDPOptions(shard_size=3)),
    "in_parts": lambda job: job(FSDPOptions(reshard_after_forward=2)),
}
CHECKS: list[Callable[[Callable[..., Job]], Any]] = [
    stays_the_users,
    collectives,
    buffers,
    in_number_formats,
    errors,
]
