"""Accumulation, clipping, schedulers, precision and several optimizers, through real training."""

from typing import Any

import pytest
import torch
from torch import nn

import trainlab
from tests.training.trials import LineTrial, line
from trainlab import Batch, Epoch, LRScheduler
from trainlab.errors import InvalidStateError, InvalidValueError

StepMode = LRScheduler.StepMode


class DoubleTrial(LineTrial):
    """A linear regression in float64 with SGD, in data order; options are class attributes."""

    shuffle = False
    batch_size = 4
    average: bool | None = None
    clip: Any = None
    zero = True

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1, dtype=torch.float64)

    def build_training_data_loader(self) -> Any:
        x, y = line().tensors
        return trainlab.DataLoader(
            torch.utils.data.TensorDataset(x.double(), y.double()), batch_size=self.batch_size, shuffle=False
        )

    evaluate_batch = trainlab.Trial.evaluate_batch

    def __init__(self, context: Any) -> None:
        self.context = context
        self.seen, self.inputs, self.callbacks = [], [], {}
        self.model = context.wrap_model(self.build_model())
        self.optimizer = context.wrap_optimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9), average_aggregated_gradients=self.average
        )

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        x, y = batch
        loss = nn.functional.mse_loss(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer, clip_grads=self.clip, auto_zero_grads=self.zero)
        return {"loss": loss}


def trained(open_run: Any, length: Any, *, aggregation: int = 1, **options: Any) -> Any:
    """Train a DoubleTrial with options, and return it."""
    context = open_run(aggregation_frequency=aggregation)
    trial = type("Chosen", (DoubleTrial,), options)(context)
    trainlab.Trainer(trial, context).fit(max_length=length)
    return trial


def test_accumulation_equals_one_big_batch(open_run: Any) -> None:
    """Four batches of 4 with aggregation_frequency=4 train to the weights of one batch of 16."""
    small = trained(open_run, Batch(16), aggregation=4)
    big = trained(open_run, Batch(4), batch_size=16)
    for mine, theirs in zip(small.model.parameters(), big.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert small.context.progress.optimizer_steps == {"0": 4}


def test_averaging_can_be_switched_off(open_run: Any) -> None:
    """With average_aggregated_gradients=False gradients are summed: one step is the sum of the batches' gradients."""
    summed = trained(open_run, Batch(2), aggregation=2, average=False)
    averaged = trained(open_run, Batch(2), aggregation=2)
    start = trained(open_run, Batch(1), aggregation=2)  # no step is made in it
    for first, one, two in zip(
        start.model.parameters(), averaged.model.parameters(), summed.model.parameters(), strict=True
    ):
        torch.testing.assert_close(two - first, 2 * (one - first), rtol=1e-9, atol=1e-12)


def test_groups_are_counted_over_epochs(open_run: Any) -> None:
    """Groups of batches count from the run's beginning, not an epoch's; an unfinished last group is not applied."""
    trial = trained(open_run, Batch(35), aggregation=3)  # 16 batches an epoch
    assert trial.context.progress.optimizer_steps == {"0": 11}
    assert all(p.grad is not None for p in trial.model.parameters())


def test_clipping_sees_averaged_gradients(open_run: Any) -> None:
    """clip_grads gets the optimizer's parameters, with gradients averaged already, right before each step."""
    norms: list[float] = []

    def clip(self: Any, parameters: list[torch.Tensor]) -> None:
        norms.append(float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))))

    trained(open_run, Batch(4), aggregation=4, clip=clip)
    big = trained(open_run, Batch(1), batch_size=16, clip=clip)
    assert len(norms) == 2 and norms[0] == pytest.approx(norms[1], rel=1e-9) and big is not None


def test_keeping_gradients_needs_no_aggregation(open_run: Any) -> None:
    """auto_zero_grads=False keeps the gradients; together with aggregation it is an error at the call."""
    kept = trained(open_run, Batch(1), zero=False)
    assert all(p.grad is not None for p in kept.model.parameters())
    with pytest.raises(InvalidValueError, match="aggregation_frequency=2"):
        trained(open_run, Batch(1), aggregation=2, zero=False)


def test_backward_passes_per_step_divides_nothing(open_run: Any) -> None:
    """Two backward calls before a step add up, whatever backward_passes_per_step says."""

    class Twice(DoubleTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            context.wrapped_optimizers.clear()
            context._by_identity.clear()
            self.optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=0.1), 2)

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            x, y = batch
            for half in (slice(0, 2), slice(2, 4)):
                self.context.backward(nn.functional.mse_loss(self.model(x[half]), y[half]) / 2)
            self.gradient = self.model.weight.grad.clone()
            self.context.step_optimizer(self.optimizer)
            return {"loss": 0.0}

    context = open_run()
    trial = Twice(context)
    weight, bias = (p.detach().clone() for p in trial.model.parameters())
    trainlab.Trainer(trial, context).fit(max_length=Batch(1))
    x, y = (t[:4].double() for t in line().tensors)
    expected = (2 * (x * weight + bias - y) * x).mean()
    torch.testing.assert_close(trial.gradient.squeeze(), expected, rtol=1e-9, atol=1e-12)


def test_lbfgs_steps_with_a_closure(open_run: Any) -> None:
    """An optimizer that needs a closure gets it, and finds the least squares solution of its batch."""

    class Newton(DoubleTrial):
        batch_size = 64

        def __init__(self, context: Any) -> None:
            self.context = context
            self.callbacks = {}
            self.model = context.wrap_model(self.build_model())
            self.optimizer = context.wrap_optimizer(
                torch.optim.LBFGS(self.model.parameters(), max_iter=50, line_search_fn="strong_wolfe")
            )

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            x, y = batch

            def closure() -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = nn.functional.mse_loss(self.model(x), y)
                self.context.backward(loss)
                return loss

            self.context.step_optimizer(self.optimizer, closure=closure)
            return {"loss": closure()}

    context = open_run()
    trial = Newton(context)
    trainlab.Trainer(trial, context).fit(max_length=Batch(2))
    x, y = (t.double() for t in line().tensors)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x)], 1), y).solution.squeeze()
    torch.testing.assert_close(
        torch.stack([trial.model.weight.squeeze(), trial.model.bias.squeeze()]), solution, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("mode", "frequency", "aggregation", "records", "in_force"),
    [
        (StepMode.STEP_EVERY_BATCH, 1, 1, 12, [0, 1, 2, 3, 4, 5]),
        (StepMode.STEP_EVERY_BATCH, 2, 1, 12, [0, 0, 1, 1, 2, 2]),
        (StepMode.STEP_EVERY_BATCH, 1, 2, 12, [0, 2, 4]),
        (StepMode.STEP_EVERY_OPTIMIZER_STEP, 1, 2, 12, [0, 1, 2]),
        (StepMode.STEP_EVERY_OPTIMIZER_STEP, 2, 1, 12, [0, 0, 1, 1, 2, 2]),
        (StepMode.STEP_EVERY_EPOCH, 1, 1, 12, [0, 0, 0, 1, 1, 1]),
        (StepMode.STEP_EVERY_EPOCH, 1, 2, 12, [0, 1, 1]),
        (StepMode.MANUAL_STEP, 1, 1, 12, [0] * 6),
    ],
)
def test_the_rate_in_force_at_each_optimizer_step(
    open_run: Any, mode: StepMode, frequency: int, aggregation: int, records: int, in_force: list[int]
) -> None:
    """At each optimizer step the scheduler has stepped as often as its mode, frequency and the accumulation say."""
    rates: list[float] = []

    class Scheduled(LineTrial):
        shuffle = False

        def build_optimizer(self, model: Any) -> Any:
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            optimizer.register_step_pre_hook(lambda o, a, k: rates.append(o.param_groups[0]["lr"]))
            return optimizer

        def build_lr_scheduler(self, optimizer: Any) -> Any:
            return LRScheduler(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n), mode, frequency)

    context = open_run(aggregation_frequency=aggregation)
    trial = type("Some", (Scheduled,), {"records": records})(context)
    trainlab.Trainer(trial, context).fit(max_length=Batch(6))
    assert rates == [0.5**n for n in in_force]


def test_a_torch_scheduler_steps_once_an_epoch(open_run: Any) -> None:
    """A plain torch scheduler from build_lr_scheduler steps at each epoch's end."""

    class Plain(LineTrial):
        def build_lr_scheduler(self, optimizer: Any) -> Any:
            return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)

    context = open_run()
    trial = Plain(context)
    trainlab.Trainer(trial, context).fit(max_length=Epoch(2))
    assert trial.lr_scheduler.get_last_lr() == [pytest.approx(0.05 * 0.01)]


def test_reduce_on_plateau_steps_by_hand(open_run: Any) -> None:
    """ReduceLROnPlateau is stepped by the user with a validation metric, and no other mode is taken."""

    class Plateau(LineTrial):
        def build_lr_scheduler(self, optimizer: Any) -> Any:
            return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

        def build_callbacks(self) -> Any:
            trial = self

            class Step(trainlab.Callback):
                def on_validation_end(self, metrics: dict[str, Any]) -> None:
                    trial.lr_scheduler.step(1.0)

            return {"step": Step()}

    context = open_run()
    trial = Plateau(context)
    trainlab.Trainer(trial, context).fit(max_length=Batch(3), validation_period=Batch(1))
    assert trial.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 / 4)
    with pytest.raises(InvalidValueError, match="MANUAL_STEP"):
        LRScheduler(trial.lr_scheduler, StepMode.STEP_EVERY_BATCH)


class Gan(LineTrial):
    """Two models and optimizers of differing step counts."""

    def build_model(self) -> Any:
        return {"generator": nn.Linear(1, 1), "discriminator": nn.Linear(1, 1)}

    def build_optimizer(self, model: Any) -> Any:
        return {name: torch.optim.Adam(m.parameters(), lr=0.01) for name, m in model.items()}

    evaluate_batch = trainlab.Trial.evaluate_batch

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        real = batch[1]
        fake = self.models["generator"](torch.randn_like(real))
        score = self.models["discriminator"]
        loss = (score(fake.detach()) - score(real)).mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizers["discriminator"])
        if batch_idx % 3 == 2:
            self.context.backward(-score(fake).mean())
            self.context.step_optimizer(self.optimizers["generator"])
        return {"loss": loss}


def test_two_optimizers_are_counted_apart(open_run: Any) -> None:
    """A GAN whose generator steps at every third batch counts the steps of each optimizer by its name."""
    context = open_run()
    trainlab.Trainer(Gan(context), context).fit(max_length=Batch(10))
    assert context.progress.optimizer_steps == {"generator": 3, "discriminator": 10}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(open_run: Any, precision: str) -> None:
    """In half precision forward passes compute in it, outputs and weights are float32, and the loss falls."""
    seen: list[torch.dtype] = []

    class Half(LineTrial):
        def build_model(self) -> nn.Module:
            model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
            model[0].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
            return model

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            assert self.model(batch[0]).dtype == torch.float32
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run(precision=precision)
    trial = Half(context)
    trainer = trainlab.Trainer(trial, context)
    before = trainer.evaluate()["loss"]
    result = trainer.fit(max_length=Epoch(3))
    assert result.metrics["loss"] < before / 4
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert all(p.dtype == torch.float32 for p in trial.model.parameters())


def test_a_step_that_the_scaler_skips_is_not_counted(open_run: Any) -> None:
    """Under fp16 a step with infinite gradients lowers the scale and counts as no optimizer step."""

    class Overflowing(LineTrial):
        def build_lr_scheduler(self, optimizer: Any) -> Any:
            halving = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
            return LRScheduler(halving, StepMode.STEP_EVERY_OPTIMIZER_STEP)

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            x, y = batch
            loss = nn.functional.mse_loss(self.model(x), y) * 1e-3
            self.context.backward(loss * float("inf") if batch_idx == 1 else loss)
            self.context.step_optimizer(self.optimizer)
            return {"loss": loss}

    context = open_run(precision="fp16")
    trial = Overflowing(context)
    scale = context.scaler.get_scale()
    trainlab.Trainer(trial, context).fit(max_length=Batch(3))
    assert context.progress.optimizer_steps == {"0": 2}
    assert trial.lr_scheduler.get_last_lr() == [pytest.approx(0.05 / 4)]
    assert context.scaler.get_scale() == scale / 2


def test_a_scaler_of_ones_own(open_run: Any) -> None:
    """A wrapped scaler is scaled, passed and updated by the user; the order of wrapping is checked."""

    class Scaling(LineTrial):
        def __init__(self, context: Any) -> None:
            self.scaler = context.wrap_scaler(torch.amp.GradScaler("cpu", init_scale=8.0))
            super().__init__(context)

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            x, y = batch
            loss = nn.functional.mse_loss(self.model(x), y)
            self.context.backward(self.scaler.scale(loss))
            self.context.step_optimizer(self.optimizer, scaler=self.scaler)
            self.scaler.update()
            return {"loss": loss}

    context = open_run()
    trial = Scaling(context)
    trainlab.Trainer(trial, context).fit(max_length=Batch(5))
    plain_context = open_run()
    plain = LineTrial(plain_context)
    trainlab.Trainer(plain, plain_context).fit(max_length=Batch(5))
    torch.testing.assert_close(trial.model.weight, plain.model.weight)
    with pytest.raises(InvalidStateError, match="before wrap_model|training has begun"):
        context.wrap_scaler(trial.scaler)
    with pytest.raises(InvalidStateError, match="scale by themselves"):
        open_run(precision="fp16").wrap_scaler(trial.scaler)


def test_use_amp_is_fp16(open_run: Any) -> None:
    """experimental.use_amp() before wrap_model trains in fp16 with a scaler; after it, it is an error."""

    class Amp(LineTrial):
        def __init__(self, context: Any) -> None:
            context.experimental.use_amp()
            super().__init__(context)

    context = open_run()
    trainlab.Trainer(Amp(context), context).fit(max_length=Batch(2))
    assert context.scaler is not None and context.precision.name == "fp16"
    late = open_run()
    LineTrial(late)
    with pytest.raises(InvalidStateError, match="before wrap_model"):
        late.experimental.use_amp()
