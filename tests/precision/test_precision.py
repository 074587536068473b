"""Forward passes in the run's precision."""

import copy
import pickle
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from trainlab.errors import InvalidValueError
from trainlab.precision import PRECISIONS, Precision

CPU = torch.device("cpu")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Seen(nn.Module):
    """A linear layer that notes in which dtype it computes, and does what it is told on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: torch.Tensor, then: Any = None) -> Any:
        y = self.layer(x)
        self.dtypes.append(y.dtype)
        return y if then is None else then(self, y)

    def own_method(self) -> str:
        return "own"


def autocast_is_off() -> bool:
    """Whether this thread is outside of any autocast block on the CPU."""
    return not torch.is_autocast_enabled("cpu")


@pytest.fixture(autouse=True)
def _no_block_left() -> Any:
    """No test leaves an autocast block open."""
    yield
    assert autocast_is_off()


@pytest.fixture(params=HALF)
def half(request: pytest.FixtureRequest) -> Precision:
    """Each half precision on the CPU."""
    return Precision(request.param, CPU)


def attached(precision: Precision) -> Seen:
    """A model that runs in a precision."""
    model = Seen()
    precision.attach(model)
    return model


def test_forward_runs_in_half_precision_and_gives_float32(half: Precision) -> None:
    """Inside the model operations run in half precision; its output, weights and gradients are float32."""
    model = attached(half)
    output = model(torch.ones(3, 4))
    output.sum().backward()
    assert model.dtypes == [HALF[half.name]]
    assert output.dtype == torch.float32
    assert model.layer.weight.grad is not None
    assert {model.layer.weight.dtype, model.layer.weight.grad.dtype} == {torch.float32}
    assert autocast_is_off()


def test_fp32_changes_nothing() -> None:
    """With fp32 nothing is attached to the model, and nothing is scaled."""
    precision, model = Precision("fp32", CPU), Seen()
    before = dict(vars(model))
    precision.attach(model)
    assert vars(model) == before
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    with precision.autocast():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
    assert precision.scaler is None


def test_only_fp16_scales() -> None:
    """A gradient scaler comes with fp16 and with nothing else."""
    assert [Precision(name, CPU).scaler is not None for name in PRECISIONS] == [False, False, True]


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Output:
    logits: Any
    count: int


class Keyed(OrderedDict):  # type: ignore[type-arg]
    """A dict with an attribute, as some libraries give."""

    label = "none"


def test_nested_outputs_come_out_as_float32(half: Precision) -> None:
    """Half-precision tensors nested in containers become float32; types, other values and the model's own stay."""
    model = attached(half)
    inner: list[Any] = []

    def build(_: Any, y: torch.Tensor) -> Any:
        keyed = Keyed(a=y)
        keyed.label = "kept"
        numbers = torch.arange(3)
        inner.append(
            {"list": [y, "text", None], "pair": Pair(y, (y, 1)), "out": Output(y, 7), "k": keyed, "n": numbers}
        )
        return inner[0]

    output = model(torch.ones(3, 4), build)
    assert type(output["pair"]) is Pair
    assert type(output["out"]) is Output
    assert type(output["k"]) is Keyed
    assert output["k"].label == "kept"
    assert (output["list"][1:], output["pair"].second[1], output["out"].count) == (["text", None], 1, 7)
    assert output["n"] is inner[0]["n"]
    tensors = [
        output["list"][0],
        output["pair"].first,
        output["pair"].second[0],
        output["out"].logits,
        output["k"]["a"],
    ]
    assert {t.dtype for t in tensors} == {torch.float32}
    kept = [inner[0]["list"][0], inner[0]["pair"].first, inner[0]["out"].logits, inner[0]["k"]["a"]]
    assert {t.dtype for t in kept} == {HALF[half.name]}


def test_outputs_without_half_precision_are_the_models_own(half: Precision) -> None:
    """What holds no half-precision tensor is returned itself, None and subclasses of dict included."""
    for value in (None, "text", {"x": torch.ones(1)}, [torch.arange(2)], Pair(1, 2), Keyed(a=1), torch.Size([2])):
        assert attached(half)(torch.ones(1, 4), lambda m, y, value=value: value) is value


def test_model_keeps_what_the_user_knows(half: Precision) -> None:
    """The model's type, forward, methods and state dict are its own after attach."""
    model = Seen()
    names, forward = list(model.state_dict()), type(model).forward
    half.attach(model)
    assert type(model) is Seen
    assert model.forward.__func__ is forward
    assert model.own_method() == "own"
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_compute_with_their_own_weights(half: Precision, duplicate: Any) -> None:
    """A deep copy or a pickled model runs in the same precision, on its own weights."""
    model = attached(half)
    twin = duplicate(model)
    nn.init.constant_(twin.layer.weight, 0.0)
    nn.init.constant_(twin.layer.bias, 3.0)
    output = twin(torch.ones(1, 4))
    assert output.tolist() == [[3, 3]]
    assert output.dtype == torch.float32
    assert (twin.dtypes, model.dtypes) == ([HALF[half.name]], [])


def test_attaching_twice_is_attaching_once(half: Precision) -> None:
    """A second attach adds no second pair of hooks."""
    model = attached(half)
    half.attach(model)
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == (1, 1)


def test_the_last_attach_counts(half: Precision) -> None:
    """A model that was trained in half precision can be trained in fp32 afterwards, in one process."""
    model = attached(half)
    Precision("fp32", CPU).attach(model)
    model(torch.ones(1, 4))
    half.attach(model)
    model(torch.ones(1, 4))
    assert model.dtypes == [torch.float32, HALF[half.name]]


def test_exception_in_forward_leaves_autocast_as_it_was(half: Precision) -> None:
    """After an exception in forward the thread is where it was: outside of autocast, or in the user's own block."""
    model = attached(half)

    def fail(m: Any, y: Any) -> None:
        raise KeyError("user")

    with pytest.raises(KeyError, match="user"):
        model(torch.ones(1, 4), fail)
    assert autocast_is_off()
    with half.autocast():
        with pytest.raises(KeyError, match="user"):
            model(torch.ones(1, 4), fail)
        assert not autocast_is_off()


def test_failing_hook_of_the_user_leaves_autocast_as_it_was(half: Precision) -> None:
    """A hook of the user that raises before ours closes nothing that is not ours."""
    outer, inner = attached(half), attached(half)

    def refuse(module: Any, args: Any) -> None:
        raise ValueError("user")

    inner.register_forward_pre_hook(refuse, prepend=True)

    def call_inner(m: Any, y: torch.Tensor) -> torch.Tensor:
        with pytest.raises(ValueError, match="user"):
            inner(torch.ones(1, 4))
        return m.layer(torch.ones(1, 4))

    assert outer(torch.ones(1, 4), call_inner).dtype == torch.float32
    assert autocast_is_off()


def test_nested_and_repeated_calls(half: Precision) -> None:
    """A model that calls itself, or another model of the run, computes in half precision to the end."""
    outer, inner = attached(half), attached(half)

    def again(m: Any, y: torch.Tensor) -> torch.Tensor:
        inner(torch.ones(1, 4))
        m(torch.ones(1, 4))
        last: torch.Tensor = m.layer(torch.ones(1, 4))
        m.dtypes.append(last.dtype)
        return last

    outer(torch.ones(1, 4), again)
    assert outer.dtypes == [HALF[half.name]] * 3
    assert inner.dtypes == [HALF[half.name]]
    assert autocast_is_off()


def test_interrupt_in_forward_can_be_cleaned_up(half: Precision) -> None:
    """After KeyboardInterrupt, for which PyTorch calls no hooks, leave_unfinished closes what was left open."""
    model = attached(half)

    def interrupt(m: Any, y: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model(torch.ones(1, 4), lambda m, y: m(torch.ones(1, 4), interrupt))
    half.leave_unfinished()
    assert autocast_is_off()
    assert model(torch.ones(1, 4)).dtype == torch.float32
    assert autocast_is_off()


def test_threads_do_not_disturb_each_other(half: Precision) -> None:
    """Two threads may be inside forward at the same time, each in its own autocast block."""
    model = attached(half)
    meet = threading.Barrier(2, timeout=60)
    off: list[bool] = []

    def wait(m: Any, y: torch.Tensor) -> torch.Tensor:
        meet.wait()
        return y

    def run() -> None:
        model(torch.ones(1, 4), wait)
        meet.wait()
        off.append(autocast_is_off())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert off == [True, True]
    assert model.dtypes == [HALF[half.name]] * 2


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_models_run_in_half_precision(fullgraph: bool) -> None:
    """A model that torch.compile returned computes in half precision, as one graph where that was asked for."""
    precision, model = Precision("bf16", CPU), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    graphs: list[set[Any]] = []

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append({node.meta["example_value"].dtype for node in graph.graph.nodes if node.op == "call_function"})
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=note, fullgraph=fullgraph)
    precision.attach(compiled)
    assert compiled(torch.ones(3, 4)).dtype == torch.float32
    assert graphs == [{torch.bfloat16}]
    assert autocast_is_off()
    assert model(torch.ones(3, 4)).dtype == torch.float32


def test_users_own_block(half: Precision) -> None:
    """autocast() runs the user's own operations in half precision, and puts no cast on their results."""
    with half.autocast():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == HALF[half.name]


def test_unknown_precision_is_told() -> None:
    """An unknown name is refused with all that are known."""
    for name in ("fp8", "FP16", "", None, torch.float16):
        with pytest.raises(InvalidValueError, match="'fp32', 'bf16', 'fp16'. Received: "):
            Precision(name, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", HALF)
def test_device_that_cannot_is_told_before_training(name: str) -> None:
    """A device without half precision is refused with what it can do."""
    with pytest.raises(InvalidValueError, match=f"meta device.*Received: precision='{name}'.*It can: 'fp32'."):
        Precision(name, torch.device("meta"))


@pytest.mark.cuda
@pytest.mark.parametrize("name", HALF)
def test_gpu_runs_in_half_precision(name: str) -> None:
    """On a GPU too the model computes in half precision and gives float32."""
    device = torch.device("cuda")
    model = Seen().to(device)
    Precision(name, device).attach(model)
    assert model(torch.ones(3, 4, device=device)).dtype == torch.float32
    assert model.dtypes == [HALF[name]]
