"""KeptValues: one metric's values, one a batch, left on their device until they are asked for."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainlab.errors import MetricError
from trainlab.metrics.rules import host_array

__all__ = ["STACK_EVERY", "KeptValues", "host_values"]

STACK_EVERY = 256
"""Kept tensors are stacked on their device after so many batches, so that a long window needs little memory."""

_kind = operator.attrgetter("shape", "dtype", "device")


class KeptValues:
    """The values of one metric, one a batch.

    Args:
        name: the metric's name, for errors.
        hook: the user's method that returns it, for errors.

    Attributes:
        values: the newest values, detached, not stacked yet.
        versions: for each of these the tensor's version when it was kept (0 for other values).
    """

    __slots__ = ("_chunks", "_hook", "_name", "_stacked", "values", "versions")

    def __init__(self, name: str, hook: str) -> None:
        self.values: list[Any] = []
        self.versions: list[int] = []
        self._name = name
        self._hook = hook
        self._chunks: list[Tensor | list[Any]] = []
        self._stacked = 0

    def keep(self, value: Any) -> None:
        """Keep the value of one more batch.

        Args:
            value: a tensor of any shape (kept detached, not copied) or any other value (arrays are copied).
        """
        if isinstance(value, Tensor):
            value = _without_inference(value) if value.is_inference() else value.detach()
            self.versions.append(value._version)
        else:
            self.versions.append(0)
            if isinstance(value, np.ndarray):
                value = value.copy()
        self.values.append(value)

    def stack(self) -> None:
        """Stack the newest values on their device, in the order kept.

        Raises:
            MetricError: a tensor was changed in place since it was kept.
        """
        if not self.values:
            return
        self._check_unchanged()
        self._chunks.append(_stacked(self.values))
        self._stacked += len(self.values)
        self.values, self.versions = [], []

    def on_host(self) -> list[Any] | npt.NDArray[Any]:
        """Copy all values to the host, in one piece where they are tensors of one shape, dtype and device.

        Returns:
            An array of shape (batches, *shape), or a list with an array for each tensor and everything else as it was.

        Raises:
            MetricError: a tensor was changed in place since it was kept.
        """
        self.stack()
        tensors = [chunk for chunk in self._chunks if isinstance(chunk, Tensor)]
        kinds = {(chunk.shape[1:], chunk.dtype, chunk.device) for chunk in tensors}
        if len(tensors) == len(self._chunks) and len(kinds) == 1:
            return host_array(torch.cat(tensors) if len(tensors) > 1 else tensors[0])
        values: list[Any] = []
        for chunk in self._chunks:
            values += host_values(host_array(chunk)) if isinstance(chunk, Tensor) else map(_on_host, chunk)
        return values

    def _check_unchanged(self) -> None:
        now = [value._version if isinstance(value, Tensor) else 0 for value in self.values]
        if now == self.versions:
            return
        position = next(i for i, (new, kept) in enumerate(zip(now, self.versions, strict=True)) if new != kept)
        raise MetricError(
            f"The metric {self._name!r} was changed in place after {self._hook} had returned it, so that its value is "
            f"lost. Received: the changed tensor in batch {self._stacked + position} (from 0) of this training window "
            "or validation. Return a fresh tensor from each call, for example value.clone()."
        )


def host_values(values: Sequence[Any] | npt.NDArray[Any]) -> list[Any]:
    """Give host values one by one.

    Args:
        values: what ``KeptValues.on_host`` gave.

    Returns:
        One value a batch; a slice of an array is an array, also where its shape is ().
    """
    if isinstance(values, np.ndarray):
        return [values[i, ...] for i in range(len(values))]
    return list(values)


def _without_inference(tensor: Tensor) -> Tensor:
    # An inference tensor has no version, so that no change could be seen: a copy of it is kept.
    with torch.inference_mode(False):
        return tensor.clone()


def _stacked(values: list[Any]) -> Tensor | list[Any]:
    if all(isinstance(value, Tensor) for value in values) and len(set(map(_kind, values))) == 1:
        return torch.stack(values)
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def _on_host(value: Any) -> Any:
    return host_array(value) if isinstance(value, Tensor) else value
