"""What is observed on each rank about models under DDP."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.parallel import scenarios as s
from tests.parallel.equality import shared
from tests.parallel.job import Job, mlp, records, weights
from trainlab.distributed import DistributedContext
from trainlab.errors import TrainlabError
from trainlab.parallel import DDPOptions


class Cached(nn.Linear):
    """Keeps all that it has, the way by which it is called too."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def observe() -> dict[str, Any]:
    """Called on each rank: make all observations."""
    with DistributedContext.from_torch_distributed() as distributed:

        def job(options: DDPOptions | None = None) -> Job:
            return shared(("ddp", options), distributed)

        return {check.__name__: check(job) for check in CHECKS}


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except TrainlabError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def stays_the_users(job: Callable[..., Job]) -> dict[str, Any]:
    run = job()
    model = s.TwoHeads()
    calls: list[str] = []
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"))
    attributes, keys = set(vars(model)), list(model.state_dict())
    before = pickle.dumps(s.TwoHeads())
    given = run.wrap(model)
    run.start()
    run.start()
    run.parallel.begin_batch(reduces=True)
    out = given(torch.ones(2, 4, dtype=torch.float64), 0)
    hooked = list(calls)
    model._forward_pre_hooks.clear()
    model._forward_hooks.clear()
    found = {
        "same": given is model and type(given) is s.TwoHeads,
        "calls": hooked,
        "attributes": sorted(set(vars(model)) - attributes),
        "keys": list(given.state_dict()) == keys,
        "pickle": len(pickle.dumps(model)) - len(before),
        "copies": [type(each)._compiled_call_impl is each._compiled_call_impl for each in (copy.deepcopy(model),)],
        "grad": out.requires_grad,
    }
    run.parallel.close()
    found["closed"] = sorted(set(vars(model)) - attributes)
    return found


def copies_are_free(job: Callable[..., Job]) -> list[Any]:
    run = job()
    model = run.wrap(Cached(4, 1))
    run.start()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    found = [each._compiled_call_impl for each in copies]
    run.parallel.close()
    return found


def collectives(job: Callable[..., Job]) -> list[int]:
    """How many exchanges each batch of an accumulation of 3 makes, of a model without buffers."""
    run = job()
    run.accumulation = 3
    model = run.wrap(mlp())
    optimizer = run.optimizer(model)
    run.start()
    counts = []
    batches = run.batches(6)
    for _ in range(6):
        with counting() as count:
            x = next(batches)
            run.backward((model(x) ** 2).mean())
            run.backward((model(x) ** 2).mean())
            run.step(optimizer)
        counts.append(count())
    run.parallel.close()
    return counts


class counting:
    """Counts the operations of process groups in a block; those of the given names, or all."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __enter__(self) -> Callable[[], int]:
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profile.__enter__()
        return self.count

    def count(self) -> int:
        events = [event for event in self.profile.key_averages() if event.key.startswith("gloo:")]
        return sum(event.count for event in events if not self.names or event.key in self.names)

    def __exit__(self, *error: Any) -> None:
        self.profile.__exit__(*error)


def passes_exchange_once(job: Callable[..., Job]) -> list[int]:
    run = job()
    model = run.wrap(mlp())
    optimizer = run.optimizer(model, passes=3)
    run.start()
    counts = []
    for x in run.batches(2):
        with counting() as count:
            for _ in range(3):
                run.backward((model(x) ** 2).mean())
            run.step(optimizer)
        counts.append(count())
    run.parallel.close()
    return counts


def batchnorm(job: Callable[..., Job]) -> list[bool]:
    """Trains as hand-written DDP does, its running statistics too; they are the chief's where it is evaluated."""
    run = job()
    model = run.wrap(s.Normed())
    own = DistributedDataParallel(s.Normed())
    optimizer, other = run.optimizer(model), torch.optim.SGD(own.parameters(), lr=0.1)
    run.start()
    for x in run.batches(3):
        run.backward((model(x) ** 2).mean())
        run.step(optimizer)
        (own(x) ** 2).mean().backward()
        other.step()
        other.zero_grad()
    apart = gathered(model.layers[1].running_mean)
    with run.parallel.evaluating():
        together = gathered(model.layers[1].running_mean)
    chiefs = gathered(own.module.layers[1].running_mean)
    mine, theirs = list(model.parameters()), list(own.parameters())
    run.parallel.close()
    return [
        all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)),
        torch.equal(apart[0], apart[1]),
        torch.equal(together[0], together[1]) and torch.equal(together[0], chiefs[0]),
    ]


def gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    of_all = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, tensor.clone())
    return of_all


class Counter(nn.Module):
    """A buffer that decides what is learned: each rank would count its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1).double()
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            # Another tensor in its place, as modules do.
            self.seen = self.seen + x.sum()
        return self.layer(x) + self.seen


def buffers(job: Callable[..., Job]) -> list[list[bool]]:
    """Whether both ranks have the same buffer in each batch: sent before each group of batches, or not at all."""
    found = []
    for options, accumulation in ((None, 1), (None, 2), (DDPOptions(broadcast_buffers=False), 1)):
        run = job(options)
        run.accumulation = accumulation
        model = run.wrap(Counter())
        run.start()
        same = []
        for x in run.batches(4):
            same.append(torch.equal(*gathered(model.seen)))
            run.backward(model(x).mean())
        run.parallel.close()
        found.append(same)
    return found


def two_passes_of_batchnorm(job: Callable[..., Job]) -> bool:
    """Two forward passes before one backward pass, which hand-written DDP refuses where it sends buffers."""
    run = job()
    model = run.wrap(s.Normed())
    run.start()
    for x in run.batches(2):
        run.backward((model(x) ** 2).mean() + (model(x * 2) ** 2).mean())
    same = torch.equal(*gathered(model.layers[0].weight.grad))
    run.parallel.close()
    return same


def evaluates_alone(job: Callable[..., Job]) -> list[int]:
    """Operations among ranks while rank 0 alone calls a model in an evaluation, gradients enabled."""
    run = job()
    model = run.wrap(s.Normed())
    run.start()
    with run.parallel.evaluating(), counting() as count:
        if run.rank == 0:
            model(records(0)).sum().backward()
    for parameter in model.parameters():
        parameter.grad = None
    for x in run.batches(1):
        run.backward(model(x).mean())
    same = torch.equal(*gathered(model.layers[0].weight.grad))
    run.parallel.close()
    return [count(), int(same)]


def one_rank_looks_ahead(job: Callable[..., Job]) -> bool:
    """Rank 0 calls the model once more before a batch that exchanges nothing."""
    run = job()
    run.accumulation = 2
    model = run.wrap(mlp())
    optimizer = run.optimizer(model)
    run.start()
    for x in run.batches(4):
        run.backward((model(x) ** 2).mean())
        run.step(optimizer)
        if run.rank == 0:
            model(x)
    same = torch.equal(*gathered(model[0].weight))
    run.parallel.close()
    return same


def keeps_gradients(job: Callable[..., Job]) -> bool:
    """Gradients that a checkpoint brought count as this rank's part of the group."""
    model, run = mlp(), job()
    run.accumulation = 2
    gradients = [torch.full_like(p, float(run.rank)) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    run.wrap(model)
    run.start()
    run.batches_trained = 1
    for _ in run.batches(1):
        run.backward((model(records(0)) ** 2).mean())
    found = model[0].bias.grad.clone()
    run.parallel.close()
    other = mlp()
    (other(records(0)) ** 2).mean().backward()
    return torch.allclose(found, other[0].bias.grad + (run.size - 1) / 2)


def errors(job: Callable[..., Job]) -> dict[str, str]:
    return {name: error_of(lambda call=call: call(job)) for name, call in ERRORS.items()}


def _shared_parameters(job: Callable[..., Job]) -> None:
    run, model = job(), s.TwoHeads()
    run.wrap(model)
    run.wrap(nn.Sequential(model.body))
    run.start()


def _lazy(job: Callable[..., Job]) -> None:
    job().wrap(nn.LazyLinear(2))


def _scripted(job: Callable[..., Job]) -> None:
    with warnings.catch_warnings():
        # torch's own, that it is deprecated
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(2, 2))
    job().wrap(scripted)


def _sync_batchnorm(job: Callable[..., Job]) -> None:
    job(DDPOptions(sync_batchnorm=True))


def _unused(job: Callable[..., Job]) -> None:
    run = job()
    model = run.wrap(s.TwoHeads())
    optimizer = run.optimizer(model)
    run.start()
    for x in run.batches(1):
        run.backward(model(x, 0).mean())
        run.step(optimizer)


def _unused_seen_in_the_next_call(job: Callable[..., Job]) -> None:
    run = job()
    model = run.wrap(s.TwoHeads())
    run.start()
    for x in run.batches(2):
        run.backward(model(x, 0).mean())


def _two_partial_losses(job: Callable[..., Job]) -> None:
    run = job()
    model = run.wrap(s.TwoHeads())
    run.start()
    for x in run.batches(1):
        hidden = model.encode(x)
        run.backward(model.heads[0](hidden).mean(), retain_graph=True)
        run.backward(model.heads[1](hidden).mean())


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


def _too_few_passes(job: Callable[..., Job]) -> None:
    run = job()
    model = run.wrap(mlp())
    optimizer = run.optimizer(model, passes=2)
    run.start()
    for x in run.batches(1):
        run.backward(model(x).mean())
        run.step(optimizer)


def _past_backward(job: Callable[..., Job]) -> None:
    run = job()
    model = run.wrap(mlp())
    optimizer = run.optimizer(model)
    run.start()
    for x in run.batches(1):
        run.backward(model(x).mean())
        model.forward(x).mean().backward()
        run.step(optimizer)


def _part_past_backward(job: Callable[..., Job]) -> None:
    run = job()
    model = run.wrap(mlp())
    optimizer = run.optimizer(model)
    run.start()
    for x in run.batches(1):
        run.backward(model(x).mean())
        (model[4](torch.ones(1, 5, dtype=x.dtype)) * (1 + run.rank)).sum().backward()
        run.step(optimizer)


def _static_past_forward(job: Callable[..., Job]) -> None:
    run = job(DDPOptions(static_graph=True))
    model = run.wrap(mlp())
    optimizer = run.optimizer(model)
    run.start()
    for x in run.batches(2):
        run.backward(model(x).mean())
        run.backward(model.forward(x).mean())
        run.step(optimizer)


def _unfrozen_in_a_batch(job: Callable[..., Job]) -> None:
    model, run = mlp(), job()
    model[0].requires_grad_(False)
    run.wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.parallel.add_optimizer(optimizer, 1)
    run.start()
    for x in run.batches(1):
        model[0].requires_grad_(True)
        run.backward(model(x).mean())
        run.step(optimizer)


def _different_models(job: Callable[..., Job]) -> None:
    run = job()
    run.wrap(mlp(out=1 + run.rank))
    run.start()


def _different_numbers(job: Callable[..., Job]) -> None:
    run = job()
    for seed in range(1 + run.rank):
        run.wrap(mlp(seed))
    run.start()


def _frozen_on_one(job: Callable[..., Job]) -> None:
    run, model = job(), mlp()
    model[2].requires_grad_(run.rank == 0)
    run.wrap(model)
    run.start()


ERRORS: dict[str, Callable[[Callable[..., Job]], None]] = {
    "shared": _shared_parameters,
    "lazy": _lazy,
    "scripted": _scripted,
    "sync_batchnorm": _sync_batchnorm,
    "unused": _unused,
    "unused_next": _unused_seen_in_the_next_call,
    "two_partial_losses": _two_partial_losses,
    "never_exchanged": _never_exchanged,
    "too_few_passes": _too_few_passes,
    "past_backward": _past_backward,
    "part_past_backward": _part_past_backward,
    "static": _static_past_forward,
    "unfrozen": _unfrozen_in_a_batch,
    "different": _different_models,
    "numbers": _different_numbers,
    "frozen_on_one": _frozen_on_one,
}
CHECKS: list[Callable[[Callable[..., Job]], Any]] = [
    stays_the_users,
    copies_are_free,
    collectives,
    passes_exchange_once,
    batchnorm,
    buffers,
    two_passes_of_batchnorm,
    evaluates_alone,
    one_rank_looks_ahead,
    keeps_gradients,
    errors,
]


def train_in_pieces(*ways: tuple[int, ...]) -> list[list[bytes]]:
    """Train so many batches under each of several DDP objects in turn; once for each way to cut the training."""
    with DistributedContext.from_torch_distributed() as distributed:
        return [_trained(pieces, distributed) for pieces in ways]


def _trained(pieces: tuple[int, ...], distributed: DistributedContext) -> list[bytes]:
    model, state, done = None, None, 0
    for batches in pieces:
        run = shared(("ddp", DDPOptions(bucket_cap_mb=0.003)), distributed)
        fresh = Wide()
        if model is not None:
            fresh.load_state_dict(model.state_dict())
        model = run.wrap(fresh)
        optimizer = run.optimizer(model, lr=0.1, momentum=0.9)
        if state is not None:
            optimizer.load_state_dict(state)
        run.start()
        for _ in range(batches):
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(done * 100 + distributed.rank))
            for _ in run.batches(1):
                run.backward((model(x) ** 2).mean())
                run.step(optimizer)
            done += 1
        state = optimizer.state_dict()
        run.parallel.close()
    return [weight.numpy().tobytes() for weight in weights(model)]


class Wide(nn.Module):
    """Uses its layers in another order than it has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in (3, 0, 5, 1, 4, 2):
            x = torch.tanh(self.layers[number](x))
        return x
