"""When schedulers step, and that their state comes back exactly."""

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers

from trainlab.checkpoint import decode, encode
from trainlab.errors import CheckpointMismatchError, InvalidTypeError, InvalidValueError
from trainlab.optim import LRScheduler

# torch warns where a schedule is built before the optimizer's first step is made, which is how most are.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

Mode = LRScheduler.StepMode
BATCH, EPOCH, OPTIMIZER_STEP = Mode.STEP_EVERY_BATCH, Mode.STEP_EVERY_EPOCH, Mode.STEP_EVERY_OPTIMIZER_STEP


def counting(mode: LRScheduler.StepMode, frequency: int = 1) -> LRScheduler:
    """A schedule whose rate is the number of its steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return LRScheduler(torch_schedulers.LambdaLR(optimizer, float), mode, frequency)


def rates_at_optimizer_steps(scheduler: LRScheduler, aggregation: int, epoch_length: int, batches: int) -> list[float]:
    """Train as the Trainer does, and note the rate in force at each optimizer step."""
    rates, steps = [], 0
    for trained in range(1, batches + 1):
        before = steps
        if trained % aggregation == 0:
            rates.append(scheduler.optimizer.param_groups[0]["lr"])
            steps += 1
        scheduler.step_after_batch(
            batches_trained=trained,
            aggregation=aggregation,
            optimizer_steps_before=before,
            optimizer_steps_after=steps,
        )
        if trained % epoch_length == 0:
            scheduler.step_after_epoch(
                epochs_trained=trained // epoch_length, batches_trained=trained, aggregation=aggregation
            )
    return rates


@pytest.mark.parametrize(
    ("mode", "frequency", "aggregation", "batches", "steps_after"),
    [
        (BATCH, 1, 1, 6, [0, 1, 2, 3, 4, 5]),
        (BATCH, 2, 1, 6, [1, 3, 5]),
        (BATCH, 1, 2, 6, [1, 1, 3, 3, 5, 5]),
        (BATCH, 3, 2, 12, [3, 5, 9, 11]),
        (OPTIMIZER_STEP, 1, 2, 6, [1, 3, 5]),
        (OPTIMIZER_STEP, 2, 2, 8, [3, 7]),
        (OPTIMIZER_STEP, 3, 2, 12, [5, 11]),
        (EPOCH, 1, 1, 9, [2, 5, 8]),
        (EPOCH, 2, 1, 12, [5, 11]),
        (EPOCH, 1, 2, 12, [1, 5, 7, 11]),
        (EPOCH, 1, 7, 21, [6, 6, 13, 13, 20, 20, 20]),
        (Mode.MANUAL_STEP, 1, 2, 12, []),
    ],
)
def test_rate_in_force_at_every_optimizer_step(
    mode: LRScheduler.StepMode, frequency: int, aggregation: int, batches: int, steps_after: list[int]
) -> None:
    """Each optimizer step uses the rate that the documented table of step modes gives."""
    rates = rates_at_optimizer_steps(counting(mode, frequency), aggregation, epoch_length=3, batches=batches)
    optimizer_batches = range(aggregation - 1, batches, aggregation)
    assert rates == [sum(after < batch for after in steps_after) for batch in optimizer_batches]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 60))
def test_a_schedule_of_batches_loses_none(frequency: int, aggregation: int, groups: int) -> None:
    """Whatever the accumulation, a BATCH schedule has stepped once for every `frequency` batches of finished groups."""
    scheduler = counting(BATCH, frequency)
    rates_at_optimizer_steps(scheduler, aggregation, epoch_length=5, batches=groups * aggregation)
    assert scheduler.get_last_lr() == [groups * aggregation // frequency]


def test_only_real_optimizer_steps_count() -> None:
    """A batch whose step was skipped does not move an OPTIMIZER_STEP schedule, several steps in one batch all do."""
    scheduler = counting(OPTIMIZER_STEP, 2)
    rates = []
    for trained, (before, after) in enumerate([(0, 0), (0, 1), (1, 1), (1, 5), (5, 6)], 1):
        scheduler.step_after_batch(
            batches_trained=trained, aggregation=1, optimizer_steps_before=before, optimizer_steps_after=after
        )
        rates += scheduler.get_last_lr()
    assert rates == [0, 0, 0, 2, 3]


def test_manual_schedule_steps_on_a_metric() -> None:
    """ReduceLROnPlateau works with MANUAL_STEP, its metric given to step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LRScheduler(torch_schedulers.ReduceLROnPlateau(optimizer, patience=0), Mode.MANUAL_STEP)
    for metric in (1.0, 2.0):
        scheduler.step(metric)
    assert scheduler.get_last_lr() == [pytest.approx(0.1)]
    assert scheduler.optimizer is optimizer


def test_step_modes_have_fixed_numbers() -> None:
    """StepMode(int) gives the mode that configurations name by number."""
    assert [Mode(number).name for number in (1, 2, 3, 4)] == [
        "STEP_EVERY_EPOCH",
        "STEP_EVERY_BATCH",
        "MANUAL_STEP",
        "STEP_EVERY_OPTIMIZER_STEP",
    ]


def test_wrong_arguments_are_told() -> None:
    """What is no torch scheduler, no StepMode or no frequency is refused with what was received."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    right = torch_schedulers.StepLR(optimizer, 1)
    with pytest.raises(InvalidTypeError, match="Received: .*SGD"):
        LRScheduler(optimizer, BATCH)
    with pytest.raises(InvalidTypeError, match="STEP_EVERY_OPTIMIZER_STEP.*Received: 2"):
        LRScheduler(right, 2)  # type: ignore[arg-type]
    for frequency in (0, -1, True, 1.0):
        with pytest.raises(InvalidValueError, match=f"Received: {frequency!r}"):
            LRScheduler(right, BATCH, frequency)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="MANUAL_STEP"):
        LRScheduler(torch_schedulers.ReduceLROnPlateau(optimizer), EPOCH)


class Decay:
    """A callable with a state of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 0.9**self.calls


def _closure() -> Callable[[int], float]:
    base = 0.93
    return lambda step: base**step


class Double(float):
    """A class that is used as a function."""

    calls = 0

    def __new__(cls, step: int) -> "Double":
        return super().__new__(cls, step * 2)


def _chained(optimizer: Any) -> Any:
    parts = [
        torch_schedulers.ConstantLR(optimizer, 0.3, 4),
        torch_schedulers.LambdaLR(optimizer, _closure()),
        torch_schedulers.ExponentialLR(optimizer, 0.9),
    ]
    return torch_schedulers.ChainedScheduler(parts, optimizer=optimizer)


def _sequential(optimizer: Any) -> Any:
    parts = [
        torch_schedulers.LinearLR(optimizer, 0.1, total_iters=3),
        torch_schedulers.LambdaLR(optimizer, [Decay(), float]),
        torch_schedulers.CosineAnnealingLR(optimizer, 10),
    ]
    return torch_schedulers.SequentialLR(optimizer, parts, milestones=[3, 8])


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "ChainedScheduler": _chained,
    "ConstantLR": lambda o: torch_schedulers.ConstantLR(o, 0.3, 6),
    "CosineAnnealingLR": lambda o: torch_schedulers.CosineAnnealingLR(o, 5, 0.01),
    "CosineAnnealingWarmRestarts": lambda o: torch_schedulers.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: torch_schedulers.CyclicLR(o, 0.01, 0.5, 3, mode="triangular2"),
    "CyclicLR, own function": lambda o: torch_schedulers.CyclicLR(
        o, 0.01, 0.5, 3, scale_fn=lambda x: math.exp(-x), scale_mode="iterations"
    ),
    "CyclicLR, own object": lambda o: torch_schedulers.CyclicLR(o, 0.01, 0.5, 3, scale_fn=Decay()),
    "CyclicLR, class": lambda o: torch_schedulers.CyclicLR(o, 0.01, 0.5, 3, scale_fn=float),
    "ExponentialLR": lambda o: torch_schedulers.ExponentialLR(o, 0.87),
    "LambdaLR": lambda o: torch_schedulers.LambdaLR(o, _closure()),
    "LambdaLR, object": lambda o: torch_schedulers.LambdaLR(o, Decay()),
    "LambdaLR, class": lambda o: torch_schedulers.LambdaLR(o, [float, Double]),
    "LinearLR": lambda o: torch_schedulers.LinearLR(o, 0.1, 0.9, 9),
    "MultiStepLR": lambda o: torch_schedulers.MultiStepLR(o, [2, 6, 6, 9]),
    "MultiplicativeLR": lambda o: torch_schedulers.MultiplicativeLR(o, lambda step: 0.95),
    "OneCycleLR": lambda o: torch_schedulers.OneCycleLR(o, 0.7, total_steps=16),
    "PolynomialLR": lambda o: torch_schedulers.PolynomialLR(o, 11, 2.0),
    "ReduceLROnPlateau": lambda o: torch_schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 7),
    "SequentialLR": _sequential,
    "StepLR": lambda o: torch_schedulers.StepLR(o, 3, 0.5),
}


class Problem:
    """A tiny training whose weights tell every rate that was in force."""

    def __init__(self, schedule: Callable[[Any], Any], as_tensor: bool = False) -> None:
        self.weights = [torch.nn.Parameter(torch.linspace(0.1, 1, 3)) for _ in range(2)]
        groups = [
            {"params": [w], "lr": torch.tensor(lr) if as_tensor else lr}
            for w, lr in zip(self.weights, (0.5, 0.3), strict=True)
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.scheduler = LRScheduler(schedule(self.optimizer), Mode.MANUAL_STEP)

    def train(self, steps: range) -> list[list[float]]:
        rates = []
        for step in steps:
            self.optimizer.zero_grad()
            sum((w**2).sum() * 0.1 for w in self.weights).backward()
            self.optimizer.step()
            plateau = isinstance(self.scheduler.scheduler, torch_schedulers.ReduceLROnPlateau)
            self.scheduler.step(*([float(step % 4)] if plateau else []))
            rates.append([float(rate) for rate in self.scheduler.get_last_lr()])
        return rates

    def save(self) -> str:
        """All state as a line of JSON, so that it is data and nothing is shared."""
        tree = {"scheduler": self.scheduler.state_dict(), "optimizer": self.optimizer.state_dict()}
        tree["weights"] = [w.detach() for w in self.weights]
        structure, tensors = encode(tree)
        return json.dumps([structure, {name: t.tolist() for name, t in tensors.items()}], allow_nan=False)

    def load(self, text: str) -> None:
        structure, tensors = json.loads(text)
        tree = decode(structure, {name: torch.tensor(value) for name, value in tensors.items()})
        for weight, saved in zip(self.weights, tree["weights"], strict=True):
            weight.data.copy_(saved)
        self.optimizer.load_state_dict(tree["optimizer"])
        self.scheduler.load_state_dict(tree["scheduler"])


def test_every_scheduler_of_torch_is_tried() -> None:
    """The schedules resumed below are all that this version of torch has."""
    known = {name.partition(",")[0] for name in SCHEDULES}
    assert set(torch_schedulers.__all__) - {"LRScheduler"} <= known


@pytest.mark.parametrize("name", SCHEDULES)
def test_resumed_schedule_goes_on_bit_by_bit(name: str) -> None:
    """A schedule built anew and loaded from data gives the rates and weights of the uninterrupted one."""
    whole = Problem(SCHEDULES[name])
    expected = whole.train(range(15))
    for stop in (0, 1, 5, 9):
        first = Problem(SCHEDULES[name])
        rates = first.train(range(stop))
        second = Problem(SCHEDULES[name])
        second.load(first.save())
        assert rates + second.train(range(stop, 15)) == expected
        assert all(torch.equal(a, b) for a, b in zip(whole.weights, second.weights, strict=True))


def test_state_with_rates_as_tensors_is_a_copy() -> None:
    """Rates that are tensors are saved as they were, and do not change when training goes on."""
    problem = Problem(SCHEDULES["ExponentialLR"], as_tensor=True)
    problem.train(range(2))
    state = problem.scheduler.state_dict()
    before = [float(rate) for rate in state["state"]["_last_lr"]]
    problem.train(range(2, 4))
    assert [float(rate) for rate in state["state"]["_last_lr"]] == before
    assert [float(rate) for rate in problem.scheduler.get_last_lr()] != before


def test_functions_in_a_state_stay_those_of_the_program() -> None:
    """A scheduler of one's own may hold functions: they are left out of the state and kept on load."""

    class Own(torch_schedulers.LRScheduler):
        def __init__(self, optimizer: torch.optim.Optimizer, curve: Callable[[int], float]) -> None:
            self.curve = curve
            super().__init__(optimizer)

        def get_lr(self) -> list[float]:  # type: ignore[override]
            return [self.curve(self.last_epoch) for _ in self.optimizer.param_groups]

    saved = Problem(lambda optimizer: Own(optimizer, lambda step: 1 / (1 + step)))
    saved.train(range(3))
    loaded = Problem(lambda optimizer: Own(optimizer, lambda step: 5.0 * step))
    loaded.load(saved.save())
    assert loaded.train(range(3, 4)) == [[20.0, 20.0]]


def test_state_of_another_scheduler_is_refused() -> None:
    """Loading the state of another kind of scheduler, or of another combination, names both."""
    state = Problem(SCHEDULES["StepLR"]).scheduler.state_dict()
    with pytest.raises(CheckpointMismatchError, match="Expected: LinearLR. Received: 'StepLR'"):
        Problem(SCHEDULES["LinearLR"]).scheduler.load_state_dict(state)
    chained = Problem(_chained).scheduler.state_dict()
    shorter = Problem(lambda o: torch_schedulers.ChainedScheduler([torch_schedulers.StepLR(o, 1)], optimizer=o))
    with pytest.raises(CheckpointMismatchError, match="Expected: 1. Received: 3"):
        shorter.scheduler.load_state_dict(chained)


def test_loading_a_schedule_warns_of_nothing() -> None:
    """A resume in the middle of a schedule gives no warning, as nothing is wrong with it."""
    first = Problem(SCHEDULES["CosineAnnealingLR"])
    first.train(range(3))
    text = first.save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = Problem(SCHEDULES["CosineAnnealingLR"])
        second.load(text)
        second.train(range(3, 5))
