"""Optimizer steps, aggregation, schedulers and precision."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.compat.trials import LR, OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch

StepMode = pytorch.LRScheduler.StepMode


class Scheduled(OneWeightTrial):
    """Three batches an epoch; the learning rate is the number of steps that the scheduler made."""

    records = 12
    mode, frequency = StepMode.STEP_EVERY_EPOCH, 1

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=1.0))
        optimizer.register_step_pre_hook(lambda o, *_: self.rates.append(o.param_groups[0]["lr"]))
        self.optimizer = optimizer
        self.rates: list[float] = []
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 * step)
        self.scheduler = context.wrap_lr_scheduler(scheduler, self.mode, frequency=self.frequency)


# Mode, frequency, aggregation, batches, and after which batches the scheduler stepped on Determined. One row is
# mended: every second optimizer step means 3 and 7.
TABLE = [
    (StepMode.STEP_EVERY_BATCH, 1, 1, 6, [0, 1, 2, 3, 4, 5]),
    (StepMode.STEP_EVERY_BATCH, 2, 1, 6, [1, 3, 5]),
    (StepMode.STEP_EVERY_BATCH, 1, 2, 6, [1, 1, 3, 3, 5, 5]),
    (StepMode.STEP_EVERY_BATCH, 3, 2, 12, [3, 5, 9, 11]),
    (StepMode.STEP_EVERY_OPTIMIZER_STEP, 1, 2, 6, [1, 3, 5]),
    (StepMode.STEP_EVERY_OPTIMIZER_STEP, 2, 2, 8, [3, 7]),
    (StepMode.STEP_EVERY_OPTIMIZER_STEP, 3, 2, 12, [5, 11]),
    (StepMode.STEP_EVERY_EPOCH, 1, 1, 9, [2, 5, 8]),
    (StepMode.STEP_EVERY_EPOCH, 2, 1, 12, [5, 11]),
    (StepMode.STEP_EVERY_EPOCH, 1, 2, 12, [1, 5, 7, 11]),
    (StepMode.STEP_EVERY_EPOCH, 1, 7, 21, [6, 6, 13, 13, 20, 20, 20]),
    (StepMode.MANUAL_STEP, 1, 1, 6, []),
]


@pytest.mark.parametrize(("mode", "frequency", "aggregation", "batches", "steps"), TABLE)
def test_the_rate_in_force_at_each_optimizer_step(
    open_run: Open, mode: Any, frequency: int, aggregation: int, batches: int, steps: list[int]
) -> None:
    """Each optimizer step is made with the learning rate that it had on Determined."""

    class This(Scheduled):
        pass

    This.mode, This.frequency = mode, frequency
    context = open_run(aggregation_frequency=aggregation)
    trial, _ = fit(context, This(context), max_length=Batch(batches))
    stepping = range(aggregation - 1, batches, aggregation)
    assert trial.rates == [sum(step < batch for step in steps) for batch in stepping]


def test_manual_steps_count_and_are_saved(open_run: Open) -> None:
    """With MANUAL_STEP the user's own step() counts, and its state is restored."""

    class Manual(Scheduled):
        mode = StepMode.MANUAL_STEP

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            metrics = super().train_batch(batch, epoch_idx, batch_idx)
            self.scheduler.step()
            return metrics

    context = open_run()
    _, counter = fit(context, Manual(context), max_length=Batch(3))
    context = open_run()
    latest = counter.given("on_checkpoint_upload_end")[0]
    trial, _ = fit(context, Manual(context), max_length=Batch(5), latest_checkpoint=latest)
    assert trial.rates == [3.0, 4.0]


def test_the_rate_inside_train_batch_is_that_of_the_batch(open_run: Open) -> None:
    """get_last_lr() in train_batch tells the rate of this batch's step: schedulers step after it has returned."""

    class Asking(Scheduled):
        mode = StepMode.STEP_EVERY_BATCH

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            super().train_batch(batch, epoch_idx, batch_idx)
            return {"lr": self.scheduler.get_last_lr()[0], "same": self.context.lr_schedulers[0].get_last_lr()[0]}

    context = open_run()
    _, counter = fit(context, Asking(context), max_length=Batch(4))
    assert [b["lr"] for b in counter.given("on_training_workload_end")[0][1]] == [0, 1, 2, 3]
    assert [b["same"] for b in counter.given("on_training_workload_end")[0][1]] == [0, 1, 2, 3]


def test_the_modes_have_their_numbers() -> None:
    """Configuration files that name a mode by its number still mean the same."""
    assert [StepMode(number).name for number in (1, 2, 3, 4)] == [
        "STEP_EVERY_EPOCH",
        "STEP_EVERY_BATCH",
        "MANUAL_STEP",
        "STEP_EVERY_OPTIMIZER_STEP",
    ]


def test_wrong_schedulers_are_refused(open_run: Open) -> None:
    """A mode that is none, a plateau scheduler that would step by itself, and a strange optimizer are errors."""
    context = open_run()
    trial = OneWeightTrial(context)
    constant = torch.optim.lr_scheduler.ConstantLR(trial.optimizer)
    with pytest.raises(TypeError, match="StepMode"):
        context.wrap_lr_scheduler(constant, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MANUAL_STEP"):
        context.wrap_lr_scheduler(
            torch.optim.lr_scheduler.ReduceLROnPlateau(trial.optimizer), StepMode.STEP_EVERY_EPOCH
        )
    stranger = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))
    with pytest.raises(ValueError, match="wrap_optimizer"):
        context.wrap_lr_scheduler(stranger, StepMode.MANUAL_STEP)


@pytest.mark.parametrize(("average", "divisor"), [(None, 4), (True, 4), (False, 1)])
def test_aggregation_is_one_big_batch(open_run: Open, average: bool | None, divisor: int) -> None:
    """Four batches' gradients make one step: the mean of them unless that is switched off; the rest is not applied."""

    class Aggregating(OneWeightTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
            self.optimizer = context.wrap_optimizer(optimizer, average_aggregated_gradients=average)

    context = open_run(aggregation_frequency=4)
    trial, _ = fit(context, Aggregating(context), max_length=Batch(10))
    weight, by_hand = 0.0, []
    for batch_idx in range(10):
        if (batch_idx + 1) % 4 == 0:
            weight -= 0.01 * 4 * 2 * (weight - 1) / divisor
        by_hand.append(weight)
    assert trial.weights == pytest.approx(by_hand, rel=1e-6)


def test_groups_count_over_epochs(open_run: Open) -> None:
    """A group of batches is counted from the run's beginning and goes on over an epoch's end and over a resume."""

    class ThreeBatches(OneWeightTrial):
        records = 12

    stepped = [b % 2 == 1 for b in range(6)]
    context = open_run(aggregation_frequency=2)
    trial, _ = fit(context, ThreeBatches(context), max_length=Batch(6))
    changed = [a != b for a, b in zip([0.0, *trial.weights], trial.weights, strict=False)]
    assert changed == stepped
    context = open_run(aggregation_frequency=2)
    _, counter = fit(context, ThreeBatches(context), max_length=Batch(3))
    context = open_run(aggregation_frequency=2)
    latest = counter.given("on_checkpoint_upload_end")[0]
    resumed, _ = fit(context, ThreeBatches(context), max_length=Batch(6), latest_checkpoint=latest)
    assert resumed.weights == trial.weights[3:]


def test_gradients_kept_by_the_user_need_no_aggregation(open_run: Open) -> None:
    """auto_zero_grads=False leaves the gradients, and together with aggregation it is an error at the call."""

    class Keeping(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            loss = self.model(batch[0]).mean()
            self.context.backward(loss)
            self.context.step_optimizer(self.optimizer, auto_zero_grads=False)
            self.weights.append(float(self.model.weight.grad))
            return loss

    context = open_run()
    trial, _ = fit(context, Keeping(context), max_length=Batch(3))
    assert trial.weights == [1, 2, 3]
    context = open_run(aggregation_frequency=2)
    with pytest.raises(ValueError, match="auto_zero_grads"):
        fit(context, Keeping(context), max_length=Batch(3))


def test_clipping_gets_averaged_gradients_of_the_parameters(open_run: Open) -> None:
    """clip_grads is called once a step with the list of the optimizer's parameters, after averaging."""
    given: list[tuple[int, float]] = []

    class Clipping(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
            self.context.backward(loss)
            self.context.step_optimizer(self.optimizer, self.clip)
            return loss

        def clip(self, parameters: Any) -> None:
            assert isinstance(parameters, list)
            given.append((len(parameters), float(parameters[0].grad)))
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)

    context = open_run(aggregation_frequency=2)
    trial, _ = fit(context, Clipping(context), max_length=Batch(2))
    assert given == [(1, -2.0)]
    assert trial.weight == pytest.approx(LR * 0.5, rel=1e-4)


@pytest.mark.parametrize("passes", [0, -1])
def test_passes_below_one_are_an_error(open_run: Open, passes: int) -> None:
    """backward_passes_per_step counts from one."""
    context = open_run()
    trial = OneWeightTrial(context)
    with pytest.raises(ValueError, match="backward_passes_per_step"):
        context.wrap_optimizer(torch.optim.Adam(trial.model.parameters()), backward_passes_per_step=passes)


def test_several_passes_divide_nothing(open_run: Open) -> None:
    """Two backward calls for a step of an optimizer that announces them add up, as without Horovod."""

    class TwoPasses(OneWeightTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
            self.optimizer = context.wrap_optimizer(optimizer, backward_passes_per_step=2)

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            for _ in range(2):
                self.context.backward(self.model(batch[0]).mean())
            self.context.step_optimizer(self.optimizer)
            return {"weight": self.weight}

    context = open_run()
    trial, _ = fit(context, TwoPasses(context), max_length=Batch(1))
    assert trial.weight == pytest.approx(-0.02)


def test_backward_takes_what_tensors_take(open_run: Open) -> None:
    """A gradient for a loss with many elements, a second backward, and gradients of gradients."""
    context = open_run()
    trial = OneWeightTrial(context)
    x = torch.full((3, 1), 2.0)
    loss = trial.model(x)
    context.backward(loss, gradient=torch.ones(3, 1), retain_graph=True)
    context.backward(loss, torch.ones(3, 1))
    assert trial.model.weight.grad.item() == 12
    trial.optimizer.zero_grad()
    with pytest.warns(UserWarning, match="create_graph"):  # torch's own
        context.backward((trial.model(x) ** 2).mean(), create_graph=True)
    assert trial.model.weight.grad.requires_grad
    trial.optimizer.zero_grad()


def test_a_scaler_is_given_back_and_comes_first(open_run: Open) -> None:
    """wrap_scaler returns the scaler itself, must come before wrap_model, once, and not with use_amp."""
    context = open_run()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert context.wrap_scaler(scaler) is scaler
    with pytest.raises(RuntimeError, match="once"):
        context.wrap_scaler(scaler)
    with pytest.raises(RuntimeError, match="scaler"):
        context.experimental.use_amp()
    context = open_run()
    OneWeightTrial(context)
    with pytest.raises(RuntimeError, match="before wrap_model"):
        context.wrap_scaler(scaler)
    with pytest.raises(RuntimeError, match="before wrap_model"):
        context.experimental.use_amp()
    context = open_run()
    context.experimental.use_amp()
    with pytest.raises(RuntimeError, match="use_amp"):
        context.wrap_scaler(scaler)


class UserScaled(OneWeightTrial):
    """Scales by itself, and writes down scale and weight."""

    enabled = True
    growth_interval = 3

    def __init__(self, context: Any) -> None:
        self.scaler = context.wrap_scaler(
            torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=self.growth_interval, enabled=self.enabled)
        )
        super().__init__(context)
        self.scales: list[float] = []

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.context.backward(self.scaler.scale(loss))
        self.context.step_optimizer(self.optimizer, scaler=self.scaler)
        self.scaler.update()
        self.weights.append(self.weight)
        self.scales.append(self.scaler.get_scale())
        return {"loss": loss}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_users_scaler_steps_as_without_one(open_run: Open, enabled: bool) -> None:
    """With a scaler of one's own each update is the unscaled one, and a disabled scaler is fine."""

    class This(UserScaled):
        pass

    This.enabled = enabled
    plain, _ = fit(open_run(), max_length=Batch(8))
    context = open_run()
    scaled, _ = fit(context, This(context), max_length=Batch(8))
    assert scaled.weights == pytest.approx(plain.weights, abs=1e-6)
    assert scaled.scales == ([2, 2, 4, 4, 4, 8, 8, 8] if enabled else [1] * 8)


def test_a_scalers_state_is_saved(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    """A resumed run goes on with the scale that it had; one without a scaler warns and goes on."""
    context = open_run()
    _, counter = fit(context, UserScaled(context), max_length=Batch(4))
    latest = counter.given("on_checkpoint_upload_end")[0]
    context = open_run()
    trial, _ = fit(context, UserScaled(context), max_length=Batch(8), latest_checkpoint=latest)
    assert trial.scales == [4, 8, 8, 8]
    assert not any("gradient scaler" in message for message in caplog.messages)
    fit(open_run(), max_length=Batch(5), latest_checkpoint=latest)
    assert any("gradient scaler" in message for message in caplog.messages)


def test_automatic_mixed_precision(open_run: Open) -> None:
    """use_amp: models compute in half and give float32; a scale that is too large falls, then updates are float's."""
    seen = []

    class Nested(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            seen.append(y.dtype)
            return {"y": [y], "both": (y, 1)}

    class Amp(OneWeightTrial):
        def __init__(self, context: Any) -> None:
            self.callbacks, self.context = {}, context
            self.weights, self.scales = [], []
            context.experimental.use_amp()
            model = Nested(1, 1, bias=False)
            nn.init.zeros_(model.weight)
            self.model = context.wrap_model(model)
            self.optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=LR))

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            out = self.model(batch[0])
            assert out["y"][0].dtype is out["both"][0].dtype is torch.float32
            loss = nn.functional.mse_loss(out["y"][0], batch[1])
            self.context.backward(loss)
            self.context.step_optimizer(self.optimizer)
            self.weights.append(self.weight)
            self.scales.append(self.context.scaler.get_scale())
            return {"loss": loss}

        def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.model(batch[0])["y"][0].mean()}

    plain, _ = fit(open_run(), max_length=Batch(8))
    context = open_run()
    amp, _ = fit(context, Amp(context), max_length=Batch(16))
    assert set(seen) == {torch.float16}
    skipped = amp.weights.count(0.0)
    assert 0 < skipped <= 8 and amp.scales[skipped] == amp.scales[-1] == amp.scales[0] / 2**skipped
    assert amp.weights[skipped : skipped + 8] == pytest.approx(plain.weights, abs=1e-3)
    assert list(context.progress.optimizer_steps.values()) == [16 - skipped]
