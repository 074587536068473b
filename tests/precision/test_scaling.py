"""Gradient scaling: which steps are made, and that each is the float one."""

from typing import Any

import pytest
import torch
from torch import nn

from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.precision import GradientScaling, Precision

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
VARIANTS = [pytest.param({"foreach": True}, id="foreach"), pytest.param({"fused": True}, id="fused")]


def scaling(device: str = "cpu", **options: Any) -> GradientScaling:
    """A gradient scaling as fp16 makes one, small numbers first so that it changes soon."""
    return GradientScaling(torch.amp.GradScaler(device, **{"init_scale": 1024.0, "growth_interval": 3, **options}))


def parameter_with(gradient: float, scale: float = 1.0, device: str = "cpu") -> nn.Parameter:
    """A parameter of ones whose gradient is already scaled."""
    parameter = nn.Parameter(torch.ones(2, device=device))
    parameter.grad = torch.full((2,), gradient * scale, device=device)
    return parameter


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_overflow_skips_the_step_and_lowers_the_scale(device: str, variant: dict[str, bool]) -> None:
    """A loss that overflows in half precision leaves the weights alone, is told as skipped, and the scale falls."""
    precision = Precision("fp16", torch.device(device))
    assert precision.scaler is not None
    ours = GradientScaling(precision.scaler)
    model = nn.Linear(4, 1, bias=False).to(device)
    precision.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **variant)
    before = model.weight.detach().clone()
    # 65,536 times this gradient is beyond the largest float16.
    loss = model(torch.full((1, 4), 100.0, device=device)).sum()
    ours.scale(loss).backward()
    scale = precision.scaler.get_scale()
    assert ours.step(optimizer) is False
    ours.update()
    assert torch.equal(model.weight, before)
    assert precision.scaler.get_scale() == scale * precision.scaler.get_backoff_factor()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_update_is_the_float_one(device: str, variant: dict[str, bool]) -> None:
    """In fp16 each update equals the float one within 1e-4; the scale stays, and grows after the growth interval."""
    precision = Precision("fp16", torch.device(device))
    ours = scaling(device, init_scale=256.0)
    torch.manual_seed(0)
    model, twin = nn.Linear(1, 1).to(device), nn.Linear(1, 1).to(device)
    precision.attach(model)
    x = torch.linspace(0, 1, 8, device=device)[:, None]
    scales = []
    for _ in range(7):
        twin.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **variant)
        ours.scale(nn.functional.mse_loss(model(x), 2 * x)).backward()
        assert ours.step(optimizer) is True
        ours.update()
        optimizer.zero_grad()
        reference = torch.optim.SGD(twin.parameters(), lr=0.05)
        nn.functional.mse_loss(twin(x), 2 * x).backward()
        reference.step()
        reference.zero_grad()
        for made, wanted in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(made, wanted, rtol=0, atol=1e-4)
        scales.append(ours.scaler.get_scale())
    assert scales == [256, 256, 512, 512, 512, 1024, 1024]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_optimizer_is_told_by_itself(variant: dict[str, bool]) -> None:
    """With two optimizers only the one with an infinite gradient is skipped; the scale falls once for both."""
    ours = scaling()
    ours.scale(torch.ones(1))
    good = torch.optim.Adam([parameter_with(1.0, 1024.0)], **variant)
    bad = torch.optim.Adam([parameter_with(float("inf"))], **variant)
    assert (ours.step(good), ours.step(bad)) == (True, False)
    ours.update()
    assert ours.scaler.get_scale() == 512
    assert not torch.equal(good.param_groups[0]["params"][0], torch.ones(2))
    assert torch.equal(bad.param_groups[0]["params"][0], torch.ones(2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_unscaled_before_clipping(variant: dict[str, bool]) -> None:
    """After unscale_ the gradients are the true ones, whoever calls it, and the step divides no more."""
    ours = scaling()
    ours.scale(torch.ones(1))
    parameter = parameter_with(3.0, 1024.0)
    optimizer = torch.optim.SGD([parameter], lr=1.0, **variant)
    ours.scaler.unscale_(optimizer)
    ours.unscale_(optimizer)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [3, 3]
    nn.utils.clip_grad_value_([parameter], 0.5)
    assert ours.step(optimizer) is True
    assert parameter.tolist() == [0.5, 0.5]


def test_update_without_a_step_does_nothing() -> None:
    """On a batch without any step the scale stays, and its update raises nothing."""
    ours = scaling(growth_interval=1)
    ours.update()
    ours.scale(torch.ones(1))
    ours.update()
    assert ours.scaler.get_scale() == 1024


@pytest.mark.parametrize("variant", VARIANTS)
def test_optimizer_without_gradients_steps_as_without_a_scaler(variant: dict[str, bool]) -> None:
    """An optimizer that got no gradient in this batch is stepped as in fp32, where torch's scaler would raise."""
    ours = scaling()
    ours.scale(torch.ones(1))
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0, **variant)
    ours.unscale_(optimizer)
    assert ours.step(optimizer) is True
    ours.update()
    assert ours.scaler.get_scale() == 1024


def test_second_step_in_one_batch_is_told() -> None:
    """Two steps of one optimizer without an update of the scale between them are refused with the ways out."""
    ours = scaling()
    ours.scale(torch.ones(1))
    optimizer = torch.optim.SGD([parameter_with(1.0)], lr=1.0)
    ours.step(optimizer)
    with pytest.raises(InvalidStateError, match=r"wrap_scaler\(\)"):
        ours.step(optimizer)
    ours.update()
    assert ours.step(optimizer) is True


def test_scaler_of_the_user_is_only_watched() -> None:
    """With a scaler that the user scales and updates, steps are told right from one update to the next."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    ours = GradientScaling(scaler)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    told = []
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(parameter.sum() * factor).backward()
        told.append(ours.step(optimizer))
        scaler.update()
    assert told == [True, False, True]
    assert scaler.get_scale() == 4.0


def test_disabled_scaler_is_no_scaler() -> None:
    """With a disabled scaler losses, gradients and steps are those without one, closures included."""
    ours = scaling(enabled=False)
    loss = torch.ones(1)
    assert ours.scale(loss) is loss
    parameter = parameter_with(1.0)
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    ours.unscale_(optimizer)
    assert ours.step(optimizer) is True
    ours.update()
    assert parameter.tolist() == [0.5, 0.5]
    calls: list[int] = []

    def closure() -> torch.Tensor:
        calls.append(1)
        return torch.zeros(())

    assert ours.step(optimizer, closure) is True
    assert calls == [1]


def test_closure_under_scaling_is_refused() -> None:
    """A closure cannot be combined with an enabled scaler, and the error names what can be."""
    optimizer = torch.optim.LBFGS([parameter_with(1.0)])
    with pytest.raises(InvalidValueError, match="LBFGS.*'bf16'"):
        scaling().step(optimizer, lambda: torch.zeros(()))


def test_what_is_no_scaler_is_refused() -> None:
    """An object that is no GradScaler is refused with what was received."""
    with pytest.raises(InvalidTypeError, match="Received: 'fp16'"):
        GradientScaling("fp16")  # type: ignore[arg-type]


def test_errors_of_the_optimizer_come_through() -> None:
    """An error that an optimizer raises in its step is not changed."""

    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise RuntimeError("broken")

    ours = scaling()
    ours.scale(torch.ones(1))
    with pytest.raises(RuntimeError, match="^broken$"):
        ours.step(Broken([parameter_with(1.0)], lr=1.0))


@pytest.mark.parametrize("stop", [1, 4])
def test_scale_goes_on_after_a_resume(stop: int) -> None:
    """A scaler that is loaded from its state grows at the same step as the uninterrupted one."""

    def train(ours: GradientScaling, steps: int) -> list[float]:
        scales = []
        for _ in range(steps):
            ours.scale(torch.ones(1))
            ours.step(torch.optim.SGD([parameter_with(1.0)], lr=1.0))
            ours.update()
            scales.append(ours.scaler.get_scale())
        return scales

    expected = train(scaling(), 8)
    first, second = scaling(), scaling(init_scale=2.0)
    scales = train(first, stop)
    second.scaler.load_state_dict(first.scaler.state_dict())
    assert scales + train(second, 8 - stop) == expected
