"""Determined's data loader, and its functions for batches."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trainlab.data import DataLoader as TrainlabLoader
from trainlab.data import DistributedBatchSampler, RepeatBatchSampler, SkipBatchSampler
from trainlab.data import to_device as move
from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["DataLoader", "TorchData", "adapt_batch_sampler", "data_length", "to_device"]

TorchData = dict[str, torch.Tensor] | Sequence[torch.Tensor] | torch.Tensor
"""What a batch may be, for annotations."""


class DataLoader(TrainlabLoader):
    """Batches of a data set; takes what ``torch.utils.data.DataLoader`` takes.

    The same as ``trainlab.DataLoader``, but ``batch_size`` is that of one process, and so are the batches of a
    ``batch_sampler``. An ``IterableDataset`` works.
    """

    def for_ranks(self, ranks: int) -> "DataLoader":
        """Return the loader of the global batches of so many ranks; the Trainer asks for it.

        Args:
            ranks: number of data ranks.

        Returns:
            A loader whose batches are ``ranks`` of this one's together. Those of a batch sampler are dealt out whole.
        """
        if ranks == 1:
            return self
        whole = copy.copy(self)
        if self.batch_size is not None:
            whole.batch_size = self.batch_size * ranks
        elif self.batched:
            whole.batches_joined = ranks
        return whole

    def of_one_rank(self, ranks: int) -> "DataLoader":
        """Return the loader of what each rank reads by itself where the data set shards itself: this one.

        Args:
            ranks: number of data ranks.
        """
        return self

    def get_data_loader(
        self, repeat: bool = False, skip: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> "torch.utils.data.DataLoader[Any]":
        """Make a torch DataLoader of the same data: repeated, then dealt out by batches, then without its beginning.

        Args:
            repeat: whether it goes on for ever. Default False.
            skip: how many batches are left out at the beginning, once. Default 0.
            num_replicas: among how many the batches are dealt out. Default 1.
            rank: whose share is wanted, from 0. Default 0.

        Returns:
            The torch DataLoader.

        Raises:
            InvalidValueError: the data set is iterable, or makes its own batches: there are no batches of indices.
        """
        if self.batch_sampler is None:
            raise InvalidValueError(
                "get_data_loader deals out batches of indices, and there are none. Received: "
                f"{type(self.dataset).__name__} with batch_size={self.batch_size}. Give a map-style data set and a "
                "batch_size."
            )
        return torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=adapt_batch_sampler(self.batch_sampler, repeat, skip, num_replicas, rank),
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            timeout=self.timeout,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
            generator=self.generator,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=self.persistent_workers,
            in_order=self.in_order,
        )


def adapt_batch_sampler(
    batch_sampler: Iterable[Any], repeat: bool = False, skip: int = 0, num_replicas: int = 1, rank: int = 0
) -> Any:
    """Repeat a batch sampler, then deal its batches out, then leave its beginning out.

    Args:
        batch_sampler: gives lists of indices.
        repeat: whether it goes on for ever. Default False.
        skip: how many batches are left out at the beginning, once. Default 0.
        num_replicas: among how many the batches are dealt out. Default 1.
        rank: whose share is wanted, from 0. Default 0.

    Returns:
        A batch sampler.
    """
    adapted: Any = batch_sampler
    if repeat:
        adapted = RepeatBatchSampler(adapted)
    if num_replicas > 1:
        adapted = DistributedBatchSampler(adapted, num_replicas, rank)
    return SkipBatchSampler(adapted, skip) if skip else adapted


def data_length(data: Any) -> int:
    """Tell how many records a batch holds.

    Args:
        data: an array or tensor, or a dict, list or tuple.

    Returns:
        The length of an array or tensor; of a dict's first value; of a list's or tuple's first element.

    Raises:
        InvalidValueError: for an empty dict, list or tuple.
        InvalidTypeError: for anything else, and where the first one has no length.
    """
    first = data
    if isinstance(data, Mapping | list | tuple):
        if not data:
            raise InvalidValueError(
                f"The length of an empty {type(data).__name__} is not a number of records. Received: {data!r}. "
                "Override get_batch_length in your Trial for such batches."
            )
        first = next(iter(data.values())) if isinstance(data, Mapping) else data[0]
    elif not isinstance(data, torch.Tensor | np.ndarray):
        raise _no_length(data, data)
    try:
        return len(first)
    except TypeError:
        raise _no_length(data, first) from None


def to_device(data: Any, device: torch.device | str, warned_types: set[type] | None = None) -> Any:
    """Move a batch to a device.

    Args:
        data: tensors and arrays, in dicts, lists and tuples, or anything with ``.to``.
        device: where to.
        warned_types: the types that a warning was given for already; new ones are added. Default: none.

    Returns:
        The same structure on the device; what cannot be moved comes back as it is, with one warning per type.
    """
    return move(data, device, warned=warned_types)


def _no_length(data: Any, first: Any) -> InvalidTypeError:
    return InvalidTypeError(
        "The number of records is the length of a tensor or array, or of the first one in a dict, list or tuple. "
        f"Received: {type(data).__name__}{'' if first is data else f' that begins with {type(first).__name__}'}. "
        "Override get_batch_length in your Trial for such batches."
    )
