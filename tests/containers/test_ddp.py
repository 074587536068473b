"""A context that several ranks share."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel

from tests.distributed.ranks import run_ranks
from trainlab import ContextObject, DDPOptions, Recorder
from trainlab.distributed import get_rank, init_distributed
from trainlab.errors import InvalidStateError
from trainlab.parallel import is_replicated

DATA = torch.linspace(-1, 1, 48).reshape(16, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.note = "mine"

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def make(seed: int) -> ContextObject:
    torch.manual_seed(seed)
    ctx = ContextObject(model=Net())
    ctx.optimizer = torch.optim.SGD(ctx.model.parameters(), lr=0.5)
    return ctx


def train(ctx: ContextObject, data: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        ctx.optimizer.zero_grad()
        ctx.model(data).square().mean().backward()
        ctx.optimizer.step()


def trained_together(folder: str) -> dict[str, Any]:
    """Each rank trains with its half of the data, from other weights at first."""
    distributed = init_distributed()
    ctx = make(distributed.rank)
    ctx.ema = AveragedModel(ctx.model)
    ctx.recorder = Recorder(f"{folder}/{distributed.rank}")
    model = ctx.model
    # The BatchNorm takes no part in the forward pass.
    for parameter in model.norm.parameters():
        parameter.requires_grad_(False)
    assert ctx.ddp() is ctx and ctx.model is model and ctx.model.note == "mine"
    assert is_replicated(model) and not is_replicated(ctx.ema)  # which would cost the memory of its gradients
    ema = ctx.ema.module.head.weight.detach().clone()
    train(ctx, DATA[distributed.rank :: 2], 3)
    ctx.recorder.scalar("loss", 1.0)
    ctx.recorder.close()
    with torch.no_grad():
        if distributed.rank == 0:  # alone: an evaluation waits for nobody
            ctx.model(DATA)
    ctx.cpu()  # and is shared again
    train(ctx, DATA[distributed.rank :: 2], 1)
    return {"keys": list(ctx.state_dict()["model"]), "weights": ctx.model.state_dict(), "ema": ema}


@pytest.mark.slow
def test_ranks_train_as_one_process_does(tmp_path: Any) -> None:
    """Plain backward and step on two ranks give the weights of one process with all the data; keys are the user's."""
    first, second = run_ranks(trained_together, 2, str(tmp_path))
    alone = make(0)
    for parameter in alone.model.norm.parameters():
        parameter.requires_grad_(False)
    ema = alone.model.head.weight.detach().clone()
    train(alone, DATA, 4)
    assert first["keys"] == list(alone.model.state_dict())
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], tensor)
    assert torch.equal(first["ema"], second["ema"]) and torch.equal(first["ema"], ema)
    assert (tmp_path / "0" / "scalars.csv").exists() and not (tmp_path / "1").exists()


def gan() -> list[torch.Tensor]:
    """Two modules, two optimizers, several forward and backward passes before a step, one of them frozen meanwhile."""
    rank = init_distributed().rank
    torch.manual_seed(rank)
    ctx = ContextObject(nets={"made": nn.Linear(2, 3), "judge": nn.Linear(3, 1)})
    made, judge = ctx.nets["made"], ctx.nets["judge"]
    ctx.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (made, judge)]
    ctx.ddp(DDPOptions(bucket_cap_mb=1))
    noise, real = torch.full((2, 2), float(rank)), torch.full((2, 3), 1.0 + rank)
    for _ in range(2):
        ctx.optimizers[1].zero_grad()
        (judge(real).mean() - judge(made(noise).detach()).mean()).backward()
        judge(real).square().mean().backward()  # a second one, before the step
        ctx.optimizers[1].step()
        judge.requires_grad_(False)
        ctx.optimizers[0].zero_grad()
        (-judge(made(noise)).mean()).backward()
        ctx.optimizers[0].step()
        judge.requires_grad_(True)
    return [parameter.detach() for net in (made, judge) for parameter in net.parameters()]


def test_a_gan_of_ones_own_trains_on_several_ranks() -> None:
    """Several models, passes and frozen parts in one loop keep the ranks' weights the same."""
    first, second = run_ranks(gan, 2)
    assert all(map(torch.equal, first, second))


def changed_on_the_way() -> dict[str, torch.Tensor]:
    """Parameters that are trained later, and statistics that went astray on one rank."""
    rank = init_distributed().rank
    torch.manual_seed(rank)
    ctx = ContextObject(model=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    ctx.model[0].requires_grad_(False)
    ctx.optimizer = torch.optim.SGD(ctx.model.parameters(), lr=0.1)
    ctx.ddp()
    train(ctx, DATA[rank::2], 1)
    ctx.model[0].requires_grad_(True)
    if rank:
        ctx.model[1].running_mean.fill_(1e6)
    train(ctx, DATA[rank::2], 2)
    state: dict[str, torch.Tensor] = ctx.model.state_dict()
    return state


def test_what_changes_on_the_way_stays_the_same_on_all_ranks() -> None:
    """Parameters that are unfrozen between two steps are exchanged, and BatchNorm's statistics are the first rank's."""
    first, second = run_ranks(changed_on_the_way, 2)
    for name in first:
        if "running" not in name:
            assert torch.equal(first[name], second[name]), name
    assert second["1.running_mean"].abs().max() < 10


def misused() -> dict[str, str]:
    """What goes wrong, and what is said."""
    init_distributed()
    told = {}
    ctx = make(0)
    for parameter in ctx.model.norm.parameters():
        parameter.requires_grad_(False)
    ctx.ddp()
    ctx.model.features(DATA).sum().backward()
    told["a part called"] = _error(ctx.optimizer.step)
    ctx.optimizer.zero_grad()
    ctx.free = nn.Parameter(torch.ones(1))
    ctx.other = torch.optim.SGD([ctx.free], lr=1.0)
    told["not shared"] = _error(ctx.other.step)
    unused = make(0)
    unused.ddp()

    def two_passes() -> None:
        for _ in range(2):
            unused.model(DATA).sum().backward()

    told["unused"] = _error(two_passes)
    finding = make(0)
    finding.ddp(DDPOptions(find_unused_parameters=True))
    train(finding, DATA[get_rank() :: 2], 2)
    told["found"] = ""
    return told


def _error(call: Any) -> str:
    try:
        call()
    except InvalidStateError as error:
        return str(error)
    return "nothing"


def test_weights_cannot_grow_apart_silently() -> None:
    """Gradients that were not exchanged are an error at the step, on each rank, which says what to do."""
    for told in run_ranks(misused, 2):
        assert "body.bias, body.weight" in told["a part called"] or "body.weight" in told["a part called"]
        assert "Call the model itself" in told["a part called"]
        assert "parameters that the ranks do not share" in told["not shared"]
        assert "ddp(DDPOptions(find_unused_parameters=True))" in told["unused"] and "norm.weight" in told["unused"]


class Wrapper:
    """An object of a user's own that has an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def kept_anywhere() -> dict[str, str]:
    """Only parts of a model are called, and an optimizer of it is kept wherever a loop may keep it."""
    init_distributed()
    told = {}
    for place in ("nested", "assigned", "wrapped", "never", "closure"):
        ctx = make(0)
        for parameter in ctx.model.norm.parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in ctx.model.parameters() if p.requires_grad], lr=0.1)
        del ctx.optimizer
        ctx.nested = {"list": []}
        if place == "wrapped":
            ctx.wrapper = Wrapper(optimizer)
        ctx.ddp()
        if place == "nested":
            ctx.nested["list"].append(optimizer)
        if place == "assigned":
            ctx.assigned = {"a": optimizer}

        def closure(ctx: ContextObject = ctx) -> torch.Tensor:
            loss: torch.Tensor = ctx.model.features(DATA).sum()
            loss.backward()
            return loss

        if place == "closure":
            told[place] = _error(lambda step=optimizer.step, closure=closure: step(closure))
        else:
            closure()
            told[place] = _error(optimizer.step)
    ctx = make(0)
    ctx.ddp()
    ctx.alone = nn.Linear(1, 1)
    ctx.optimizers = [torch.optim.SGD(ctx.alone.parameters(), lr=0.1)]
    ctx.alone(torch.ones(1, 1)).sum().backward()
    told["registered later"] = _error(ctx.optimizers[0].step)
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    told["a stranger's"] = _error(stranger.step)
    return told


def test_no_optimizer_of_a_shared_model_escapes() -> None:
    """Wherever an optimizer is kept, gradients of one rank alone are an error at its step; a stranger's are not."""
    for told in run_ranks(kept_anywhere, 2):
        assert told.pop("a stranger's") == "nothing"
        assert "parameters that the ranks do not share" in told.pop("registered later")
        assert len(told) == 5 and all("Call the model itself" in one for one in told.values()), told


def frozen_until_later() -> str:
    """A frozen module that nobody trains when `ddp` is called, and that is trained later."""
    init_distributed()
    ctx = make(0)
    ctx.late = nn.Linear(1, 3).requires_grad_(False)
    ctx.optimizer = torch.optim.SGD([*ctx.model.parameters(), *ctx.late.parameters()], lr=0.1)
    ctx.ddp(DDPOptions(find_unused_parameters=True))
    for is_trained in (False, True):
        ctx.late.requires_grad_(is_trained)
        ctx.model(ctx.late(torch.ones(16, 1))).mean().backward()
        told = _error(ctx.optimizer.step)
        assert is_trained or told == "nothing"
    return told


def test_a_module_that_is_trained_later_does_not_grow_apart() -> None:
    """What was frozen as a whole when `ddp` was called, and is trained since, is an error at the step."""
    assert all("parameters that the ranks do not share" in told for told in run_ranks(frozen_until_later, 2))


def shared_in_several_ways() -> list[torch.Tensor]:
    """A module that the user gave to DDP, one of an inner container's, one that is compiled; one optimizer for all."""
    rank = init_distributed().rank
    torch.manual_seed(rank)
    ctx = ContextObject(inner={"b": nn.Linear(3, 3)}, plain=nn.Linear(3, 3))
    own = nn.Linear(3, 3)
    ctx.own = nn.parallel.DistributedDataParallel(own)
    ctx.compiled = torch.compile(ctx.plain, backend="eager")
    ctx.inner.ddp()
    parameters = [*own.parameters(), *ctx.inner["b"].parameters(), *ctx.plain.parameters()]
    ctx.optimizer = torch.optim.SGD(parameters, lr=0.1)
    ctx.ddp()
    for _ in range(2):
        ctx.optimizer.zero_grad()
        ctx.inner["b"](ctx.own(ctx.compiled(DATA[rank::2]))).square().mean().backward()
        ctx.optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_what_is_shared_already_is_left_as_it_is() -> None:
    """A module in the user's own DDP, in a container that was shared, or with its compiled one trains with the rest."""
    first, second = run_ranks(shared_in_several_ways, 2)
    assert all(map(torch.equal, first, second))


def moved() -> list[int]:
    """The number of hooks on all optimizers before a context is shared, and after it was shared and moved."""
    init_distributed()
    counts = [len(_global_optimizer_pre_hooks)]
    ctx = make(0)
    ctx.ddp()
    for _ in range(3):
        ctx.cpu()
    ctx.ddp()
    return [*counts, len(_global_optimizer_pre_hooks)]


def test_sharing_anew_watches_optimizers_once() -> None:
    """A context that is moved or shared again does not slow each step down a little more."""
    assert run_ranks(moved, 2) == [[0, 1]] * 2


def test_ddp_without_a_process_group_says_what_to_do() -> None:
    """A loop that nobody started as several ranks is told how to start them."""
    with pytest.raises(InvalidStateError, match="init_distributed"):
        make(0).ddp()
