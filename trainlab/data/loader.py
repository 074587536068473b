"""The data loader: torch's arguments, an order that is a function of the seed and the epoch, exact resumes."""

import copy
import math
import multiprocessing
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from trainlab.data.iterable import IterableSource
from trainlab.data.share import Share
from trainlab.data.sources import IndexSource, Source
from trainlab.data.transfer import pin
from trainlab.errors import DataError, InvalidTypeError, InvalidValueError

__all__ = ["DataLoader"]


class DataLoader:
    """Batches of a data set; takes what ``torch.utils.data.DataLoader`` takes.

    In training the order is a function of the run's seed and the epoch, a resume goes on at the exact record without
    reading earlier ones again, and ``batch_size`` is that of all processes together: the same file takes the same
    steps on one, two or four of them. ``TensorDataset``, tensors, arrays and ``Subset`` of these are fetched by the
    batch. Iterated outside training, it gives everything once.

    On several processes, an ``IterableDataset`` is read by each as a whole, in the same order (its random numbers are
    the same on all of them), and each takes its part of every batch; with workers, worker ``w`` of every process reads
    the same records. Where that is too much to read, have the data set give each process its own, and say ``sharded``.

    With worker processes, the generators of torch, numpy and ``random`` are seeded before each batch, so that random
    augmentation is the same for any number of workers above 0. Without workers, the process's own generators are used.
    ``in_order=False`` gives this up: batches come as they are ready.

    Args:
        dataset: map-style (``__getitem__`` and ``__len__``), a tensor, an array, or an ``IterableDataset``. One with
            ``state_dict`` and ``load_state_dict`` is saved with checkpoints; workers send its state with each batch.
        batch_size: records of a global batch, default 1; None if the data set's elements are batches. These have as
            many records as ``trainlab.data.data_length`` finds in them. On several processes they are validated
            whole, in turn, and can be trained only with ``sharded``: pass ``batch_size`` or ``batch_sampler`` else.
        shuffle: whether every epoch has an order of its own; default False.
        sampler: your own order: an iterable of indices. It is told the epoch where it has ``set_epoch``, and saved
            with checkpoints where it has ``state_dict``.
        batch_sampler: the same, of lists of indices.
        num_workers: processes that fetch; default 0, in this process.
        collate_fn: makes a batch of a list of records; default ``torch.utils.data.default_collate``.
        pin_memory: whether batches come in page-locked memory; done by itself when training on a GPU.
        drop_last: whether a last batch that is not full is left out.
        timeout: seconds to wait for a worker; default 0, for ever.
        worker_init_fn: called in each worker with its number before it begins.
        multiprocessing_context: how workers are started.
        generator: its initial seed takes the place of the run's.
        prefetch_factor: batches that each worker fetches ahead; default 2.
        persistent_workers: whether workers live from one training epoch to the next.
        pin_memory_device: has no effect; torch no longer heeds it.
        in_order: whether batches come in the order in which they were asked for; default True.
        sharded: whether each of several processes has records of its own: the data set, or the sampler, gives it only
            these. ``batch_size`` divided by the processes is what each then takes for a batch. An epoch ends when no
            process has a batch left. Default False: every process can give all records, and trainlab deals them out.

    Raises:
        InvalidValueError: for arguments that contradict each other or are out of range.
        InvalidTypeError: for a ``multiprocessing_context`` or ``generator`` that is none.
        DataError: for a data set that can be used in neither way, or is empty and to be shuffled.

    Source: https://docs.pytorch.org/docs/stable/data.html
    """

    # Batches of the batch sampler that make a global batch, one for each rank; 1 if each is one.
    batches_joined = 1

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        sharded: bool = False,
    ) -> None:
        _check_workers(num_workers, timeout, prefetch_factor, persistent_workers, multiprocessing_context)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InvalidTypeError(f"generator is a torch.Generator or None. Received: {generator!r}.")
        self.iterable = isinstance(dataset, IterableDataset)
        if self.iterable:
            _check_iterable(shuffle, sampler, batch_sampler)
        elif not hasattr(dataset, "__getitem__"):
            raise DataError(
                "A data set has __getitem__ and __len__, or is a torch.utils.data.IterableDataset. "
                f"Received: {type(dataset).__name__}. Derive it from IterableDataset if it can only be iterated."
            )
        _check_batching(batch_size, bool(shuffle), sampler, batch_sampler, drop_last)
        self.dataset = dataset
        self.shuffle = bool(shuffle)
        self.num_workers = num_workers
        self.batched = batch_size is not None or batch_sampler is not None
        self.collate_fn = collate_fn or (default_collate if self.batched else default_convert)
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.drop_last = drop_last
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.generator = generator
        self.prefetch_factor = 2 if num_workers and prefetch_factor is None else prefetch_factor
        self.persistent_workers = persistent_workers
        self.in_order = in_order
        self.sharded = bool(sharded)
        self.batch_size = None if batch_sampler is not None or batch_size is None else int(batch_size)
        self.own_sampler = batch_sampler if batch_sampler is not None else sampler
        # Remembered, since whoever reseeds a generator changes its answer.
        self.generator_seed = None if generator is None else generator.initial_seed()
        self.sampler = sampler if sampler is not None or self.iterable else self._default_sampler()
        self.batch_sampler = batch_sampler
        if batch_sampler is None and batch_size is not None and not self.iterable:
            self.batch_sampler = BatchSampler(self.sampler, int(batch_size), drop_last)  # type: ignore[arg-type]

    def __class_getitem__(cls, records: Any) -> types.GenericAlias:
        # As with torch's loader, an annotation may say what the records are: DataLoader[int].
        return types.GenericAlias(cls, records)

    def __iter__(self) -> Iterator[Any]:
        # As with torch's loader, each iteration outside training has an order of its own, drawn from the generator.
        seed = 0
        if self.num_workers or (self.shuffle and self.own_sampler is None):
            seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.generator).item())
        pinned = self.pin_memory and torch.cuda.is_available()
        batches = _once(self.source(seed, Share(), pinned=pinned))
        return map(pin, batches) if pinned and not self.num_workers else batches

    def __len__(self) -> int:
        try:
            if self.own_sampler is not None and self.batch_size is None:
                return math.ceil(len(self.own_sampler) / self.batches_joined)  # type: ignore[arg-type]
            records = len(self.dataset if self.own_sampler is None else self.own_sampler)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError) as error:
            sized = type(self.dataset if self.own_sampler is None else self.own_sampler).__name__
            raise InvalidTypeError(
                f"The number of batches is not known, since {sized} has no len(). Give it __len__ if it can tell."
            ) from error
        if self.batch_size is None:
            return records
        return records // self.batch_size if self.drop_last else math.ceil(records / self.batch_size)

    def for_ranks(self, ranks: int) -> "DataLoader":
        """Return the loader of the global batches of so many ranks: this one, whose batches are global.

        Args:
            ranks: number of data ranks.
        """
        return self

    def of_one_rank(self, ranks: int) -> "DataLoader":
        """Return the loader of what each rank reads by itself where the data set shards itself.

        Args:
            ranks: number of data ranks.

        Returns:
            A copy whose batches are those of one rank.

        Raises:
            DataError: the batch size is no multiple of the ranks.
        """
        own = copy.copy(self)
        if self.batch_size is not None:
            if self.batch_size % ranks:
                raise DataError(
                    "A data set that shards itself gives every rank batches of the same size. Received: batch_size="
                    f"{self.batch_size} for {ranks} ranks. Pass a multiple of the number of ranks."
                )
            own.batch_size = self.batch_size // ranks
        return own

    def source(self, seed: int, share: Share, *, pinned: bool = False) -> Source:
        """Open what gives the batches of one epoch after another; ``BatchStream`` is the way to use it.

        Args:
            seed: what orders and workers' seeds are made from.
            share: what this rank gets of each global batch.
            pinned: whether workers are to deliver into page-locked memory.

        Returns:
            A source with workers of its own.
        """
        kind = IterableSource if self.iterable else IndexSource
        return kind(self, seed, share, pinned or (self.pin_memory and torch.cuda.is_available()))

    def _default_sampler(self) -> Iterable[Any]:
        if not self.shuffle:
            return SequentialSampler(self.dataset)
        if not hasattr(self.dataset, "__len__"):
            raise DataError(
                f"A data set to be shuffled needs __len__. Received: {type(self.dataset).__name__} without one. "
                "Give it __len__, or pass a sampler."
            )
        if len(self.dataset) == 0:
            raise DataError(
                f"The data set is empty. Received: {type(self.dataset).__name__} of length 0. "
                "Look at how its records are found."
            )
        return RandomSampler(self.dataset, generator=self.generator)


def _once(source: Source) -> Iterator[Any]:
    try:
        yield from source.batches(None, 0, 0, None)
    finally:
        source.close()


def _check_workers(
    num_workers: int, timeout: float, prefetch_factor: int | None, persistent_workers: bool, context: Any
) -> None:
    if not isinstance(num_workers, int) or num_workers < 0:
        raise InvalidValueError(
            f"num_workers is a number of processes. Received: {num_workers!r}. Pass 0 to fetch in this process."
        )
    if timeout < 0:
        raise InvalidValueError(f"timeout is in seconds. Received: {timeout!r}. Pass 0 to wait for ever.")
    if prefetch_factor is not None and (num_workers == 0 or prefetch_factor < 1):
        raise InvalidValueError(
            f"prefetch_factor is a number of batches for each worker. Received: {prefetch_factor!r} with "
            f"num_workers={num_workers}. Leave it out, or pass 1 or more together with num_workers."
        )
    if persistent_workers and num_workers == 0:
        raise InvalidValueError(
            "persistent_workers keeps worker processes. Received: num_workers=0. Pass num_workers, or leave it out."
        )
    if context is not None:
        _check_context(num_workers, context)


def _check_context(num_workers: int, context: Any) -> None:
    if num_workers == 0:
        raise InvalidValueError(
            f"multiprocessing_context tells how workers start. Received: {context!r} with num_workers=0. "
            "Pass num_workers, or leave it out."
        )
    allowed = multiprocessing.get_all_start_methods()
    if isinstance(context, str):
        if context not in allowed:
            raise InvalidValueError(f"multiprocessing_context is one of {allowed}. Received: {context!r}.")
    elif not isinstance(context, multiprocessing.context.BaseContext):
        raise InvalidTypeError(
            f"multiprocessing_context is a context, or one of {allowed}. Received: {type(context).__name__}."
        )


def _check_iterable(shuffle: bool | None, sampler: Any, batch_sampler: Any) -> None:
    given = {"shuffle": shuffle or None, "sampler": sampler, "batch_sampler": batch_sampler}
    if names := [name for name, value in given.items() if value is not None]:
        raise InvalidValueError(
            f"An IterableDataset has its own order. Received: {', '.join(names)}. Leave it out, and shuffle inside the "
            "data set."
        )


def _check_batching(batch_size: Any, shuffle: bool, sampler: Any, batch_sampler: Any, drop_last: bool) -> None:
    if sampler is not None and shuffle:
        raise InvalidValueError("A sampler sets the order. Received: sampler and shuffle=True. Leave out one of them.")
    if batch_sampler is not None:
        if batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise InvalidValueError(
                "A batch_sampler makes the batches. Received: batch_sampler together with batch_size, shuffle, "
                "sampler or drop_last. Leave those out."
            )
    elif batch_size is None:
        if drop_last:
            raise InvalidValueError(
                "batch_size=None means that no batches are made. Received: drop_last=True. Leave one of them out."
            )
    elif isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InvalidValueError(f"batch_size is an integer of at least 1, or None. Received: {batch_size!r}.")
