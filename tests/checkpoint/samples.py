"""What the tests of checkpoints write, and how they compare what they read."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainlab.checkpoint import write_checkpoint

DETAILS = {
    "progress": {"batches_trained": 5, "best_metric": float("inf")},
    "trial_class": "digits:DigitsTrial",
    "hparams": {"lr": 1e-3, "betas": (0.9, 0.999)},
    "exp_conf": {"name": "digits"},
    "versions": {"torch": torch.__version__},
}


def model_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with several dtypes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(4, 3, generator=generator),
        "layer.bias": torch.randn(4, generator=generator).bfloat16(),
        "norm.count": torch.tensor(seed),
    }


def write(root: Path, batches: int = 5, **others: Any) -> Path:
    """A small checkpoint of everything."""
    arguments = {
        "weights": {"model": {"0": model_state(batches)}},
        "state": {"step": batches, "moment": torch.full((3,), float(batches)), "betas": (0.9, 0.999)},
        "details": DETAILS,
    }
    return write_checkpoint(root, batches_trained=batches, **{**arguments, **others})


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _ordered(value: Any) -> str:
    """The repr, with the elements of sets in one order."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(_ordered, value))}"
    return f"tuple{list(map(_ordered, value))}" if type(value) is tuple else repr(value)


def same(one: Any, other: Any) -> bool:
    """Whether two trees agree in types, order, dtypes, shapes and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        factories_agree = not isinstance(one, defaultdict) or one.default_factory is other.default_factory
        return factories_agree and same(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return one == other and _ordered(one) == _ordered(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one.hex() == other.hex() and math.copysign(1, one) == math.copysign(1, other)
    return repr(one) == repr(other)
