"""Gradients that were summed over several batches."""

from collections.abc import Iterable

import torch

__all__ = ["average_gradients"]


def average_gradients(parameters: Iterable[torch.Tensor], divisor: int) -> None:
    """Divide gradients in place by the number of batches that they were summed over.

    Args:
        parameters: their ``grad``, dense or sparse, is divided; one without a gradient is skipped.
        divisor: the number of batches, an int ≥ 1.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or divisor == 1:
        return
    with torch.no_grad():
        # One kernel a device and dtype, where a loop would launch one a parameter.
        torch._foreach_div_(gradients, divisor)
