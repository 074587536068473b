"""Records fetched in this process: by the batch where a data set allows it, else one by one."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

__all__ = ["Fetch", "make_fetch"]


class Fetch(Protocol):
    """What brings the records of one batch.

    Attributes:
        device: where indices given to ``take`` are to lie.
    """

    device: torch.device

    def cut(self, start: int, stop: int) -> Any:
        """Return the batch of the records from ``start`` to before ``stop``."""
        ...

    def take(self, indices: Any) -> Any:
        """Return the batch of these records: a tensor of indices from 0 on, or one int for a single record."""
        ...

    def look_up(self, keys: Any) -> Any:
        """Return the batch of what a user's sampler gave, which may be anything that the data set takes."""
        ...


def make_fetch(dataset: Any, collate_fn: Callable[[Any], Any], *, batched: bool = True) -> Fetch:
    """Choose the fastest way to fetch that gives exactly what fetching record by record gives.

    Args:
        dataset: a map-style data set, a tensor or an array.
        collate_fn: what makes a batch of a list of records.
        batched: False if the sampler's elements are single records (``batch_size=None``).

    Returns:
        One operation per batch and tensor for ``TensorDataset``, tensors, arrays and ``Subset`` of these with torch's
        own ``default_collate``; otherwise the records are fetched as torch does it.
    """
    if not batched:
        return _SingleFetch(dataset, collate_fn)
    if collate_fn is default_collate:
        dataset_below, chosen = dataset, None
        if type(dataset) is Subset:
            dataset_below, chosen = dataset.dataset, _index_tensor(dataset.indices)
        if (type(dataset) is not Subset or chosen is not None) and (tensors := _tensors_of(dataset_below)) is not None:
            return _TensorFetch(
                tensors, type(dataset_below) is TensorDataset, chosen, _RecordFetch(dataset, collate_fn)
            )
    return _RecordFetch(dataset, collate_fn)


class _TensorFetch:
    """One indexing operation per tensor; one by one only for keys that are more than numbers of records."""

    def __init__(
        self, tensors: Sequence[Tensor], as_list: bool, chosen: Tensor | None, one_by_one: "_RecordFetch"
    ) -> None:
        self._one_by_one = one_by_one
        self._tensors = tensors
        self._as_list = as_list
        self.device = tensors[0].device
        self._chosen = None if chosen is None else chosen.to(self.device)

    def cut(self, start: int, stop: int) -> Any:
        if self._chosen is not None:
            return self._gather(self._chosen[start:stop])
        # Copies, as collating makes them: a batch changed in place must not change the data set.
        batch = [tensor[start:stop].clone() for tensor in self._tensors]
        return batch if self._as_list else batch[0]

    def take(self, indices: Any) -> Any:
        return self._gather(indices if self._chosen is None else self._chosen[indices])

    def look_up(self, keys: Any) -> Any:
        indices = _record_numbers(keys)
        if indices is None:
            return self._one_by_one.look_up(keys)
        # They may be negative, or beyond the end, and mean what they mean for a list.
        indices = indices.to(self.device)
        if self._chosen is not None:
            indices = self._chosen[indices]
        batch = [tensor[indices] for tensor in self._tensors]
        return batch if self._as_list else batch[0]

    def _gather(self, indices: Tensor) -> Any:
        batch = [tensor.index_select(0, indices) for tensor in self._tensors]
        return batch if self._as_list else batch[0]


class _RecordFetch:
    """Record by record, or by ``__getitems__``, as torch's loader does it."""

    device = torch.device("cpu")

    def __init__(self, dataset: Any, collate_fn: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._collate = collate_fn
        self._get_items = getattr(dataset, "__getitems__", None)

    def cut(self, start: int, stop: int) -> Any:
        if self._get_items:
            return self._collate(self._get_items(list(range(start, stop))))
        dataset = self._dataset
        return self._collate([dataset[index] for index in range(start, stop)])

    def take(self, indices: Any) -> Any:
        return self.look_up(indices.tolist())

    def look_up(self, keys: Any) -> Any:
        if self._get_items:
            return self._collate(self._get_items(keys))
        dataset = self._dataset
        return self._collate([dataset[key] for key in keys])


class _SingleFetch:
    """What a sampler gives is handed to the data set as it is."""

    device = torch.device("cpu")

    def __init__(self, dataset: Any, collate_fn: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._collate = collate_fn

    def cut(self, start: int, stop: int) -> Any:
        return self._collate(self._dataset[start])

    def take(self, indices: Any) -> Any:
        return self.look_up(indices)

    def look_up(self, keys: Any) -> Any:
        return self._collate(self._dataset[keys])


def _tensors_of(dataset: Any) -> list[Tensor] | None:
    """The tensors that batches can be cut from, or None if records are to be fetched one by one."""
    if isinstance(dataset, TensorDataset):
        plain = type(dataset).__getitem__ is TensorDataset.__getitem__ and not hasattr(dataset, "__getitems__")
        tensors = list(dataset.tensors) if plain and type(dataset) is TensorDataset else []
    elif type(dataset) is Tensor:
        tensors = [dataset]
    elif type(dataset) in (np.ndarray, np.memmap):
        tensors = _tensors_of_array(dataset)
    else:
        return None
    return tensors if tensors and all(map(_can_be_cut, tensors)) and len({t.device for t in tensors}) == 1 else None


def _can_be_cut(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and tensor.ndim > 0 and not tensor.requires_grad


def _tensors_of_array(array: "np.ndarray[Any, Any]") -> list[Tensor]:
    if array.ndim == 0 or len(array) == 0 or array.dtype.kind not in "fciub":
        return []
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
            tensor = torch.from_numpy(array)
        # Collating numpy's scalars may give another type than their array has.
        return [tensor.to(default_collate([array[0]]).dtype)]
    except (TypeError, ValueError):
        return []


def _record_numbers(keys: Any) -> Tensor | None:
    """A sampler's keys as int64, or None where one is no int: a bool, a slice or a tuple asks for something else."""
    if isinstance(keys, Tensor):
        return keys if keys.ndim == 1 and keys.dtype is torch.int64 and len(keys) else None
    keys = list(keys)
    kinds = set(map(type, keys))
    if kinds == {Tensor}:
        plain = all(key.ndim == 0 and key.dtype is torch.int64 for key in keys)
    else:
        plain = all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds)
    return torch.as_tensor(keys, dtype=torch.int64) if keys and plain else None


def _index_tensor(indices: Any) -> Tensor | None:
    try:
        tensor = torch.as_tensor(indices if isinstance(indices, Tensor | np.ndarray) else list(indices))
    except (TypeError, ValueError, RuntimeError):
        return None
    # Negative ones count from the end for a data set, not for one indexing operation.
    whole = tensor.ndim == 1 and not tensor.is_floating_point() and tensor.dtype is not torch.bool
    return tensor.to(torch.int64) if whole and (not len(tensor) or int(tensor.min()) >= 0) else None
