"""Small trainings that must give the same weights on any number of ranks; each returns what it has trained to."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from tests.parallel.job import Job, mlp, records, weights

Scenario = Callable[[Job], list[torch.Tensor]]


def plain(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model, lr=0.1, momentum=0.9)
    job.start()
    for x in job.batches(4):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def weights_of_rank_0(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp(seed=job.rank))
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(1):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def adamw(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model, kind=torch.optim.AdamW, lr=0.01)
    job.start()
    for x in job.batches(4):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def accumulated(job: Job) -> list[torch.Tensor]:
    """Three batches a step; see `one_big_batch`."""
    job.accumulation = 3
    return plain_over(job, records, batches=6)


def one_big_batch(job: Job) -> list[torch.Tensor]:
    return plain_over(job, lambda number: torch.cat([records(3 * number + k) for k in range(3)]), batches=2)


def plain_over(job: Job, of: Callable[[int], torch.Tensor], batches: int) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model, lr=0.1, momentum=0.9)
    job.start()
    for x in job.batches(batches, of):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def clipped(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    norms = []

    def clip(parameters: Any) -> None:
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.01)
        norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer, clip=clip)
    return [*weights(model), torch.stack(norms)]


def frozen(job: Job) -> list[torch.Tensor]:
    model = mlp()
    model[2].requires_grad_(False)
    model = job.wrap(model)
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def frozen_teacher(job: Job) -> list[torch.Tensor]:
    teacher = job.wrap(mlp(seed=5 + job.rank).requires_grad_(False))
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward(((model(x) - teacher(x)) ** 2).mean())
        job.step(optimizer)
    return weights(model, teacher)


def unfrozen_later(job: Job) -> list[torch.Tensor]:
    model = mlp()
    model[0].requires_grad_(False)
    model = job.wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    job.parallel.add_optimizer(optimizer, 1)
    job.start()
    for number in range(4):
        model[0].requires_grad_(number >= 2)
        model[4].requires_grad_(number != 3)
        for x in job.batches(1):
            job.backward((model(x) ** 2).mean())
            job.step(optimizer)
    return weights(model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def tied(job: Job) -> list[torch.Tensor]:
    model = job.wrap(Tied())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    assert model.first.weight is model.second.weight
    return weights(model)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Linear(4, 6)
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])
        self.double()

    def forward(self, x: torch.Tensor, head: int) -> torch.Tensor:
        return self.heads[head](torch.tanh(self.body(x)))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.body(x))


def unused(job: Job) -> list[torch.Tensor]:
    model = job.wrap(TwoHeads())
    optimizer = job.optimizer(model, lr=0.1, momentum=0.9)
    job.start()
    for number in range(4):
        for x in job.batches(1):
            job.backward((model(x, number % 2) ** 2).mean())
            job.step(optimizer)
    return weights(model)


def unused_frozen_and_back(job: Job) -> list[torch.Tensor]:
    """One module with two parts, each trained while the other is frozen, as a GAN in one module is."""
    model = job.wrap(TwoHeads())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        for head in (0, 1):
            model.heads[head].requires_grad_(True)
            model.heads[1 - head].requires_grad_(False)
            job.backward((model(x, head) ** 2).mean())
            job.step(optimizer)
    return weights(model)


def gan(job: Job) -> list[torch.Tensor]:
    return _gan(job, freezes=False)


def gan_that_freezes(job: Job) -> list[torch.Tensor]:
    return _gan(job, freezes=True)


def gan_accumulated(job: Job) -> list[torch.Tensor]:
    job.accumulation = 2
    return _gan(job, freezes=True)


def _gan(job: Job, freezes: bool) -> list[torch.Tensor]:
    maker, judge = job.wrap(mlp(1, out=4)), job.wrap(mlp(2))
    make, judging = job.optimizer(maker), job.optimizer(judge, passes=2)
    job.start()
    for x in job.batches(4):
        if freezes:
            judge.requires_grad_(True)
        elif job.accumulation == 1:
            judging.zero_grad()
        noise = x.flip(1)
        made = maker(noise)
        job.backward(((judge(x) - 1) ** 2).mean())
        job.backward((judge(made.detach()) ** 2).mean())
        job.step(judging)
        if freezes:
            judge.requires_grad_(False)
        job.backward(((judge(made) - 1) ** 2).mean())
        job.step(make)
    return weights(maker, judge)


def several_passes(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model, passes=2)
    job.start()
    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.backward((model(x * 2) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def passes_after_forwards(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model, passes=2)
    job.start()
    for x in job.batches(3):
        first, second = model(x), model(x * 2)
        job.backward((first**2).mean())
        job.backward((second**2).mean())
        job.step(optimizer)
    return weights(model)


def two_losses_apart(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        first, second = model(x), model(x * 2)
        job.backward((first**2).mean())
        job.backward((second**2).mean())
        out = model(x)
        job.backward(out.mean(), retain_graph=True)
        job.backward((out**2).mean())
        job.step(optimizer)
    return weights(model)


def no_grad_in_between(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        with torch.no_grad():
            target = model(x * 0.5)
        out = model(x)
        with torch.inference_mode():
            model(x)
        job.backward(((out - target) ** 2).mean())
        with torch.no_grad():
            model(x)
        job.step(optimizer)
        with torch.no_grad():
            model(x)
    return weights(model)


def forward_without_backward(job: Job) -> list[torch.Tensor]:
    job.accumulation = 2
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(4):
        model(x)
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
        model(x)
    return weights(model)


def penalty(job: Job) -> list[torch.Tensor]:
    """A gradient penalty: a gradient of a gradient."""
    # torch's, about the memory layout of gradients, and only about speed.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        x = x.clone().requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        job.backward((slope**2).mean() + (out**2).mean())
        job.step(optimizer)
    return weights(model)


def weights_in_the_loss(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        decay = torch.stack([(parameter**2).sum() for parameter in model.parameters()]).sum()
        job.backward((model(x) ** 2).mean() + 0.1 * decay)
        job.step(optimizer)
    return weights(model)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.register_buffer("scale", torch.tensor([2.0], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * self.scale


def fine_tuned_in_eval(job: Job) -> list[torch.Tensor]:
    model = job.wrap(Normed())
    model.eval()
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


class Blocks(nn.Module):
    """Parts of one class, as of a transformer, of sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.first = nn.Linear(4, 5)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.last = nn.Linear(5, 1)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(5)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(self.norm(x))


def blocks(job: Job) -> list[torch.Tensor]:
    """Accumulation, clipping, a part called after the model, a forward pass without gradients before the step."""
    job.accumulation = 2
    model = job.wrap(Blocks())
    optimizer = job.optimizer(model, kind=torch.optim.AdamW, lr=0.01)
    job.start()
    norms = []

    def clip(parameters: Any) -> None:
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    for x in job.batches(6):
        job.backward((model(x) ** 2).mean())
        job.backward(model.blocks[1](torch.ones(2, 5, dtype=x.dtype)).sum() * 0.1)
        with torch.no_grad():
            model(x)
        job.step(optimizer, clip=clip)
        with job.parallel.evaluating(), torch.no_grad():
            model(x)
    return [*weights(model), torch.stack(norms)]


class Nested(nn.Module):
    """Calls itself in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(out=4)

    def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
        return self(self.layers(x), depth - 1) if depth else x


def calls_itself(job: Job) -> list[torch.Tensor]:
    model = job.wrap(Nested())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(2):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def activations_checkpointed(job: Job) -> list[torch.Tensor]:
    """The forward pass that is computed again comes when some parameters have their gradients already."""
    model = job.wrap(TwoHeads())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        heads = [torch.utils.checkpoint.checkpoint(model, x, head, use_reentrant=False) for head in (0, 1)]
        job.backward((heads[0] ** 2).mean() + (heads[1] ** 2).mean())
        job.step(optimizer)
    return weights(model)


def part_called(job: Job) -> list[torch.Tensor]:
    """Parts and a method of the model, past its forward."""
    model = job.wrap(TwoHeads())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward((model.heads[0](model.encode(x)) ** 2).mean() + (model.heads[1](model.encode(x)) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def part_called_after(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.backward((model.forward(x * 2) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def halves_trained_apart(job: Job) -> list[torch.Tensor]:
    """Two losses that together reach each parameter once, as an actor's and a critic's."""
    model = job.wrap(nn.ModuleDict({"actor": mlp(1), "critic": mlp(2)}))
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        actor, critic = model["actor"](x), model["critic"](x)
        job.backward((actor**2).mean())
        job.backward((critic**2).mean())
        job.step(optimizer)
    return weights(model)


def sparse_embedding(job: Job) -> list[torch.Tensor]:
    torch.manual_seed(8)
    model = job.wrap(nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 1)).double())
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3, lambda number: (records(number, width=2).abs() * 3).long()):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)


def lbfgs(job: Job) -> list[torch.Tensor]:
    model = job.wrap(mlp())
    optimizer = job.optimizer(model, kind=torch.optim.LBFGS, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    job.start()
    for x in job.batches(2):

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(x) ** 2).mean()
            job.backward(loss)
            return job.parallel.average(loss)

        optimizer.step(closure)
        optimizer.zero_grad()
    return weights(model)


def bf16(job: Job) -> list[torch.Tensor]:
    model = job.wrap_precise(mlp().float(), "bf16")
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        out = model(x.float())
        assert out.dtype == torch.float32
        job.backward((out**2).mean())
        job.step(optimizer)
    return weights(model)


def fp16(job: Job) -> list[torch.Tensor]:
    """The second batch overflows on the last rank only; all skip it."""
    model = job.wrap_precise(mlp().float(), "fp16")
    optimizer = job.optimizer(model)
    job.start()
    scales = []
    for number in range(3):
        for x in job.batches(1):
            loss = (model(x.float()) ** 2).mean()
            if number == 1 and job.rank == job.size - 1:
                loss = loss * torch.inf
            job.backward(loss)
            job.step(optimizer)
            assert job.scaler is not None
            scales.append(job.scaler.get_scale())
    return [*weights(model), torch.tensor(scales)]


def compiled(job: Job) -> list[torch.Tensor]:
    torch._dynamo.reset()
    model = job.wrap(torch.compile(mlp(), backend="aot_eager"))
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model._orig_mod)


def compiled_in_place(job: Job) -> list[torch.Tensor]:
    torch._dynamo.reset()
    model = mlp()
    model.compile(backend="aot_eager")
    model = job.wrap(model)
    optimizer = job.optimizer(model)
    job.start()
    for x in job.batches(3):
        job.backward((model(x) ** 2).mean())
        job.step(optimizer)
    return weights(model)
