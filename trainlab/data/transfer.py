"""Batches: moved to a device, pinned, measured."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["SideStream", "data_length", "length_or", "pin", "to_device"]

_logger = logging.getLogger("trainlab.data")

_NOT_A_CONTAINER = object()
_SEQUENCES = (list, tuple)


def to_device(
    data: Any, device: torch.device | str, *, non_blocking: bool = False, warned: set[type] | None = None
) -> Any:
    """Move a batch to a device, whatever it is made of.

    Args:
        data: tensors, numpy arrays of numbers (they become tensors), objects with a callable ``.to``, and
            dicts, lists, tuples, named tuples and dataclasses of these, nested as one likes.
        device: where to.
        non_blocking: whether copies out of pinned memory may still be under way when the call returns.
        warned: the types that a warning was given for already; new ones are added. None: one warning per
            type in this call.

    Returns:
        The same structure on the device. Tensors, and lists and tuples of tensors, that are there already are
        returned as the very objects they are; what cannot be moved comes back as it is, with one warning per type.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    if type(data) is Tensor:
        return data if data.device == device else data.to(device, non_blocking=non_blocking)
    if type(data) is list or type(data) is tuple:
        for item in data:
            if type(item) is not Tensor or item.device != device:
                break
        else:
            return data
    return _move(data, device, non_blocking, _Warnings(set() if warned is None else warned))


def data_length(data: Any) -> int:
    """Tell how many records a batch holds.

    Args:
        data: an array or tensor, or a dict, list or tuple whose first element (or its first, and so on) is one.

    Returns:
        The length of its first dimension.

    Raises:
        InvalidValueError: for an empty dict, list or tuple.
        InvalidTypeError: for anything else that has no such length; override ``Trial.get_batch_length`` then.
    """
    if type(data) in _SEQUENCES and data and type(data[0]) is Tensor and data[0].dim():
        return data[0].size(0)  # the usual case; this runs for every batch
    first = data
    while True:
        if isinstance(first, Tensor | np.ndarray):
            if first.ndim:
                return len(first)
            break
        if not isinstance(first, Mapping | list | tuple):
            break
        if not first:
            raise InvalidValueError(
                f"The length of an empty {type(first).__name__} is not a number of records. Received: {data!r}. "
                "Give batches whose first element is a tensor or array, or override Trial.get_batch_length."
            )
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    raise InvalidTypeError(
        "The number of records is read from a tensor or array of at least one dimension, or from the first one in a "
        f"dict, list or tuple. Received: {type(data).__name__}{_found_inside(data, first)}. "
        "Override Trial.get_batch_length for other batches."
    )


def length_or(data: Any, otherwise: int) -> int:
    """Tell how many records a batch holds, or ``otherwise`` for one whose records only the Trial can count."""
    try:
        return data_length(data)
    except (InvalidTypeError, InvalidValueError):
        return otherwise


def _found_inside(data: Any, first: Any) -> str:
    return "" if first is data else f" whose first element is of type {type(first).__name__}"


def pin(data: Any) -> Any:
    """Copy a batch into page-locked host memory, out of which a GPU can read while the host goes on.

    Args:
        data: any structure that ``to_device`` takes.

    Returns:
        The same structure; what is not a tensor on the CPU, nor has a ``pin_memory`` method, is left as it is.
    """
    if isinstance(data, Tensor):
        return data.pin_memory() if data.device.type == "cpu" and data.layout is torch.strided else data
    if type(data) not in (list, tuple, dict) and callable(getattr(data, "pin_memory", None)):
        return data.pin_memory()
    rebuilt = _rebuild(data, pin)
    return data if rebuilt is _NOT_A_CONTAINER else rebuilt


class SideStream:
    """Copies of batches to a GPU on a CUDA stream of their own, so that they overlap the computing.

    The host never waits: the stream that computes waits for the copy by an event, on the GPU, and the memory of a
    batch is not given away before the work queued on it is done.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any) -> Any:
        """Start the copy of a batch.

        Args:
            batch: any structure that ``to_device`` takes, in host memory.

        Returns:
            The same structure on the GPU, to be used on the stream that is the current one now.
        """
        consumer = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved = _move(pin(batch), self._device, True, None)
        consumer.wait_event(self._stream.record_event())
        _record(moved, consumer)
        return moved


class _Warnings:
    """One warning per type that cannot be moved."""

    def __init__(self, warned: set[type]) -> None:
        self._warned = warned

    def add(self, kind: type) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _logger.warning(
                "trainlab is not able to move data of type %s to the device; it is passed on as it is.", kind.__name__
            )


def _move(data: Any, device: torch.device, non_blocking: bool, unmovable: _Warnings | None) -> Any:
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=non_blocking)
    if isinstance(data, np.ndarray) and data.dtype.kind in "fciub":
        try:
            tensor = _as_tensor(data)
        except TypeError:  # a precision that torch does not have, such as numpy's longdouble
            pass
        else:
            # MPS has no float64, and torch's own TypeError says so.
            return tensor.to(device, non_blocking=non_blocking)
    elif type(data) not in (list, tuple, dict) and not isinstance(data, type) and callable(getattr(data, "to", None)):
        return data.to(device)
    else:
        rebuilt = _rebuild(data, lambda item: _move(item, device, non_blocking, unmovable))
        if rebuilt is not _NOT_A_CONTAINER:
            return rebuilt
    if unmovable is not None:
        unmovable.add(type(data))
    return data


def _as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch has no tensors over read-only memory, nor over negative strides.
    shareable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if shareable else array.copy())


def _rebuild(data: Any, function: Callable[[Any], Any]) -> Any:
    """The container with the function applied to each element, or ``_NOT_A_CONTAINER``."""
    if isinstance(data, Mapping):
        return _rebuild_mapping(data, {key: function(value) for key, value in data.items()})
    if isinstance(data, tuple):
        if hasattr(data, "_fields"):
            return type(data)(*map(function, data))
        return _same_type(data, tuple(map(function, data)))
    if isinstance(data, list):
        return _same_type(data, list(map(function, data)))
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        # Copied rather than made anew, so that fields without an init and a __post_init__ are no obstacle.
        rebuilt = copy.copy(data)
        for field in dataclasses.fields(data):
            if hasattr(data, field.name):
                object.__setattr__(rebuilt, field.name, function(getattr(data, field.name)))
        return rebuilt
    return _NOT_A_CONTAINER


def _rebuild_mapping(data: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(data) is dict:
        return items
    rebuilt: Any = copy.copy(data)  # keeps a default factory, an order, attributes
    try:
        for key, value in items.items():
            rebuilt[key] = value
    except TypeError:  # one that cannot be changed
        return items
    return rebuilt


def _same_type(data: Any, items: Any) -> Any:
    if type(data) is type(items):
        return items
    try:
        return type(data)(items)
    except TypeError:  # a subclass with a constructor of its own
        return items


def _record(data: Any, stream: "torch.cuda.Stream") -> None:
    if isinstance(data, Tensor):
        if data.is_cuda:
            data.record_stream(stream)
    elif callable(getattr(data, "record_stream", None)):
        data.record_stream(stream)
    elif isinstance(data, Mapping):
        for item in data.values():
            _record(item, stream)
    elif isinstance(data, list | tuple):
        for item in data:
            _record(item, stream)
    elif dataclasses.is_dataclass(data):
        for field in dataclasses.fields(data):
            _record(getattr(data, field.name, None), stream)
