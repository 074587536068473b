"""Batches of a loader that is not trainlab's: iterated as it is, resumed by reading again."""

import copy
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SequentialSampler

from trainlab.data.order import has_state
from trainlab.data.sources import length_of
from trainlab.data.transfer import data_length
from trainlab.data.workers import protected_start
from trainlab.distributed import RngState

__all__ = ["ForeignSource"]


class ForeignSource:
    """Any iterable of batches.

    Args:
        loader: a ``torch.utils.data.DataLoader``, a list of batches, or whatever can be iterated again and again.
    """

    def __init__(self, loader: Any) -> None:
        self.length: int | None = None
        self.records = 0
        self.exact = _keeps_its_length(loader)
        self.fetches_here = not getattr(loader, "num_workers", 0)
        self._loader = loader
        self._stateful = has_state(loader)
        self._at_start: dict[str, Any] | None = None

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position."""
        self.length = length_of(self._loader)
        self.records = records
        self._at_start = None
        if self._stateful and state is not None and "loader" in state:
            self._loader.load_state_dict(copy.deepcopy(state["loader"]))
            return self._read(None, began_anew=not batches)
        if not batches:
            self._restore_generators((state or {}).get("generators", ()))
            return self._read(None, began_anew=False)
        # Read again at once: what is drawn meanwhile must not be drawn after the caller put the generators back.
        return self._read(self._read_again(batches, (state or {}).get("at_start")), began_anew=False)

    def more(self) -> bool | None:
        """Only a fetch can tell."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's own state, or the generators' at the epoch's start, which reading again needs."""
        if self._stateful:
            return {"loader": copy.deepcopy(self._loader.state_dict())}
        return {"at_start": self._at_start, "generators": self._generator_states()}

    def close(self) -> None:
        """Nothing is kept: workers end with the iterator, or are the loader's own."""

    def _begin(self) -> Iterator[Any]:
        if not self._stateful:
            rng = RngState.capture(devices=False).state_dict()
            self._at_start = {"rng": rng, "generators": self._generator_states()}
        if self.fetches_here or not hasattr(self._loader, "worker_init_fn"):
            return iter(self._loader)
        return protected_start(self._loader)

    def _read_again(self, dropped: int, at_start: Mapping[str, Any] | None) -> Iterator[Any]:
        if at_start is not None:
            RngState.from_state_dict(at_start["rng"]).restore()
            self._restore_generators(at_start["generators"])
        batches = self._begin()
        for _ in itertools.islice(batches, dropped):
            pass
        return batches

    def _generator_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in _generators(self._loader)]

    def _restore_generators(self, states: Iterable[torch.Tensor]) -> None:
        for generator, state in zip(_generators(self._loader), states, strict=False):
            generator.set_state(state)

    def _read(self, batches: Iterator[Any] | None, *, began_anew: bool) -> Generator[Any, None, None]:
        if batches is None:
            batches = self._begin()
        for batch in batches:
            began_anew = False
            self.records += _records_of(batch)
            yield batch
        if began_anew:  # the state was that of a finished epoch; the next one is asked for
            for batch in self._loader:
                self.records += _records_of(batch)
                yield batch


def _records_of(batch: Any) -> int:
    try:
        return data_length(batch)
    except (TypeError, ValueError):
        return 1  # a batch of the user's own making, whose records only the Trial can count


def _generators(loader: Any) -> Iterator[torch.Generator]:
    seen: list[torch.Generator] = []
    samplers = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
    for owner in (loader, *samplers):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in seen):
            seen.append(generator)
            yield generator


def _keeps_its_length(loader: Any) -> bool:
    """Whether ``len`` is sure to be right: of plain sequences, and of torch's loader with samplers of its own."""
    if type(loader) in (list, tuple):
        return True
    return (
        type(loader) is torch.utils.data.DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and type(loader.batch_sampler) in (BatchSampler, type(None))
    )
