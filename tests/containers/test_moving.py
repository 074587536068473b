"""Moving a context; without a GPU, to the "meta" device, for which torch makes new parameters."""

from collections import deque
from typing import Any

import pytest
import torch
from torch import nn

from trainlab import ContextObject
from trainlab.errors import InvalidValueError

# "meta" is always there, and a harder case than a GPU: modules get new parameters.
DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]


class Movable:
    """An object with a `to` that moves it in place and returns nothing."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self.device = device


def make() -> ContextObject:
    ctx = ContextObject()
    ctx.model = nn.Linear(2, 2)
    ctx.latent = nn.Parameter(torch.ones(2))
    ctx.adam = torch.optim.Adam([*ctx.model.parameters(), ctx.latent], lr=0.1)
    ctx.lbfgs = torch.optim.LBFGS(nn.ParameterList([nn.Parameter(torch.ones(2))]).parameters())
    ctx.scheduler = torch.optim.lr_scheduler.StepLR(ctx.adam, 2)
    ctx.parts = {"deep": [{"tensor": torch.ones(2)}, (torch.ones(1), nn.Linear(1, 1))]}
    ctx.queue = deque([torch.ones(1)], maxlen=4)
    ctx.alias = ctx.parts["deep"][0]["tensor"]
    ctx.text, ctx.movable = "text", Movable()
    loss = (ctx.model(torch.ones(1, 2)) * ctx.latent).sum()
    loss.backward()
    ctx.adam.step()
    return ctx


@pytest.mark.parametrize("device", DEVICES)
def test_everything_moves_and_optimizers_follow(device: str) -> None:
    """Parameters, their gradients, an optimizer's state and all tensors are together wherever the context is."""
    ctx = make()
    assert ctx.to(device) is ctx
    trained = [*ctx.model.parameters(), ctx.latent]
    assert all(parameter.device.type == device for parameter in trained)
    assert [id(p) for group in ctx.adam.param_groups for p in group["params"]] == list(map(id, trained))
    assert {id(parameter) for parameter in ctx.adam.state} == set(map(id, trained))
    for parameter, state in ctx.adam.state.items():
        assert parameter.grad is not None and parameter.grad.device.type == device
        assert state["exp_avg"].device.type == device and state["step"].device.type == "cpu"
    tensors = [ctx.parts["deep"][0]["tensor"], ctx.parts["deep"][1][0], ctx.queue[0], ctx.parts["deep"][1][1].weight]
    assert all(tensor.device.type == device for tensor in tensors)
    assert ctx.alias is ctx.parts["deep"][0]["tensor"]
    assert type(ctx.queue) is deque and ctx.queue.maxlen == 4
    assert ctx.scheduler.optimizer is ctx.adam
    assert (ctx.text, ctx.movable.device.type) == ("text", device)


def test_a_state_of_steps_on_the_device_follows_where_an_optimizer_wants_it() -> None:
    """A capturable optimizer has its count of steps where its parameters are; back on the CPU all is there."""
    layer = nn.Linear(1, 1)
    ctx = ContextObject(layer=layer, optimizer=torch.optim.Adam(layer.parameters(), capturable=True))
    for parameter in layer.parameters():
        ctx.optimizer.state[parameter] = {"step": torch.tensor(1.0), "nested": {"list": [torch.ones(1)]}}
    ctx.to("meta")
    states: list[Any] = list(ctx.optimizer.state.values())
    assert all(state["step"].is_meta and state["nested"]["list"][0].is_meta for state in states)


def test_cpu_changes_nothing_of_what_is_there() -> None:
    """`cpu()` on the CPU leaves every object the one it was, and returns the context."""
    ctx = make()
    before = ctx.model.weight, ctx.latent, ctx.alias, ctx.parts["deep"][1][0]
    assert ctx.cpu() is ctx
    assert all(
        one is other
        for one, other in zip(before, (ctx.model.weight, ctx.latent, ctx.alias, ctx.parts["deep"][1][0]), strict=True)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_says_what_there_is() -> None:
    """Whoever asks for a GPU on a machine without one is told what it has."""
    with pytest.raises(InvalidValueError, match="no cuda device.*'cpu'"):
        make().cuda()
    with pytest.raises(InvalidValueError, match=r"cuda\(\) takes a GPU"):
        make().cuda("cpu")


@pytest.mark.parametrize("device", ["nope", "cuda:x", "cuda:999", torch.float16, None, 1.5])
def test_what_is_no_device_is_an_error_and_moves_nothing(device: Any) -> None:
    """A wrong name, a dtype or a GPU that is not there is an error of trainlab's, and the context is as it was."""
    ctx = make()
    for move in (ctx.to, *([ctx.cuda] if device is not None else [])):
        with pytest.raises(InvalidValueError, match="Received"):
            move(device)
    assert ctx.model.weight.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_goes_on_after_a_move_there_and_back() -> None:
    """A loop that moves to the GPU and back in the middle goes on training the same parameters."""
    ctx = make()
    weight = ctx.model.weight
    for device in ("cuda", "cpu", "cuda"):
        ctx.to(device)
        before = ctx.model.weight.detach().clone()
        ctx.adam.zero_grad()
        (ctx.model(torch.ones(1, 2, device=device)) * ctx.latent).sum().backward()
        ctx.adam.step()
        assert ctx.model.weight is weight and not torch.equal(ctx.model.weight, before)
    scaler = ctx.scaler = torch.amp.GradScaler("cuda")
    ctx.cuda(0)
    for _ in range(2):
        ctx.adam.zero_grad()
        scaler.scale((ctx.model(torch.ones(1, 2, device="cuda")) * ctx.latent).sum()).backward()
        scaler.step(ctx.adam)
        scaler.update()
    other = make()
    other.scaler = torch.amp.GradScaler("cuda")
    other.cuda()
    other.load_state_dict(ctx.cpu().state_dict())
    assert other.model.weight.is_cuda and torch.equal(other.model.weight.cpu(), ctx.model.weight)
    assert other.adam.state[other.latent]["exp_avg"].is_cuda
