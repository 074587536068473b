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

import trainlab
from tests.containers.contexts import SCHEDULERS, Phase, copied, make, same, scheduled, train
from trainlab import ContextDict, ContextList, ContextObject, Counter
from trainlab.checkpoint import register_class
from trainlab.errors import CheckpointError, CheckpointMismatchError, InvalidStateError, InvalidTypeError


@register_class
@dataclass
class Weights:
    w: torch.Tensor


class Cold(enum.Enum):
    NOT_REGISTERED = 1


class Dataset:
    def __len__(self) -> int:
        return 3


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
    state = copied(ctx.state_dict())
    drawn = torch.rand(2, generator=ctx.a).tolist(), ctx.b.random(), ctx.c.random()
    other = ContextObject(a=torch.Generator(), b=np.random.default_rng(), c=random.Random())
    other.load_state_dict(state)
    assert (torch.rand(2, generator=other.a).tolist(), other.b.random(), other.c.random()) == drawn


def test_the_generators_of_modules_are_saved() -> None:
    """`ctx.rng = random`, `np.random` or `torch.random` is the generator that the module's functions draw from."""
    ctx = ContextObject(a=random, b=np.random, c=torch.random, d=np.random.RandomState(3))
    state = copied(ctx.state_dict())

    def draw() -> list[Any]:
        return [random.random(), np.random.rand(), torch.rand(1).item(), ctx.d.rand()]

    drawn = draw()
    ctx.load_state_dict(state)
    assert draw() == drawn


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if kind != "scaler"])
def test_a_scheduler_takes_the_state_of_another_version_of_torch(kind: str) -> None:
    """What versions of torch add to a state, or leave out of it, keeps no run from going on; how far it was does."""
    ctx = scheduled(kind)
    for _ in range(4):
        ctx.optimizer.step()
        ctx.scheduler.step(*[1.0] if kind == "plateau" else [])
    state = copied(ctx.state_dict())
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
