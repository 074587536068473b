"""Samplers that skip, repeat, shard and shuffle the indices, or the batches of indices, of another."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from trainlab.data.order import find_stateful
from trainlab.errors import DataError, InvalidValueError

__all__ = [
    "DistributedBatchSampler",
    "DistributedSampler",
    "RepeatBatchSampler",
    "RepeatSampler",
    "ReproducibleShuffleBatchSampler",
    "ReproducibleShuffleSampler",
    "SkipBatchSampler",
    "SkipSampler",
]


class _Around(Sampler[Any]):
    """What all of them share: the sampler inside, and its state."""

    def __init__(self, inner: Iterable[Any]) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampler inside, where it has one."""
        inner = find_stateful(self._inner)
        return {} if inner is None else {"inner": inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the sampler inside its state back.

        Args:
            state: what ``state_dict`` returned.
        """
        inner = find_stateful(self._inner)
        if inner is not None:
            inner.load_state_dict(state["inner"])


class _Shuffler:
    """A generator, and its state as plain data and one array."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.RandomState(seed)

    def shuffled(self, elements: Iterable[Any]) -> Iterator[Any]:
        elements = list(elements)
        self._generator.shuffle(elements)
        return iter(elements)

    def state_dict(self) -> dict[str, Any]:
        name, key, position, has_gauss, cached = self._generator.get_state(legacy=True)
        return {"name": name, "key": key, "pos": position, "has_gauss": has_gauss, "gauss": cached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        key = np.asarray(state["key"], dtype=np.uint32)
        self._generator.set_state((state["name"], key, state["pos"], state["has_gauss"], state["gauss"]))


class SkipSampler(_Around):
    """All but the first indices, on every iteration.

    Its length is that of the sampler inside, nothing taken off, so that an epoch keeps its length.

    Args:
        sampler: what gives the indices.
        skip: how many are left out.

    Raises:
        InvalidValueError: for a negative ``skip``.
    """

    def __init__(self, sampler: Iterable[Any], skip: int) -> None:
        super().__init__(sampler)
        self.sampler = sampler
        self.skip = _check_skip(skip)

    def __iter__(self) -> Iterator[Any]:
        return islice(self.sampler, self.skip, None)


class RepeatSampler(_Around):
    """The indices for ever, pass after pass; the sampler inside is iterated anew each time.

    Its length is that of one pass.

    Args:
        sampler: what gives the indices.

    Raises:
        DataError: while iterating, if a pass has no index.
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        super().__init__(sampler)
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        return _for_ever(self.sampler)


class DistributedSampler(_Around):
    """Every ``num_workers``-th of the indices, beginning with number ``rank``: nothing is padded, nothing dropped.

    Its length is exact, and may differ between ranks.

    Args:
        sampler: what gives the indices.
        num_workers: among how many they are dealt out.
        rank: whose share this is, from 0.

    Raises:
        InvalidValueError: for ``num_workers`` below 1, or a ``rank`` outside 0 to ``num_workers`` - 1.
    """

    def __init__(self, sampler: Iterable[Any], num_workers: int, rank: int) -> None:
        super().__init__(sampler)
        _check_share(num_workers, rank)
        self.sampler = sampler
        self.num_workers = num_workers
        self.rank = rank

    def __iter__(self) -> Iterator[Any]:
        return islice(self.sampler, self.rank, None, self.num_workers)

    def __len__(self) -> int:
        return max(0, -(-(super().__len__() - self.rank) // self.num_workers))


class ReproducibleShuffleSampler(_Around):
    """The indices in an order drawn from a generator of its own, another one in each iteration.

    Args:
        sampler: what gives the indices; all are read first.
        seed: of the generator, ``numpy.random.RandomState(seed)``.
    """

    def __init__(self, sampler: Iterable[Any], seed: int) -> None:
        super().__init__(sampler)
        self.sampler = sampler
        self._shuffler = _Shuffler(seed)

    def __iter__(self) -> Iterator[Any]:
        return self._shuffler.shuffled(self.sampler)

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, and that of the sampler inside where it has one."""
        return {"generator": self._shuffler.state_dict(), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the generator, and the sampler inside, back to a state.

        Args:
            state: what ``state_dict`` returned.
        """
        self._shuffler.load_state_dict(state["generator"])
        super().load_state_dict(state)


class SkipBatchSampler(SkipSampler):
    """All but the first batches, on every iteration.

    Its length is that of the batch sampler inside, nothing taken off, so that an epoch keeps its length.

    Args:
        batch_sampler: what gives the batches.
        skip: how many are left out.

    Raises:
        InvalidValueError: for a negative ``skip``.
    """

    def __init__(self, batch_sampler: Iterable[Any], skip: int) -> None:
        super().__init__(batch_sampler, skip)
        self.batch_sampler = batch_sampler


class RepeatBatchSampler(RepeatSampler):
    """The batches for ever, pass after pass; the batch sampler inside is iterated anew each time.

    Its length is that of one pass.

    Args:
        batch_sampler: what gives the batches.

    Raises:
        DataError: while iterating, if a pass has no batch.
    """

    def __init__(self, batch_sampler: Iterable[Any]) -> None:
        super().__init__(batch_sampler)
        self.batch_sampler = batch_sampler


class DistributedBatchSampler(DistributedSampler):
    """Every ``num_workers``-th of the batches, beginning with number ``rank``: nothing is padded, nothing dropped.

    Its length is exact, and may differ between ranks.

    Args:
        batch_sampler: what gives the batches.
        num_workers: among how many they are dealt out.
        rank: whose share this is, from 0.

    Raises:
        InvalidValueError: for ``num_workers`` below 1, or a ``rank`` outside 0 to ``num_workers`` - 1.
    """

    def __init__(self, batch_sampler: Iterable[Any], num_workers: int, rank: int) -> None:
        super().__init__(batch_sampler, num_workers, rank)
        self.batch_sampler = batch_sampler


class ReproducibleShuffleBatchSampler(ReproducibleShuffleSampler):
    """The batches in an order drawn from a generator of its own, another one in each iteration.

    Args:
        batch_sampler: what gives the batches; all are read first.
        seed: of the generator, ``numpy.random.RandomState(seed)``.
    """

    def __init__(self, batch_sampler: Iterable[Any], seed: int) -> None:
        super().__init__(batch_sampler, seed)
        self.batch_sampler = batch_sampler


def _for_ever(elements: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for element in elements:
            empty = False
            yield element
        if empty:
            raise DataError(
                f"An empty sampler cannot be repeated. Received: {type(elements).__name__} without elements. "
                "Look at how its records are found."
            )


def _check_skip(skip: int) -> int:
    if skip < 0:
        raise InvalidValueError(f"skip is a number of elements, at least 0. Received: {skip!r}.")
    return skip


def _check_share(num_workers: int, rank: int) -> None:
    if num_workers < 1:
        raise InvalidValueError(f"num_workers is at least 1. Received: {num_workers!r}.")
    if not 0 <= rank < num_workers:
        raise InvalidValueError(f"rank is between 0 and num_workers - 1. Received: {rank!r} of {num_workers}.")
