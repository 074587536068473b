"""What a context does not take, and that it stays as it was."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.containers.contexts import Fussy, Phase, Versioned, copied, make, same, scheduled, train
from trainlab import ContextDict, ContextObject, Counter
from trainlab.errors import CheckpointMismatchError


def test_nothing_is_ignored_and_nothing_is_half_loaded() -> None:
    """All that is missing, unknown or does not fit is told at once with its path, and nothing was changed."""
    ctx, other = make(1, extra=(Counter(), 1)), make(2, mine=1, extra=(Counter(), 1))
    train(other, 1)
    state = ctx.state_dict()
    del state["parts"]["names"]
    state["model"]["9.weight"] = state["model"].pop("0.weight")
    state["ema"]["n_averaged"] = torch.zeros(2)
    state["parts"]["heads"].append(state["parts"]["heads"][0])
    state["epoch"] = {"a": 1}
    state["counter"] = OrderedDict(other=1)
    before = copied(other.state_dict())
    with pytest.raises(CheckpointMismatchError) as raised:
        other.load_state_dict(state)
    told = str(raised.value)
    for fault in (
        "missing: mine",
        "missing: parts/names",
        "missing: model/0.weight",
        "unknown here: model/9.weight",
        "ema: ",
        "n_averaged ([2] instead of [])",
        "parts/heads is 3 elements, where the context has 2",
        "epoch is a dict, where the context has a int",
        "nothing was changed",
    ):
        assert fault in told, fault
    assert same(other.state_dict(), before)


def test_an_unknown_name_is_an_error() -> None:
    """What was saved and has no place in the context is not passed over."""
    state = make(1, lost=torch.ones(1)).state_dict()
    with pytest.raises(CheckpointMismatchError, match="unknown here: lost"):
        make(1).load_state_dict(state)


@pytest.mark.parametrize(
    ("value", "saved"),
    [
        (nn.Linear(1, 1), 3),
        (Counter(), 3),
        (3, OrderedDict(count=1)),
        (None, {"a": OrderedDict(count=1)}),
        (None, (OrderedDict(count=1), 3)),
        ({}, OrderedDict(weight=torch.ones(1))),
        (nn.Parameter(torch.ones(2)), torch.ones(3)),
        ({"a": 1}, [1]),
        ([1], {"a": 1}),
        ((Counter(), 1), (1,)),
        ([Counter()], []),
        ({}, {"a": OrderedDict(weight=torch.ones(1))}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_state_of_another_kind_is_an_error(value: Any, saved: Any) -> None:
    """A number does not become a module's state, nor a module's state a dict, without a word."""
    ctx = ContextObject(other=1, value=value)
    with pytest.raises(CheckpointMismatchError, match="value"):
        ctx.load_state_dict({"other": 2, "value": saved})
    assert ctx.other == 1


@pytest.mark.parametrize(
    ("value", "saved"),
    [
        (1, "text"),
        ("text", 1.5),
        (b"bytes", "text"),
        (1, torch.tensor(2)),
        (1.5, torch.tensor(2)),
        (torch.tensor(2), 3),
        (torch.zeros(2), torch.zeros(3)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), torch.zeros(2)),
        (2, np.zeros(2)),
        ((1, 2), "text"),
        ({1}, 5),
        (range(3), 4),
        (Phase.HOT, "HOT"),
        (torch.float32, 3),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'shape', '')}",
)
def test_data_of_another_kind_or_shape_is_an_error_with_its_path(value: Any, saved: Any) -> None:
    """A checkpoint of another program is told, and not taken for this one's numbers, texts and tensors."""
    ctx = ContextObject(other=1, value=value, paired=(value, Counter()))
    with pytest.raises(CheckpointMismatchError, match=r"value is .*, where the context has .*paired\[0\] is "):
        ctx.load_state_dict({"other": 2, "value": saved, "paired": (saved, OrderedDict(count=1))})
    assert ctx.other == 1


@pytest.mark.parametrize(
    ("value", "saved"),
    [
        *[(None, 1), (1, None), (None, "text"), (None, torch.ones(2)), (torch.ones(2), None), (1, 2.5), (2.5, 1)],
        *[(None, (1, 2)), ((1, 2), None), ((1, 2), torch.Size([3])), ({1}, frozenset([2])), (Phase.WARM, Phase.HOT)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_was_not_set_yet_takes_any_and_numbers_take_each_other(value: Any, saved: Any) -> None:
    """`best = None` becomes the best loss, and a sum that began with 0 becomes a float."""
    ctx = ContextObject(value=value)
    ctx.load_state_dict({"value": saved})
    assert same(ctx.value, saved)


def test_lists_and_dicts_of_data_become_what_was_saved() -> None:
    """A list of losses has its saved length again, whatever its length was before; a name must not be missing."""
    ctx = ContextObject(losses=[], by_name={"a": 1})
    ctx.load_state_dict({"losses": [1.0, 2.0], "by_name": {"a": 2, "b": [3]}})
    assert ctx.losses == [1.0, 2.0] and dict(ctx.by_name) == {"a": 2, "b": [3]}
    ctx.load_state_dict({"losses": [], "by_name": {"a": 3, "b": []}})
    assert ctx.losses == [] and dict(ctx.by_name) == {"a": 3, "b": []}
    with pytest.raises(CheckpointMismatchError, match="missing: by_name/a"):
        ctx.load_state_dict({"losses": [], "by_name": {"b": 2}})


def test_a_value_that_became_a_dict_or_list_is_one_again() -> None:
    """`best = None` at the start does not keep a crashed run from going on once it was a dict or a list; and back."""
    ctx = ContextObject(best=None, last=None)
    ctx.best, ctx.last = {"acc": [0.5]}, [1]
    other = ContextObject(best=None, last=None)
    other.load_state_dict(ctx.state_dict())
    assert isinstance(other.best, ContextDict) and same(other.state_dict(), {"best": {"acc": [0.5]}, "last": [1]})
    other.load_state_dict({"best": None, "last": None})
    assert other.best is None and other.last is None


def test_a_name_that_is_missing_deep_in_a_dict_of_data_is_an_error() -> None:
    """A setting that the program has, and the state does not, is not dropped silently, however deep it is."""
    ctx = ContextObject(settings={"a": {"old": 1, "new": 5}})
    with pytest.raises(CheckpointMismatchError, match="missing: settings/a/new"):
        ctx.load_state_dict({"settings": {"a": {"old": 2}}})
    assert ctx.settings["a"]["old"] == 1


def test_an_object_that_refuses_its_state_leaves_all_others_as_they_were() -> None:
    """What can be found out only by loading is undone."""
    ctx = ContextObject(first=Fussy(1), second=Fussy(2, refuses=True), model=nn.Linear(1, 1), epoch=0)
    weights = ctx.model.weight.detach().clone()
    saved = ContextObject(first=Fussy(5), second=Fussy(6), model=nn.Linear(1, 1), epoch=9).state_dict()
    with pytest.raises(CheckpointMismatchError, match=r"nothing but second was changed\. second refuses .*KeyError"):
        ctx.load_state_dict(saved)
    assert (ctx.first.value, ctx.epoch) == (1, 0)
    assert torch.equal(ctx.model.weight, weights)


def test_a_module_that_refuses_its_state_leaves_everything_as_it_was() -> None:
    """What a module finds out in its own `set_extra_state` is one error with its path, and nothing was changed."""
    ctx = ContextObject(a=Versioned(1), plain=nn.Linear(1, 1), b=nn.Sequential(Versioned(2)), first=Fussy(1), epoch=0)
    saved = ContextObject(a=Versioned(1), plain=nn.Linear(1, 1), b=nn.Sequential(Versioned(3)), first=Fussy(5), epoch=9)
    before = copied(ctx.state_dict())
    with pytest.raises(CheckpointMismatchError, match=r"nothing was changed\. b refuses .*ValueError: another version"):
        ctx.load_state_dict(saved.state_dict())
    assert same(ctx.state_dict(), before)
    saved.b[0].version = 2
    ctx.load_state_dict(saved.state_dict())
    assert same(ctx.state_dict(), saved.state_dict())


class Choosy(torch.optim.Adam):
    """Loads, and then refuses what another version wrote."""

    version = 1

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"version": self.version}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "version"})
        if state_dict["version"] != self.version:
            raise ValueError("another version")


def test_an_optimizer_that_refuses_its_state_leaves_everything_as_it_was() -> None:
    """What an optimizer finds out in its own `load_state_dict` is one error with its path, and nothing was changed."""

    def trained(steps: int) -> ContextObject:
        model = nn.Linear(2, 1)
        ctx = ContextObject(model=model, plain=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
        ctx.choosy, ctx.epoch = Choosy(model.parameters(), lr=0.1 * steps), steps
        for _ in range(steps):
            model(torch.ones(1, 2)).sum().backward()
            ctx.plain.step(), ctx.choosy.step()
        return ctx

    ctx, other = trained(1), trained(3)
    other.choosy.version = 2
    saved, before = other.state_dict(), copied(ctx.state_dict())
    with pytest.raises(CheckpointMismatchError, match=r"nothing was changed\. choosy refuses .*ValueError: another"):
        ctx.load_state_dict(saved)
    assert same(ctx.state_dict(), before)
    other.choosy.version = 1
    ctx.load_state_dict(other.state_dict())
    assert same(ctx.state_dict(), other.state_dict())


class HalfExtra(nn.Linear):
    """A module that gives an extra state and takes none."""

    def get_extra_state(self) -> int:
        return 1


class Unready(Fussy):
    """Gives no state until it is ready."""

    def state_dict(self) -> dict[str, int]:
        raise RuntimeError("not ready")


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (HalfExtra(1, 1), "z refuses its state: RuntimeError"),
        (Unready(), "z does not give the state that it has now.*not ready"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_put_back_leaves_all_others_as_they_were(last: Any, told: str) -> None:
    """An object that gives no state, or a module that takes none, is one error before anything else is loaded."""
    ctx = ContextObject(a=Fussy(1), model=nn.Linear(1, 1), epoch=0, z=last)
    before = copied(ContextObject(a=ctx.a, model=ctx.model, epoch=0).state_dict())
    state = ContextObject(a=Fussy(5), model=nn.Linear(1, 1), epoch=3).state_dict()
    state["z"] = OrderedDict(value=1) if isinstance(last, Unready) else last.state_dict()
    with pytest.raises(CheckpointMismatchError, match=told):
        ctx.load_state_dict(state)
    assert same(ContextObject(a=ctx.a, model=ctx.model, epoch=ctx.epoch).state_dict(), before)


@pytest.mark.parametrize("saved", [torch.eye(2).to_sparse(), torch.ones(2, 2, device="meta")], ids=["sparse", "meta"])
def test_a_tensor_that_a_module_cannot_take_is_an_error_with_its_path(saved: torch.Tensor) -> None:
    """A sparse or empty tensor in a module's state is told, and nothing was changed."""
    ctx = ContextObject(first=nn.Linear(1, 1), model=nn.Linear(2, 2))
    before = copied(ctx.state_dict())
    state = ContextObject(first=nn.Linear(1, 1), model=nn.Linear(2, 2)).state_dict()
    state["model"]["weight"] = saved
    with pytest.raises(CheckpointMismatchError, match=r"model/weight is a tensor (of layout torch.sparse|on the meta)"):
        ctx.load_state_dict(state)
    assert same(ctx.state_dict(), before)


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        *[("step", "exponential"), ("lambda", "multiplicative"), ("sequence", "other sequence"), ("chain", "step")],
        *[("step", "chain"), ("plateau", "step"), ("step", "scaler"), ("scaler", "step")],
    ],
)
def test_the_state_of_another_scheduler_is_an_error(kind: str, other: str) -> None:
    """A resumed run does not go on with the learning rates of another schedule without a word."""
    with pytest.raises(CheckpointMismatchError, match="scheduler (is|refuses)"):
        scheduled(kind).load_state_dict(scheduled(other).state_dict())
