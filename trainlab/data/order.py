"""Which records come when: a function of the seed and the epoch."""

import contextlib
import copy
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from trainlab.data.share import NOTHING
from trainlab.distributed import RngState, derive_seed

__all__ = [
    "OwnSampler",
    "SharedRng",
    "chain_of_samplers",
    "count_records",
    "find_stateful",
    "has_state",
    "seed_host",
    "shuffled_order",
]

# What draws from the process's generators before its first element, or not at all.
_DRAW_AT_THE_START = (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    list,
    range,
)


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

    def draws_at_the_start_only(self) -> bool:
        """Tell whether it is sure to draw nothing from this process's generators after its first element."""
        return all(type(node) in _DRAW_AT_THE_START for node in self._chain)

    def load_state_dict(self, state: Any) -> None:
        """Put the sampler back to a state that ``state_dict`` gave; None leaves it as it is."""
        if state is not None and (stateful := self._stateful()) is not None:
            stateful.load_state_dict(copy.deepcopy(state))

    def _stateful(self) -> Any:
        return find_stateful(self._sampler)


class SharedRng:
    """Generators that all ranks find alike, in place of the process's own while they read what all of them read.

    Args:
        seed: the same on all ranks.
        state: what ``state_dict`` gave, to go on there. Default: begin with the seed.
    """

    def __init__(self, seed: int, state: Mapping[str, Any] | None = None) -> None:
        self._seed = seed
        self._state = None if state is None else RngState.from_state_dict(state)

    @contextlib.contextmanager
    def in_place(self, *, anew: bool = False) -> Iterator[None]:
        """Draw from them inside the block.

        Args:
            anew: begin with the seed once more; default False.
        """
        own = RngState.capture(devices=False)
        if self._state is None or anew:
            seed_host(self._seed)
        else:
            self._state.restore()
        try:
            yield
        finally:
            self._state = RngState.capture(devices=False)
            own.restore()

    def read(self, elements: Iterator[Any]) -> Iterator[Any]:
        """Give the elements; each is made inside such a block."""
        while True:
            with self.in_place():
                element = next(elements, NOTHING)
            if element is NOTHING:
                return
            yield element

    def state_dict(self) -> dict[str, Any] | None:
        """Return where they stand, None if nothing was drawn yet."""
        return None if self._state is None else self._state.state_dict()


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
