"""Optimizer states come back bit by bit, or not at all."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

from trainlab.checkpoint import decode, encode
from trainlab.errors import CheckpointMismatchError
from trainlab.optim import describe_lrs, load_optimizer_state, optimizer_state_dict, owned_parameters


class Exotic(optim.Optimizer):
    """State that torch's load_state_dict would change: other dtypes, packed bytes, nested lists, text, a shared key."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "mode": "nested"})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.state["shared"]["calls"] = self.state["shared"].get("calls", 0) + 1
        for p in owned_parameters(self):
            state = self.state[p]
            if not state:
                state["master"] = p.detach().to(torch.float32, copy=True)
                state["packed"] = torch.zeros(p.shape, dtype=torch.int8)
                state["history"] = [[torch.zeros(p.shape, dtype=torch.float64), "old"], (0.5, None)]
                state["note"] = "text"
            state["master"].add_(p.grad.float(), alpha=-1e-3)
            state["packed"].add_(3).remainder_(100)
            state["history"][0][0].add_(1 / 3)
            p.copy_(state["master"] + state["packed"].float() * 1e-3 + state["history"][0][0].float())


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "ASGD": lambda p: optim.ASGD(p, 0.1, t0=3),
    "Adadelta": lambda p: optim.Adadelta(p, 0.1),
    "Adafactor": lambda p: optim.Adafactor(p, 0.1),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1, lr_decay=0.01),
    "Adam": lambda p: optim.Adam(p, 0.1, amsgrad=True),
    "Adam, foreach": lambda p: optim.Adam(p, 0.1, foreach=True),
    "Adam, tensor rate": lambda p: optim.Adam(p, torch.tensor(0.1)),
    "AdamW": lambda p: optim.AdamW(p, 0.1, betas=(0.8, 0.9)),
    "AdamW, fused": lambda p: optim.AdamW(p, 0.1, fused=True),
    "Adamax": lambda p: optim.Adamax(p, 0.1),
    "Exotic": Exotic,
    "LBFGS": lambda p: optim.LBFGS(p, 0.1, max_iter=2, history_size=3),
    "NAdam": lambda p: optim.NAdam(p, 0.1),
    "RAdam": lambda p: optim.RAdam(p, 0.1),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p, 0.01),
    "SGD": lambda p: optim.SGD(p, 0.1),
    "SGD, momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "SGD, fused": lambda p: optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "SparseAdam": lambda p: optim.SparseAdam(p, 0.1),
}
if hasattr(optim, "Muon"):
    OPTIMIZERS["Muon"] = lambda p: optim.Muon(p, 0.1)


class Problem:
    """Two matrices, or a table of vectors for sparse gradients, and an optimizer over them."""

    def __init__(self, make: Callable[[Any], optim.Optimizer], dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = [nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype)) for _ in range(2)]
        self.optimizer = make(self.weights)

    def train(self, steps: range) -> None:
        for step in steps:

            def closure(step: int = step) -> torch.Tensor:
                self.optimizer.zero_grad()
                rows = torch.tensor([step % 3, (step + 1) % 3])
                sparse = isinstance(self.optimizer, optim.SparseAdam)
                taken = [nn.functional.embedding(rows, w, sparse=sparse) for w in self.weights]
                loss = sum(((t.float() - 0.3 * step) ** 2).mean() for t in taken)
                assert isinstance(loss, torch.Tensor)
                loss.backward()
                return loss

            if isinstance(self.optimizer, optim.LBFGS):
                self.optimizer.step(closure)
            else:
                closure()
                self.optimizer.step()

    def save(self) -> tuple[str, dict[str, torch.Tensor]]:
        tree = {"optimizer": optimizer_state_dict(self.optimizer), "weights": [w.detach() for w in self.weights]}
        structure, tensors = encode(tree)
        return json.dumps(structure, allow_nan=False), {name: t.clone() for name, t in tensors.items()}

    def load(self, structure: str, tensors: dict[str, torch.Tensor]) -> None:
        tree = decode(json.loads(structure), tensors)
        for weight, saved in zip(self.weights, tree["weights"], strict=True):
            weight.data.copy_(saved)
        load_optimizer_state(self.optimizer, tree["optimizer"])


def flat(value: Any) -> list[Any]:
    """All leaves of a state with their types, tensors as their bytes."""
    if isinstance(value, torch.Tensor):
        return [
            (value.dtype, value.device, value.shape, value.detach().contiguous().view(-1).view(torch.uint8).tolist())
        ]
    if isinstance(value, dict):
        return [(key, flat(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [(type(value), [flat(item) for item in value])]
    return [(type(value), value)]


def test_every_optimizer_of_torch_is_tried() -> None:
    """The optimizers resumed below are all that this version of torch has."""
    every = {
        n
        for n in optim.__all__
        if isinstance(getattr(optim, n), type) and issubclass(getattr(optim, n), optim.Optimizer)
    }
    assert every - {"Optimizer"} <= {name.partition(",")[0] for name in OPTIMIZERS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_optimizer_goes_on_bit_by_bit(name: str, dtype: torch.dtype) -> None:
    """An optimizer built anew and loaded from data trains exactly as the uninterrupted one, state and dtypes too."""
    whole = Problem(OPTIMIZERS[name], dtype)
    whole.train(range(9))
    for stop in (0, 1, 5):
        first, second = Problem(OPTIMIZERS[name], dtype), Problem(OPTIMIZERS[name], dtype)
        first.train(range(stop))
        saved = first.save()
        second.load(*saved)
        assert flat(optimizer_state_dict(second.optimizer)) == flat(optimizer_state_dict(first.optimizer))
        second.train(range(stop, 9))
        assert all(torch.equal(a, b) for a, b in zip(whole.weights, second.weights, strict=True))
        assert flat(optimizer_state_dict(second.optimizer)) == flat(optimizer_state_dict(whole.optimizer))


@pytest.mark.parametrize("name", ["Adam", "AdamW, fused", "Exotic", "LBFGS", "SGD, momentum"])
def test_loaded_state_shares_nothing(name: str) -> None:
    """Training on after a load leaves the loaded state, and the optimizer it came from, as they were."""
    first, second = Problem(OPTIMIZERS[name]), Problem(OPTIMIZERS[name])
    first.train(range(3))
    state = optimizer_state_dict(first.optimizer)
    before = flat(state)
    load_optimizer_state(second.optimizer, state)
    second.train(range(3, 6))
    assert flat(state) == before


def test_older_state_is_forgotten() -> None:
    """A load replaces the whole state: an optimizer that had stepped is as fresh as the one that was saved."""
    used, fresh = Problem(OPTIMIZERS["Adam"]), Problem(OPTIMIZERS["Adam"])
    used.train(range(2))
    load_optimizer_state(used.optimizer, optimizer_state_dict(fresh.optimizer))
    assert not used.optimizer.state


def test_hooks_of_an_optimizer_have_the_last_word() -> None:
    """What an optimizer's own load hook changes in a state is kept."""
    first, second = Problem(OPTIMIZERS["SGD, momentum"]), Problem(OPTIMIZERS["SGD, momentum"])
    first.train(range(2))

    def forget(optimizer: optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "state": {}}

    second.optimizer.register_load_state_dict_pre_hook(forget)
    load_optimizer_state(second.optimizer, optimizer_state_dict(first.optimizer))
    assert not second.optimizer.state


def _parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(shape)) for shape in shapes]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: optim.Adam(_parameters((2, 3), (4,))), "state of a SGD"),
        (lambda: optim.SGD([{"params": _parameters((2, 3))}, {"params": _parameters((4,))}]), "has 1 .* has 2"),
        (lambda: optim.SGD(_parameters((2, 3))), "group 0 has 2 parameters there and 1 here"),
        (lambda: optim.SGD(_parameters((3, 2), (5,))), r"parameter 0 .*\(2, 3\) there and \(3, 2\) here; parameter 1"),
    ],
)
def test_state_that_does_not_fit_is_refused_whole(make: Callable[[], optim.Optimizer], told: str) -> None:
    """A state of other groups or shapes is refused with all differences named, and nothing is changed."""
    saved = optim.SGD(_parameters((2, 3), (4,)), lr=0.5, momentum=0.9)
    live = make()
    before = flat(live.state_dict())
    with pytest.raises(CheckpointMismatchError, match=told):
        load_optimizer_state(live, optimizer_state_dict(saved))
    assert flat(live.state_dict()) == before


def _broken(state: dict[str, Any], *path: Any, value: Any = ...) -> None:
    for key in path[:-1]:
        state = state[key]
    state.pop(path[-1]) if value is ... else state.__setitem__(path[-1], value)


@pytest.mark.parametrize(
    ("name", "path", "value", "told"),
    [
        ("Adam", ("state", 0, "exp_avg"), ..., "of parameter 0 there is no exp_avg"),
        ("Adam", ("state", 0, "step"), ..., "of parameter 0 there is no step"),
        ("Adam", ("state", 1, "exp_avg"), torch.ones(5), r"exp_avg of parameter 1 is a tensor of shape \(5,\)"),
        ("Adam", ("state", 0, "max_exp_avg_sq"), torch.ones(5), r"max_exp_avg_sq of parameter 0 is a tensor of shape"),
        ("AdamW", ("state", 0, "exp_avg"), "text", "exp_avg of parameter 0 is a str"),
        ("AdamW", ("state", 0, "step"), "text", "step of parameter 0 is a str"),
        ("AdamW", ("state", 0), "text", "state of parameter 0 is a str"),
        ("SGD, momentum", ("state", 0, "momentum_buffer"), torch.ones(2), "momentum_buffer of parameter 0 is a tensor"),
        ("Exotic", ("state", 9), {"x": 1}, "a parameter 9 that is in no group"),
        ("SGD", ("param_groups", 0, "lr"), ..., "group 0 has no lr there"),
        ("Exotic", ("param_groups", 0, "lr"), "text", "lr of group 0 is a str there and a number here"),
        ("Adam", ("param_groups", 0, "betas"), 0.9, "betas of group 0 is a float there and a tuple here"),
        ("SGD", ("state",), [1], "not those of an optimizer's state"),
        ("SGD", ("param_groups",), None, "not those of an optimizer's state"),
        ("SGD", ("param_groups", 0), 3, "not those of an optimizer's state"),
        ("SGD", ("shapes",), [3], "not those of an optimizer's state"),
    ],
)
def test_a_damaged_state_is_refused_whole(name: str, path: tuple[Any, ...], value: Any, told: str) -> None:
    """A state whose entries are none is told before anything is loaded, and not found out at the next step."""
    problem, live = Problem(OPTIMIZERS[name]), Problem(OPTIMIZERS[name])
    problem.train(range(2))
    state = copy.deepcopy(optimizer_state_dict(problem.optimizer))
    _broken(state, *path, value=value)
    before = flat(live.optimizer.state_dict())
    with pytest.raises(CheckpointMismatchError, match=told):
        load_optimizer_state(live.optimizer, state)
    assert flat(live.optimizer.state_dict()) == before


def _forget_flags(state: dict[str, Any]) -> None:
    for key in ("foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"):
        state["param_groups"][0].pop(key, None)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD, momentum", "RMSprop", "Exotic"])
@pytest.mark.parametrize(
    "change",
    [
        _forget_flags,
        lambda state: state["param_groups"][0].update(added=True, initial_lr=0.5),
        lambda state: state["state"].pop(0),
        lambda state: state["state"].update({0: {}}),
        lambda state: state["state"][1].update(added=torch.ones(7)),
        lambda state: state["param_groups"][0].update(lr=torch.tensor(0.5)),
    ],
    ids=["fewer flags", "more settings", "no gradient yet", "nothing kept yet", "more kept", "tensor rate"],
)
def test_a_state_of_another_version_or_stage_is_taken(name: str, change: Callable[[Any], None]) -> None:
    """What versions of an optimizer add or leave out, and parameters that never had a gradient, are no damage."""
    problem, live = Problem(OPTIMIZERS[name]), Problem(OPTIMIZERS[name])
    problem.train(range(2))
    state = copy.deepcopy(optimizer_state_dict(problem.optimizer))
    change(state)
    load_optimizer_state(live.optimizer, state)
    live.train(range(2, 3))


def test_foreign_state_is_refused() -> None:
    """A dict that is no optimizer's state is refused with what it lacks."""
    with pytest.raises(CheckpointMismatchError, match="'type', 'shapes', 'state', 'param_groups'"):
        load_optimizer_state(optim.SGD(_parameters((1,))), {})


def test_owned_parameters_keep_the_order_of_groups() -> None:
    """The parameters are listed group after group."""
    a, b, c = _parameters((1,), (2,), (3,))
    assert [p.shape[0] for p in owned_parameters(optim.SGD([{"params": [c, a]}, {"params": [b]}]))] == [3, 1, 2]


def test_rates_are_named_as_needed() -> None:
    """One rate is called lr; several carry the optimizer's name, and the group's number where there are groups."""
    one = optim.SGD(_parameters((1,)), lr=0.5)
    two = optim.Adam([{"params": _parameters((1,)), "lr": torch.tensor(0.25)}, {"params": _parameters((1,))}], lr=0.125)
    assert describe_lrs({"0": one}) == {"lr": 0.5}
    assert describe_lrs({"0": two}) == {"lr/0/0": 0.25, "lr/0/1": 0.125}
    assert describe_lrs({"a": one, "b": two}) == {"lr/a": 0.5, "lr/b/0": 0.25, "lr/b/1": 0.125}
    assert describe_lrs({}) == {}


@pytest.mark.cuda
@pytest.mark.parametrize("variant", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_state_from_the_cpu_goes_where_a_gpu_optimizer_needs_it(variant: dict[str, bool]) -> None:
    """A state read into host memory is put on the GPU, the step count only where the variant keeps it there."""
    first, second = (optim.AdamW([nn.Parameter(torch.ones(3, device="cuda"))], **variant) for _ in range(2))
    for optimizer in (first, second):
        owned_parameters(optimizer)[0].grad = torch.ones(3, device="cuda")
    first.step()
    structure, tensors = encode(optimizer_state_dict(first))
    load_optimizer_state(second, decode(structure, {name: t.cpu() for name, t in tensors.items()}))
    assert flat(second.state_dict()) == flat(first.state_dict())
