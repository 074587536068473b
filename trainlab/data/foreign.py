"""Batches of a loader that is not trainlab's: iterated as it is, resumed by its own state or by reading again."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SequentialSampler

from trainlab.data.order import chain_of_samplers, find_stateful, has_state
from trainlab.data.share import NOTHING, Part
from trainlab.data.sources import length_of
from trainlab.data.transfer import length_or
from trainlab.data.workers import protected_start, tell_epoch
from trainlab.distributed import RngState

__all__ = ["ForeignSource", "inexactness"]


class ForeignSource:
    """Any iterable of batches.

    Args:
        loader: a ``torch.utils.data.DataLoader``, a list of batches, or whatever can be iterated again and again. One
            with ``state_dict`` and ``load_state_dict`` is put back by them; of others earlier batches are read again.
    """

    def __init__(self, loader: Any) -> None:
        self.length: int | None = None
        self.total: int | None = None
        self.part: Part | None = None
        self.records = 0
        self.exact = _keeps_its_length(loader)
        self.fetches_here = not getattr(loader, "num_workers", 0)
        self._loader = loader
        self._is_torchs = isinstance(loader, torch.utils.data.DataLoader)
        self._stateful = has_state(loader)
        self._at_start: dict[str, Any] | None = None
        self._begun = False
        self._ended = False
        # What was loaded, until the first batch after it; many a loader forgets it while it waits to be iterated.
        self._loaded: Mapping[str, Any] | None = None

    def batches(
        self, epoch: int | None, records: int, batches: int, state: Mapping[str, Any] | None
    ) -> Generator[Any, None, None]:
        """Begin an epoch at a position."""
        self.length = length_of(self._loader)
        self.records = records
        self._loaded = None
        for part in (*chain_of_samplers(self._loader), getattr(self._loader, "dataset", None)):
            tell_epoch(part, epoch)
        state = state or {}
        if state.get("loader") is not None:
            return self._loaded_batches(state)
        if not batches:
            self._restore_generators(state.get("generators", ()))
            return self._read(None)
        # Read again at once: what is drawn meanwhile must not be drawn after the caller put the generators back.
        return self._read(self._read_again(batches, state.get("at_start")))

    def more(self) -> bool | None:
        """Only a fetch can tell."""
        return None

    def first_batch(self) -> Any:
        """No batches are dealt out."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's own state if it has one, and the generators' at the epoch's start and now."""
        if self._loaded is not None:
            return copy.deepcopy(dict(self._loaded))
        state: dict[str, Any] = {"at_start": self._at_start, "generators": self._generator_states()}
        if self._stateful and self._begun:  # asked too early, some loaders begin, which draws random numbers
            own = self._loader.state_dict()
            if not _is_without_position(self._loader, own):
                state.update(loader=copy.deepcopy(own), ended=self._ended)
        return state

    def close(self) -> None:
        """Nothing is kept: workers end with the iterator, or are the loader's own."""

    def _begin(self, start: Callable[[Any], Any] = iter) -> Any:
        self._at_start = {"rng": RngState.capture(devices=False).state_dict(), "generators": self._generator_states()}
        self._begun, self._ended = True, False
        if self._is_torchs and not self.fetches_here:
            return protected_start(self._loader, start)
        return start(self._loader)

    def _read_again(self, dropped: int, at_start: Mapping[str, Any] | None) -> Iterator[Any]:
        self._restore(at_start)
        batches: Iterator[Any] = self._begin()
        for _ in itertools.islice(batches, dropped):
            pass
        return batches

    def _loaded_batches(self, state: Mapping[str, Any]) -> Generator[Any, None, None]:
        """Go on from a state of the loader's own: in the middle of an epoch, or after the end of one."""
        ended = state["ended"]
        if not ended:
            self._restore(state["at_start"])  # so that a sampler without a state gives the same order again
        self._loader.load_state_dict(copy.deepcopy(state["loader"]))
        batches = None
        if not ended:
            with _without_looking_ahead(self._loader):
                batches = self._begin()
        elif self._is_torchs:
            # Makes the iterator of the ended epoch, which iter() would do as well, drawing twice.
            self._begin(lambda loader: loader.state_dict())
        if ended or self._is_torchs:
            # torch's loaders also draw their workers' seeds from them, and more often in a resume than without.
            self._restore_generators(state["generators"])
        self._at_start, self._begun, self._ended, self._loaded = state["at_start"], True, ended, state
        return self._read_after_the_end() if ended else self._read(batches)

    def _read_after_the_end(self) -> Generator[Any, None, None]:
        """Read the epoch after an ended one, which some loaders end once more before they begin anew."""
        rng, generators = RngState.capture(devices=False), self._generator_states()
        with _without_looking_ahead(self._loader):
            batches = self._begin()
            first = next(batches, NOTHING)
        if first is not NOTHING:
            return (yield from self._read(itertools.chain([first], batches)))
        rng.restore()
        self._restore_generators(generators)
        return (yield from self._read(None))

    def _read(self, batches: Iterator[Any] | None) -> Generator[Any, None, None]:
        for batch in self._begin() if batches is None else batches:
            self._loaded = None
            self.records += length_or(batch, 1)
            yield batch
        self._ended = True

    def _restore(self, at_start: Mapping[str, Any] | None) -> None:
        if at_start is not None:
            RngState.from_state_dict(at_start["rng"]).restore()
            self._restore_generators(at_start["generators"])

    def _generator_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in _generators(self._loader)]

    def _restore_generators(self, states: Iterable[torch.Tensor]) -> None:
        for generator, state in zip(_generators(self._loader), states, strict=False):
            generator.set_state(state)


def inexactness(loader: Any) -> str | None:
    """Tell what keeps a run that trains from a loader from being resumed exactly.

    Args:
        loader: a loader that is not trainlab's.

    Returns:
        A sentence or two for the user; None if nothing does.
    """
    if has_state(loader) or type(loader) in (list, tuple):
        return None
    name = f"{type(loader).__module__}.{type(loader).__qualname__}"
    advice = "Return a trainlab.DataLoader, which takes the same arguments and is resumed exactly."
    if not isinstance(loader, torch.utils.data.DataLoader):
        return (
            f"The training data loader, a {name}, has no state_dict and load_state_dict: after a resume its batches "
            "are read again up to the position, which is exact only if it gives them again. Give it these two "
            f"methods. Or: {advice[0].lower()}{advice[1:]}"
        )
    if loader.num_workers:
        return (
            f"The training data loader, a {name} with num_workers={loader.num_workers}, cannot be resumed exactly: "
            "its batches are read again up to the position, and what its workers did to their data set and drew in "
            f"earlier epochs is not known. With num_workers=0 it would be exact. {advice}"
        )
    stateful = loader.dataset if has_state(loader.dataset) else find_stateful(loader)
    if stateful is not None:
        return (
            f"The training data loader, a {name}, does not save the state that its {type(stateful).__name__} has, and "
            f"cannot be resumed exactly: its batches are read again up to the position. {advice}"
        )
    return None


def _is_without_position(loader: Any, state: Any) -> bool:
    """Whether torchdata's StatefulDataLoader would read again as well: it miscounts when that is done twice."""
    if not isinstance(getattr(loader, "dataset", None), IterableDataset):
        return False
    found: list[Any] = []
    inner = [state]
    while inner:
        one = inner.pop()
        if isinstance(one, Mapping):
            found += [one[key] for key in ("dataset_state", "dataset_iter_state") if key in one]
            inner += one.values()
    return bool(found) and all(one is None for one in found)


def _generators(loader: Any) -> Iterator[torch.Generator]:
    """Those of a loader, its samplers and, in a pipeline of ``torchdata.nodes``, its nodes."""
    seen: set[int] = set()
    parts = [loader]
    while parts:
        part = parts.pop(0)
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and id(generator) not in seen:
            seen.add(id(generator))
            yield generator
        parts += [getattr(part, name, None) for name in ("sampler", "batch_sampler", "root", "source")]


@contextlib.contextmanager
def _without_looking_ahead(loader: Any) -> Iterator[None]:
    """Keep a ``torchdata.nodes.Loader`` from fetching a batch when it is put back, to see whether one follows."""
    looks_ahead = getattr(loader, "restart_on_stop_iteration", False)
    if looks_ahead:
        loader.restart_on_stop_iteration = False
    try:
        yield
    finally:
        if looks_ahead:
            loader.restart_on_stop_iteration = True


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
