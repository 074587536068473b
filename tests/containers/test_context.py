"""What a context keeps, saves and restores."""

import enum
import math
import random
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel

import trainlab
from trainlab import ContextDict, ContextList, ContextObject, Counter
from trainlab.checkpoint import register_class
from trainlab.errors import CheckpointError, CheckpointMismatchError, InvalidStateError, InvalidTypeError


@register_class
class Phase(enum.Enum):
    WARM = 1
    HOT = 2


@register_class
@dataclass
class Weights:
    w: torch.Tensor


class Cold(enum.Enum):
    NOT_REGISTERED = 1


class Dataset:
    def __len__(self) -> int:
        return 3


class Fussy:
    """Takes no state but its own; remembers what it was given."""

    def __init__(self, value: int = 0, refuses: bool = False) -> None:
        self.value, self.refuses = value, refuses

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.refuses:
            raise KeyError("not mine")
        self.value = state["value"]


class Versioned(nn.Linear):
    """A module that takes only its own version, as a saved tokenizer or a quantized layer does."""

    def __init__(self, version: int) -> None:
        super().__init__(1, 1)
        self.version = version

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if state["version"] != self.version:
            raise ValueError("another version")


def make(seed: int, **more: Any) -> ContextObject:
    torch.manual_seed(seed)
    ctx = ContextObject()
    ctx.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    ctx.optimizer = torch.optim.Adam(ctx.model.parameters(), lr=0.1)
    ctx.scheduler = torch.optim.lr_scheduler.StepLR(ctx.optimizer, 2)
    ctx.ema = AveragedModel(ctx.model)
    ctx.scaler = torch.amp.GradScaler("cpu", init_scale=8.0 + seed)
    ctx.counter = Counter(seed)
    ctx.loss = nn.functional.mse_loss
    ctx.epoch, ctx.best = seed, None
    ctx.parts = {"heads": [nn.Linear(2, 2), nn.Linear(2, 3)], "names": ["a", "b"]}
    for name, value in more.items():
        setattr(ctx, name, value)
    return ctx


def train(ctx: ContextObject, steps: int) -> None:
    for _ in range(steps):
        loss = ctx.loss(ctx.model(torch.randn(8, 3)), torch.ones(8, 1))
        loss.backward()
        ctx.optimizer.step()
        ctx.optimizer.zero_grad()
        ctx.scheduler.step()
        ctx.ema.update_parameters(ctx.model)
        ctx.counter.step()


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, types and all."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def test_everything_that_training_changes_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    """Modules, optimizers, schedulers, averages, scalers, counters and nested parts are restored to the bit."""
    ctx = make(1)
    train(ctx, 3)
    ctx.epoch, ctx.best = 7, 0.5
    place = trainlab.save_checkpoint(ctx, tmp_path / "saved")
    other = make(2)
    optimizer, model = other.optimizer, other.model
    other.load_state_dict(trainlab.load_checkpoint(place))
    assert same(other.state_dict(), ctx.state_dict())
    assert (other.epoch, other.best, other.counter.count) == (7, 0.5, 4)
    assert other.optimizer is optimizer and other.scheduler.optimizer is optimizer and other.model is model
    torch.manual_seed(5)
    train(ctx, 2)
    torch.manual_seed(5)
    train(other, 2)
    assert same(other.state_dict(), ctx.state_dict())


DATA: list[Any] = [
    None,
    True,
    3,
    2.5,
    1 + 2j,
    "text",
    b"bytes",
    torch.arange(4.0),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.zeros(()),
    nn.Parameter(torch.ones(2)),
    np.arange(3),
    np.float32(1.5),
    (1, (torch.ones(2), None)),
    {1, 2},
    frozenset("ab"),
    deque([1, 2], maxlen=3),
    OrderedDict(b=1, a=2),
    range(4),
    Phase.HOT,
    Path("a/b"),
    torch.float16,
    torch.device("cpu"),
    torch.Size([1, 2]),
]


@pytest.mark.parametrize("value", DATA, ids=lambda value: type(value).__name__)
def test_no_data_is_dropped(value: Any, tmp_path: Path) -> None:
    """Whatever a checkpoint can hold comes back as it was, at the top, in dicts, lists and tuples."""
    ctx = ContextObject(value=value, named={"value": value}, listed=[value, Counter()], paired=(value, Counter()))
    place = trainlab.save_checkpoint(ctx, tmp_path / "saved")
    blank = torch.zeros_like(value) if isinstance(value, nn.Parameter) else None
    start = value if blank is None and isinstance(value, OrderedDict) else blank
    other = ContextObject(value=start, named={"value": start}, listed=[start, Counter()], paired=(start, Counter()))
    other.load_state_dict(trainlab.load_checkpoint(place))
    found = [other.value, other.named["value"], other.listed[0], other.paired[0]]
    assert all(same(torch.as_tensor(one) if blank is not None else one, _bare(value)) for one in found)


def _bare(value: Any) -> Any:
    return value.detach() if isinstance(value, nn.Parameter) else value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_nested_data_is_restored_as_it_was(value: Any) -> None:
    """Any nested data is set again, whatever stood in its place when it was loaded."""
    ctx = ContextObject(value=value)
    state = ctx.state_dict()
    assert same(state, {"value": value})
    kind = type(value)
    other = ContextObject(value={} if kind is dict else [] if kind is list else None)
    other.load_state_dict(state)
    assert same(other.state_dict(), {"value": value})


def test_restored_tensors_keep_their_places() -> None:
    """A bare tensor that an optimizer trains is filled in place, and shares nothing with the state."""
    ctx = ContextObject(latent=torch.ones(3, requires_grad=True), mean=torch.zeros(2))
    ctx.optimizer = torch.optim.SGD([ctx.latent], lr=1.0)
    latent, state = ctx.latent, {"latent": torch.full((3,), 2.0), "mean": torch.ones(2), "optimizer": None}
    state["optimizer"] = ctx.state_dict()["optimizer"]
    ctx.load_state_dict(state)
    assert ctx.latent is latent and latent.requires_grad and latent.tolist() == [2.0] * 3
    state["mean"].zero_()
    assert ctx.mean.tolist() == [1.0] * 2


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
    before = _copied(other.state_dict())
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


def _copied(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return type(state)((key, _copied(value)) for key, value in state.items())
    return type(state)(map(_copied, state)) if isinstance(state, list | tuple) else state


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
    before = _copied(ctx.state_dict())
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
    saved, before = other.state_dict(), _copied(ctx.state_dict())
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
    before = _copied(ContextObject(a=ctx.a, model=ctx.model, epoch=0).state_dict())
    state = ContextObject(a=Fussy(5), model=nn.Linear(1, 1), epoch=3).state_dict()
    state["z"] = OrderedDict(value=1) if isinstance(last, Unready) else last.state_dict()
    with pytest.raises(CheckpointMismatchError, match=told):
        ctx.load_state_dict(state)
    assert same(ContextObject(a=ctx.a, model=ctx.model, epoch=ctx.epoch).state_dict(), before)


@pytest.mark.parametrize("saved", [torch.eye(2).to_sparse(), torch.ones(2, 2, device="meta")], ids=["sparse", "meta"])
def test_a_tensor_that_a_module_cannot_take_is_an_error_with_its_path(saved: torch.Tensor) -> None:
    """A sparse or empty tensor in a module's state is told, and nothing was changed."""
    ctx = ContextObject(first=nn.Linear(1, 1), model=nn.Linear(2, 2))
    before = _copied(ctx.state_dict())
    state = ContextObject(first=nn.Linear(1, 1), model=nn.Linear(2, 2)).state_dict()
    state["model"]["weight"] = saved
    with pytest.raises(CheckpointMismatchError, match=r"model/weight is a tensor (of layout torch.sparse|on the meta)"):
        ctx.load_state_dict(state)
    assert same(ctx.state_dict(), before)


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(2, 2), lambda: torch.ones(2), lambda: [torch.ones(2)]],
    ids=["module", "tensor", "list"],
)
def test_what_is_on_the_meta_device_is_an_error(make: Any) -> None:
    """Weights are not lost because what they are loaded into has no memory: whoever forgot to_empty is told."""
    state = ContextObject(part=make()).state_dict()
    with torch.device("meta"):
        ctx = ContextObject(part=make())
    with pytest.raises(CheckpointMismatchError, match=r"part.* on the meta device here.*to_empty"):
        ctx.load_state_dict(state)


@pytest.mark.parametrize(
    "carry",
    [
        lambda w: (w, 1),
        lambda w: {"a": ({"b": [w]},)},
        lambda w: OrderedDict(a=w),
        lambda w: OrderedDict(a={"b": (w,)}),
        lambda w: [(Counter(), (w,))],
    ],
    ids=["tuple", "deep", "OrderedDict", "deep OrderedDict", "tuple of a list"],
)
@pytest.mark.parametrize("kind", [nn.Parameter, torch.Tensor.requires_grad_])
def test_a_trained_tensor_stays_the_one_that_an_optimizer_has(carry: Any, kind: Any, tmp_path: Path) -> None:
    """Parameters in tuples and dicts are filled in place, so that a resumed loop goes on with what was saved."""
    saved, w = kind(torch.ones(2)), kind(torch.zeros(2))
    place = trainlab.save_checkpoint(ContextObject(held=carry(saved)), tmp_path / "saved")
    ctx = ContextObject(held=carry(w), optimizer=torch.optim.SGD([w], lr=1.0))
    ctx.leave_out("optimizer")
    ctx.load_state_dict(trainlab.load_checkpoint(place))
    w.sum().backward()
    ctx.optimizer.step()
    assert w.tolist() == [0.0, 0.0]
    assert any(part is w for part in _leaves(ctx.held))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, ContextDict):
        value = list(value.values())
    if isinstance(value, ContextList | list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


@pytest.mark.parametrize(
    "carry",
    [lambda w: deque([[w]]), lambda w: defaultdict(list, a=[w]), Weights],
    ids=["deque", "defaultdict", "dataclass"],
)
def test_a_trained_tensor_that_a_load_would_replace_is_an_error(carry: Any) -> None:
    """An optimizer does not go on with another tensor than the context's without a word, after a save or a load."""
    w = torch.ones(1, requires_grad=True)
    ctx = ContextObject(held=carry(w))
    with pytest.raises(InvalidTypeError, match=r"held.*Put it into a dict, list or tuple"):
        ctx.state_dict()
    with pytest.raises(CheckpointMismatchError, match=r"held.* needs a gradient"):
        ctx.load_state_dict({"held": carry(torch.zeros(1))})
    ContextObject(held=carry(w.detach() * 1)).state_dict()


def test_modules_in_lists_and_dicts_in_tuples_are_gone_into() -> None:
    """What the message of a refused data set allows is so: modules in dicts, lists and tuples, in any order."""
    ctx, other = (ContextObject(t=([nn.Linear(1, 1)], {"a": (nn.Linear(1, 2), 3)}, [1])) for _ in range(2))
    assert isinstance(ctx.t[0], ContextList) and isinstance(ctx.t[1], ContextDict)
    other.load_state_dict(ctx.state_dict())
    assert torch.equal(other.t[0][0].weight, ctx.t[0][0].weight) and other.t[1]["a"][1] == 3
    assert torch.equal(other.t[1]["a"][0].weight, ctx.t[1]["a"][0].weight)


def test_an_ordered_dict_of_modules_is_a_dict_of_the_context() -> None:
    """Modules by name in an OrderedDict are saved and restored, not refused as data."""
    ctx, other = (ContextObject(heads=OrderedDict(a=nn.Linear(1, 1))) for _ in range(2))
    other.load_state_dict(ctx.state_dict())
    assert isinstance(other.heads, ContextDict) and torch.equal(other.heads["a"].weight, ctx.heads["a"].weight)


def test_what_has_no_state_is_told_with_its_path_and_can_be_left_out() -> None:
    """A data set is not dropped silently: saving names it, and says how to leave it out."""
    ctx = ContextObject(counter=Counter(3), data={"train": [Dataset()]})
    with pytest.raises(InvalidTypeError, match=r"data/train\[0\].*Dataset.*leave_out\('data'\)"):
        ctx.state_dict()
    ctx.leave_out("data")
    state = ctx.state_dict()
    assert state == {"counter": {"count": 3}}
    other = ContextObject(counter=Counter(), data=None)
    other.leave_out("data")
    other.load_state_dict(state)
    assert other.counter.count == 3
    with pytest.raises(InvalidTypeError, match="leave_out"):
        ctx.leave_out(3)  # type: ignore[arg-type]


def test_a_module_in_a_set_or_deque_is_an_error_with_its_path() -> None:
    """A state is not lost because it is in a container that is not gone into."""
    with pytest.raises(InvalidTypeError, match=r"queue\[0\].*Linear"):
        ContextObject(queue=deque([nn.Linear(1, 1)])).state_dict()


def test_an_enum_that_a_resume_could_not_restore_is_an_error_with_its_path() -> None:
    """Whoever saves a class that is not registered is told so when saving, and where."""
    with pytest.raises(CheckpointError, match=r"phases\[0\].*register_class"):
        ContextObject(phases=[Cold.NOT_REGISTERED]).state_dict()


def test_functions_and_classes_have_no_state() -> None:
    """Loss functions, lambdas and classes may be in a context, which stays saved and loaded as before."""
    parts = {"loss": nn.functional.cross_entropy, "kind": nn.Linear, "module": math, "make": lambda: 1}
    ctx = ContextObject(**parts, steps=[len, 4], pair=(len, 2), count=1)
    state = ctx.state_dict()
    assert set(state) == {"steps", "pair", "count"}
    other = ContextObject(**parts, steps=[len, 0], pair=(len, 0), count=0)
    other.load_state_dict(state)
    assert other.count == 1 and other.steps == [len, 4] and other.pair == (len, 2)


def test_random_generators_are_saved() -> None:
    """Generators of torch, numpy and Python go on where they were."""
    ctx = ContextObject(a=torch.Generator().manual_seed(1), b=np.random.default_rng(1), c=random.Random(1))
    state = _copied(ctx.state_dict())
    drawn = torch.rand(2, generator=ctx.a).tolist(), ctx.b.random(), ctx.c.random()
    other = ContextObject(a=torch.Generator(), b=np.random.default_rng(), c=random.Random())
    other.load_state_dict(state)
    assert (torch.rand(2, generator=other.a).tolist(), other.b.random(), other.c.random()) == drawn


def test_the_generators_of_modules_are_saved() -> None:
    """`ctx.rng = random`, `np.random` or `torch.random` is the generator that the module's functions draw from."""
    ctx = ContextObject(a=random, b=np.random, c=torch.random, d=np.random.RandomState(3))
    state = _copied(ctx.state_dict())

    def draw() -> list[Any]:
        return [random.random(), np.random.rand(), torch.rand(1).item(), ctx.d.rand()]

    drawn = draw()
    ctx.load_state_dict(state)
    assert draw() == drawn


SCHEDULERS: dict[str, Any] = {
    "step": lambda o: schedulers.StepLR(o, 3),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.5),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
    "sequence": lambda o: schedulers.SequentialLR(o, [schedulers.LinearLR(o), schedulers.StepLR(o, 3)], [2]),
    "other sequence": lambda o: schedulers.SequentialLR(o, [schedulers.LinearLR(o), schedulers.LinearLR(o)], [2]),
    "chain": lambda o: schedulers.ChainedScheduler([schedulers.StepLR(o, 3)], o),
    "scaler": lambda o: torch.amp.GradScaler("cpu"),
}


def scheduled(kind: str) -> ContextObject:
    ctx = ContextObject(optimizer=torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))
    ctx.scheduler = SCHEDULERS[kind](ctx.optimizer)
    return ctx


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


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if kind != "scaler"])
def test_a_scheduler_takes_the_state_of_another_version_of_torch(kind: str) -> None:
    """What versions of torch add to a state, or leave out of it, keeps no run from going on; how far it was does."""
    ctx = scheduled(kind)
    for _ in range(4):
        ctx.optimizer.step()
        ctx.scheduler.step(*[1.0] if kind == "plateau" else [])
    state = _copied(ctx.state_dict())
    state["scheduler"].update(verbose=False, added=1)
    for key in ("_is_initial", "_get_lr_called_within_step", "step_size"):
        state["scheduler"].pop(key, None)
    other = scheduled(kind)
    other.load_state_dict(state)
    assert other.scheduler.get_last_lr() == ctx.scheduler.get_last_lr()
    for key in {"last_epoch", "_schedulers", "best"} & state["scheduler"].keys():
        damaged = {**state, "scheduler": OrderedDict(state["scheduler"])}
        del damaged["scheduler"][key]
        with pytest.raises(CheckpointMismatchError, match=f"missing: scheduler/{key}"):
            other.load_state_dict(damaged)


def test_a_scaler_that_is_off_takes_no_state_of_one_that_was_on() -> None:
    """A run in half precision does not go on without its scale unnoticed."""
    on, off = (ContextObject(scaler=torch.amp.GradScaler("cpu", enabled=enabled)) for enabled in (True, False))
    with pytest.raises(CheckpointMismatchError, match="scaler is the state of an enabled scaler"):
        off.load_state_dict(on.state_dict())
    off.load_state_dict(off.state_dict())


def test_wrapped_modules_have_the_users_own_keys() -> None:
    """`torch.compile` and parallel wrappers leave no prefix in a state, which loads with and without them."""
    ctx = ContextObject(a=torch.compile(nn.Linear(1, 2), backend="eager"), b=DataParallel(nn.Linear(1, 2)))
    assert all(list(state) == ["weight", "bias"] for state in ctx.state_dict().values())
    bare = ContextObject(a=nn.Linear(1, 2), b=nn.Linear(1, 2))
    bare.load_state_dict(ctx.state_dict())
    ctx.load_state_dict(bare.state_dict())
    assert same(bare.state_dict(), ctx.state_dict())


def test_an_optimizer_in_half_precision_comes_back_to_the_bit() -> None:
    """The float32 state of bfloat16 parameters is not rounded on its way through a context."""
    layer = nn.Linear(2, 2).bfloat16()
    ctx = ContextObject(optimizer=torch.optim.Adam(layer.parameters()))
    for parameter in layer.parameters():
        ctx.optimizer.state[parameter] = {
            **{"step": torch.tensor(3.0), "exp_avg": torch.rand(parameter.shape)},
            "exp_avg_sq": torch.rand(parameter.shape),
        }
    other = ContextObject(optimizer=torch.optim.Adam(nn.Linear(2, 2).bfloat16().parameters()))
    other.load_state_dict(ctx.state_dict())
    assert same(other.state_dict(), ctx.state_dict())


def test_attributes_are_registered_by_setting_them() -> None:
    """`has`, `del`, `dir` and a clear AttributeError tell what there is."""
    ctx = ContextObject()
    ctx.model = nn.Linear(1, 1)
    assert ctx.has("model") and not ctx.has("optimizer") and "model" in dir(ctx)
    with pytest.raises(AttributeError, match="no 'optimizer'. It has: model"):
        _ = ctx.optimizer
    assert getattr(ctx, "optimizer", None) is None
    del ctx.model
    assert not ctx.has("model")
    with pytest.raises(AttributeError):
        del ctx.model
    for name in ("cuda", "_private"):
        with pytest.raises(ValueError, match="cannot have this name"):
            setattr(ctx, name, 1)


def test_dicts_and_lists_in_a_context_work_like_those_of_python() -> None:
    """`items`, `keys`, `values`, `insert`, `append`, slices and nesting work, and what is put in is wrapped."""
    ctx = ContextObject(named={"a": [1]}, listed=[1, {"b": 2}])
    assert isinstance(ctx.named, ContextDict) and isinstance(ctx.named["a"], ContextList)
    assert isinstance(ctx.listed[1], ContextDict)
    ctx.listed.insert(0, [3])
    ctx.listed.append({"c": 4})
    ctx.listed.insert(-1, 5)
    assert [type(one).__name__ for one in ctx.listed] == ["ContextList", "int", "ContextDict", "int", "ContextDict"]
    ctx.listed[1:3] = [[], 7, 8]
    del ctx.listed[0]
    assert ctx.listed.state_dict() == [[], 7, 8, 5, {"c": 4}]
    ctx.named["d"] = {}
    assert list(ctx.named.keys()) == ["a", "d"] and len(ctx.named.items()) == 2 and ctx.named.pop("d") == {}
    assert "ContextList([1])" in repr(ctx)


def test_what_setdefault_gives_is_in_the_context() -> None:
    """`ctx.losses.setdefault("train", []).append(loss)` is recorded, saved and restored."""
    ctx = ContextObject(losses={})
    for loss in (1.0, 0.5):
        ctx.losses.setdefault("train", []).append(loss)
    assert ctx.state_dict() == {"losses": {"train": [1.0, 0.5]}}
    assert ctx.losses.setdefault("none") is None and "none" in ctx.losses


def test_a_list_in_a_context_can_be_sorted() -> None:
    """The best k of a run are kept in order in the context itself."""
    ctx = ContextObject(best=[(0.5, "b"), (0.1, "a"), (0.7, "c")])
    ctx.best.sort(key=lambda pair: pair[0], reverse=True)
    assert [name for _, name in ctx.best] == ["c", "b", "a"]


def test_a_context_that_contains_itself_is_an_error() -> None:
    """A circle ends in a sentence and not in a RecursionError, whatever is done with it."""
    ctx, named = ContextObject(), ContextDict()
    ctx.itself, named["itself"] = ctx, named
    with pytest.raises(InvalidStateError, match="contains itself"):
        ctx.state_dict()
    endless: dict[str, Any] = {}
    endless["itself"] = endless
    with pytest.raises(InvalidStateError, match="contains itself"):
        named.load_state_dict(endless)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidStateError, match="contains itself"):
        ContextObject(circle=circle)
    assert repr(ctx) == "ContextObject(itself=...)" and repr(named) == "ContextDict({'itself': ...})"
