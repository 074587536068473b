"""GradientScaling: a gradient scaler that tells whether a step was really made."""

from collections.abc import Callable
from typing import Any

import torch

from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError

__all__ = ["GradientScaling"]


class GradientScaling:
    """Scales losses and steps optimizers through a gradient scaler, and tells whether a step was really made.

    Small gradients are zero in float16. So the loss is multiplied by a scale, and gradients are divided by it
    before the step. If one of them is infinite or NaN, the step is skipped and the scale falls; after enough good
    steps it grows.

    Args:
        scaler: a ``torch.amp.GradScaler``, enabled or not.

    Attributes:
        scaler: the same.

    Raises:
        InvalidTypeError: it is none.

    Source:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        if not isinstance(scaler, torch.amp.GradScaler):
            raise InvalidTypeError(
                f"The gradient scaler must be a torch.amp.GradScaler. Received: {scaler!r} "
                f"({type(scaler).__qualname__}). Make one with torch.amp.GradScaler(device)."
            )
        self.scaler = scaler
        self._has_checked = False

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Multiply a loss by the scale.

        Args:
            loss: any tensor on the scaler's kind of device.

        Returns:
            The product.
        """
        return self.scaler.scale(loss)

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide an optimizer's gradients by the scale, in place; does nothing if that was done since the last update.

        Args:
            optimizer: the optimizer that is about to step.
        """
        if not _has_gradients(optimizer):
            return
        try:
            self.scaler.unscale_(optimizer)
        except RuntimeError as error:
            # A user who scales may have unscaled too; torch tells it in no other way.
            if "already been called" not in str(error):
                raise
        self._has_checked = True

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> bool:
        """Unscale an optimizer's gradients, if that is not done yet, and step it unless they are infinite or NaN.

        Without any gradient the optimizer steps as it would without a scaler.

        Args:
            optimizer: the optimizer.
            closure: computes the loss anew; only with a disabled scaler.

        Returns:
            Whether the step was really made.

        Raises:
            InvalidValueError: a closure comes with an enabled scaler.
            InvalidStateError: the optimizer was stepped already since the last update of the scale.
        """
        if not self.scaler.is_enabled():
            optimizer.step() if closure is None else optimizer.step(closure)
            return True
        if closure is not None:
            raise InvalidValueError(
                f"A gradient scaler cannot step with a closure: {type(optimizer).__qualname__} would compute losses "
                "that are not scaled. Received: closure. Use precision='fp32' or 'bf16' with such optimizers."
            )
        if not _has_gradients(optimizer):
            optimizer.step()
            return True
        self._has_checked = True
        return self._step(optimizer)

    def update(self) -> None:
        """Adjust the scale to what the steps since the last update found; without any, do nothing."""
        if self._has_checked:
            self.scaler.update()
            self._has_checked = False

    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        made: list[bool] = []

        def note(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            # A fused optimizer is always called, and skips inside its kernel.
            found_inf = getattr(stepped, "found_inf", None)
            made.append(found_inf is None or not float(found_inf))

        handle = optimizer.register_step_post_hook(note)
        try:
            self.scaler.step(optimizer)
        except RuntimeError as error:
            if "since the last update" not in str(error):
                raise
            raise InvalidStateError(
                f"This {type(optimizer).__qualname__} was stepped twice since the last update of the gradient scaler, "
                "which is updated once after each batch. Use precision='bf16', or scale by yourself with "
                "wrap_scaler(), step_optimizer(scaler=...) and an update() after each step."
            ) from error
        finally:
            handle.remove()
        return made == [True]


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
