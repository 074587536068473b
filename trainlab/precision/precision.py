"""Precision: in which number format a run computes."""

import contextlib
import logging
import warnings

import torch
from torch import nn

from trainlab.errors import InvalidValueError
from trainlab.precision.forward import ForwardAutocast, leave_unfinished

__all__ = ["PRECISIONS", "Precision"]

logger = logging.getLogger("trainlab.precision")

PRECISIONS = ("fp32", "bf16", "fp16")
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """In which number format a run computes; weights and optimizer states stay as they are.

    Args:
        name: "fp32", "bf16" or "fp16".
        device: where the run computes.

    Attributes:
        name: the precision's name.
        device: where the run computes.
        scaler: with "fp16" the scaler of the gradients, else None.

    Raises:
        InvalidValueError: the name is unknown, or the device cannot compute in this precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in PRECISIONS:
            raise InvalidValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}. Received: {name!r}.")
        self.name = name
        self.device = device
        self._dtype = _DTYPES[name]
        _check_device(name, device)
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def attach(self, model: nn.Module) -> None:
        """Let the forward passes of a model run in this precision, its half-precision outputs come out as float32.

        Only calls of the model itself are meant, not those of its parts alone. Its type, attributes and methods
        stay, and copies of it behave alike. A second call replaces what the first did. A model that
        ``torch.compile`` returned is entered from outside, so that its graph stays whole; a copy of it has to be
        attached again.

        Args:
            model: the module that is called; nothing is added to it with "fp32".
        """
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            self._attach(inner, compiled_outside=True)
        self._attach(model, compiled_outside=False)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Give a block in which operations run in this precision.

        Returns:
            A context manager; it does nothing with "fp32".
        """
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)

    def leave_unfinished(self) -> None:
        """Close the autocast blocks of forward passes that KeyboardInterrupt or SystemExit cut off in this thread.

        PyTorch calls a module's hooks after any other exception, but not after these. To be called when no forward
        pass is running.
        """
        leave_unfinished()

    def _attach(self, model: nn.Module, *, compiled_outside: bool) -> None:
        hooks = ForwardAutocast.of(model)
        if hooks is None:
            if self._dtype is None:
                return
            hooks = ForwardAutocast(self.device.type, self._dtype)
            hooks.register(model)
        hooks.device_type, hooks.dtype = self.device.type, self._dtype
        hooks.compiled_outside = compiled_outside


def _check_device(name: str, device: torch.device) -> None:
    error = _trial(name, device)
    if error is not None:
        usable = [known for known in PRECISIONS if _trial(known, device) is None]
        raise InvalidValueError(
            f"This {device.type} device cannot compute in this precision. Received: precision={name!r}. "
            f"It can: {', '.join(map(repr, usable))}. PyTorch says: {error}"
        ) from error
    if name == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                logger.warning("This GPU has no bf16 units and emulates them slowly. precision='fp16' is faster on it.")


def _trial(name: str, device: torch.device) -> Exception | None:
    """Compute one product and, for fp16, unscale one gradient: what torch supports differs by device and version."""
    dtype = _DTYPES[name]
    if dtype is None:
        return None
    try:
        # Where autocast is not possible torch may raise, or warn and go on in float32.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autocast(device.type, dtype):
                weight = torch.ones(1, 1, device=device, requires_grad=True)
                product = weight @ torch.ones(1, 1, device=device)
            if product.dtype != dtype:
                return TypeError(f"autocast in {dtype} gives {product.dtype}")
            if name == "fp16":
                scaler = torch.amp.GradScaler(device.type)
                torch.autograd.backward(scaler.scale(product.float().sum()))
                scaler.unscale_(torch.optim.SGD([weight], lr=0.0))
    except (AssertionError, RuntimeError, TypeError) as error:
        return error
    return None
