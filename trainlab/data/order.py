"""Which records come when: a function of the seed and the epoch."""

import contextlib
import copy
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlab.distributed import RngState, derive_seed

__all__ = [
    "OwnSampler",
    "chain_of_samplers",
    "count_records",
    "cut_piece",
    "find_stateful",
    "has_state",
    "piece_of_rank",
    "seed_host",
    "shuffled_order",
]


def shuffled_order(size: int, seed: int, epoch: int) -> Tensor:
    """Draw the order of one epoch.

    Args:
        size: number of records.
        seed: the run's seed.
        epoch: number of the epoch, from 0.

    Returns:
        A permutation of ``range(size)``, int64.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


def seed_host(seed: int) -> None:
    """Seed what data sets draw from: torch's CPU generator, numpy's global one and ``random``, no device's.

    Args:
        seed: 0 to 2**63 - 1.
    """
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def piece_of_rank(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Cut a global batch into contiguous pieces that differ by at most one record.

    Args:
        size: records in the global batch.
        rank: the data rank that asks.
        ranks: number of data ranks.

    Returns:
        First record and the one after the last. A rank without a record gets the batch's first one (to be
        counted as nothing), so that every rank always has something to run.
    """
    start, stop = size * rank // ranks, size * (rank + 1) // ranks
    return (start, stop) if stop > start else (0, min(1, size))


def cut_piece(indices: Any, rank: int, ranks: int) -> Any:
    """Return a rank's piece of a batch given as a sequence; what is no sequence belongs to every rank."""
    if ranks == 1 or not hasattr(indices, "__getitem__") or not hasattr(indices, "__len__") or isinstance(indices, str):
        return indices
    start, stop = piece_of_rank(len(indices), rank, ranks)
    return indices[start:stop]


def count_records(indices: Any) -> int:
    """Return how many records an element of a sampler stands for: several if it is a list, range or array."""
    if isinstance(indices, list | range) or (isinstance(indices, Tensor | np.ndarray) and indices.ndim):
        return len(indices)
    return 1


class OwnSampler:
    """A sampler or batch sampler that the user wrote, made to give the same order for the same seed and epoch.

    Args:
        sampler: what to iterate. It, and the samplers that it wraps (attributes ``sampler`` and ``batch_sampler``),
            are told the epoch where they have ``set_epoch``, and reseeded where they have a ``torch.Generator``.
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        self._sampler = sampler
        self._chain = list(chain_of_samplers(sampler))
        # Looked up once: reseeding a generator changes what it answers.
        self._seeds = [
            (node.generator, node.generator.initial_seed())
            for node in self._chain
            if isinstance(getattr(node, "generator", None), torch.Generator)
        ]

    def start(self, seed: int, epoch: int | None) -> Iterator[Any]:
        """Begin a pass.

        Args:
            seed: the run's seed.
            epoch: number of the epoch, from 0. None outside training: the sampler is iterated as it is.

        Returns:
            The sampler's elements. In training, its random numbers up to the first element are a function of seed
            and epoch, and none of this process's generators is changed.
        """
        if epoch is None:
            return iter(self._sampler)
        for node in self._chain:
            if callable(getattr(node, "set_epoch", None)):
                node.set_epoch(epoch)
        with _seeded(derive_seed(seed, "sampler", epoch)):
            for generator, initial_seed in self._seeds:
                generator.manual_seed(derive_seed(initial_seed, "sampler", epoch))
            elements = iter(self._sampler)
            first = list(itertools.islice(elements, 1))
        return itertools.chain(first, elements)

    def state_dict(self) -> Any:
        """Return a copy of the sampler's own state, or None if it has none."""
        stateful = self._stateful()
        return None if stateful is None else copy.deepcopy(stateful.state_dict())

    def load_state_dict(self, state: Any) -> None:
        """Put the sampler back to a state that ``state_dict`` gave; None leaves it as it is."""
        if state is not None and (stateful := self._stateful()) is not None:
            stateful.load_state_dict(copy.deepcopy(state))

    def _stateful(self) -> Any:
        return find_stateful(self._sampler)


def has_state(value: Any) -> bool:
    """Tell whether an object can save and load a state of its own."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def find_stateful(sampler: Any) -> Any:
    """Return the outermost of a sampler and those that it wraps that has a state of its own, or None."""
    return next((node for node in chain_of_samplers(sampler) if has_state(node)), None)


def chain_of_samplers(sampler: Any) -> Iterator[Any]:
    """Give a sampler (or a loader) and, from the outside in, those that it wraps."""
    seen: set[int] = set()
    while sampler is not None and id(sampler) not in seen:
        seen.add(id(sampler))
        yield sampler
        inner = getattr(sampler, "batch_sampler", None)
        sampler = inner if inner is not None else getattr(sampler, "sampler", None)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    before = RngState.capture(devices=False)
    seed_host(seed)
    try:
        yield
    finally:
        before.restore()
