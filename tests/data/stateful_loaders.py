"""Loaders that keep a state of their own: torchdata's, and trainlab's over data sets with a state in workers."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, RandomSampler, Sampler, default_collate, get_worker_info
from torchdata import nodes
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from tests.data.datasets import Augmented, Flow
from trainlab.data import DataLoader

SIZE = 26
BATCH = 4


class Plain(Dataset[Any]):
    """Records that depend on nothing but their index."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(index), torch.tensor(index / SIZE)


class Counting(Plain):
    """Each record tells how many were read before it, and a number of a generator of the data set's own."""

    def __init__(self) -> None:
        self.count = 0
        self.random = random.Random(5)

    def __getitem__(self, index: int) -> Any:
        self.count += 1
        return torch.tensor(index), torch.tensor(self.count + self.random.random())

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "random": self.random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.random.setstate(state["random"])


class Position(IterableDataset[Any]):
    """Dealt out among workers, each pass in another order; at the end of a pass it stays at the end."""

    def __init__(self, size: int = SIZE, *, augmented: bool = False) -> None:
        self.size = size
        self.augmented = augmented
        self.passes = -1
        self.position = 0
        self.begin: int | None = None

    def __iter__(self) -> Iterator[Any]:
        begin, self.begin = self.begin, None
        if begin is None:
            self.passes += 1
        self.position = begin or 0
        return self._rest()

    def _rest(self) -> Iterator[Any]:
        info = get_worker_info()
        share = slice(None) if info is None else slice(info.id, None, info.num_workers)
        order = random.Random(self.passes).sample(range(self.size), self.size)[share]
        for index in order[self.position :]:
            self.position += 1
            yield torch.tensor(index), torch.rand(()) if self.augmented else torch.tensor(self.passes)

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.position, self.begin = state["passes"], state["position"], state["position"]


class Lazy(Position):
    """The same, as a generator, which does nothing before its first record is asked for."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()


class Rewinding(Position):
    """The same; at the end of a pass it goes to the beginning of the next."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        self.passes, self.position, self.begin = self.passes + 1, 0, 0


class ByEpoch(Sampler[int]):
    """Has an order for each epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return SIZE

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(random.Random(self.epoch).sample(range(SIZE), SIZE))


def stateful(dataset: Any, workers: int, **options: Any) -> StatefulDataLoader[Any]:
    """Torchdata's loader."""
    return StatefulDataLoader(dataset, BATCH, num_workers=workers, **options)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def item(index: int) -> Any:
    return Plain()[index]


def pipeline(sampler: Any, dataset: Any = None, *, ahead: bool = False, method: str | None = None) -> Any:
    """A pipeline of nodes: a sampler, records, batches, perhaps fetched ahead or by workers."""
    indices = nodes.SamplerWrapper(sampler)
    if method is None:
        records: Any = nodes.Mapper(indices, (dataset or Plain()).__getitem__)
    else:
        records = nodes.ParallelMapper(indices, item, num_workers=2, method=method, multiprocessing_context=None)
    batches = nodes.Mapper(nodes.Batcher(records, BATCH, drop_last=False), default_collate)
    return nodes.Loader(nodes.Prefetcher(batches, prefetch_factor=3) if ahead else batches)


def flowing(*, ahead: bool) -> Any:
    """A pipeline over an iterable data set with a state."""
    batches = nodes.Mapper(nodes.Batcher(nodes.IterableWrapper(Position()), BATCH, drop_last=True), default_collate)
    return nodes.Loader(nodes.Prefetcher(batches, prefetch_factor=2, snapshot_frequency=2) if ahead else batches)


IN_PROCESS: dict[str, Callable[[], Any]] = {
    "stateful": lambda: stateful(Augmented(SIZE), 0, shuffle=True),
    "stateful, last left out": lambda: stateful(Augmented(SIZE), 0, shuffle=True, drop_last=True),
    "stateful, generator": lambda: stateful(Augmented(SIZE), 0, shuffle=True, generator=seeded()),
    "stateful, torch's sampler": lambda: stateful(Augmented(SIZE), 0, sampler=RandomSampler(range(SIZE))),
    "stateful, replacement": lambda: stateful(
        Augmented(SIZE), 0, sampler=RandomSampler(range(SIZE), replacement=True, num_samples=40)
    ),
    "stateful, distributed": lambda: stateful(Augmented(SIZE), 0, sampler=StatefulDistributedSampler(Plain(), 1, 0)),
    "stateful, counting": lambda: stateful(Counting(), 0, shuffle=True),
    "stateful, position": lambda: stateful(Position(augmented=True), 0),
    "stateful, lazy": lambda: stateful(Lazy(augmented=True), 0),
    "stateful, rewinding": lambda: stateful(Rewinding(augmented=True), 0),
    "stateful, no state": lambda: stateful(Flow(SIZE), 0),
    "nodes, by epoch": lambda: pipeline(ByEpoch(), Augmented(SIZE)),
    "nodes, torch's sampler": lambda: pipeline(RandomSampler(range(SIZE)), Augmented(SIZE)),
    "nodes, generator": lambda: pipeline(RandomSampler(range(SIZE), generator=seeded()), Augmented(SIZE)),
    "nodes, position": lambda: flowing(ahead=False),
    "trainlab, counting": lambda: DataLoader(Counting(), BATCH, shuffle=True),
    "trainlab, position": lambda: DataLoader(Position(augmented=True), BATCH),
    "trainlab, lazy": lambda: DataLoader(Lazy(augmented=True), BATCH),
    "trainlab, rewinding": lambda: DataLoader(Rewinding(augmented=True), BATCH),
}

# Those that fetch ahead, in threads or processes.
AHEAD: dict[str, Callable[[], Any]] = {
    "stateful": lambda: stateful(Plain(), 2, shuffle=True),
    "stateful, generator": lambda: stateful(Plain(), 2, shuffle=True, generator=seeded()),
    "stateful, torch's sampler": lambda: stateful(Plain(), 2, sampler=RandomSampler(range(SIZE))),
    "stateful, every 3rd": lambda: stateful(Plain(), 2, shuffle=True, snapshot_every_n_steps=3),
    "stateful, persistent": lambda: stateful(Counting(), 2, shuffle=True, persistent_workers=True),
    "stateful, counting": lambda: stateful(Counting(), 2, shuffle=True),
    "stateful, position": lambda: stateful(Position(), 2),
    "stateful, position, persistent": lambda: stateful(Position(), 2, persistent_workers=True),
    "stateful, no state": lambda: stateful(Flow(SIZE, shuffled=False), 2, collate_fn=numbers),
    "nodes, by epoch": lambda: pipeline(ByEpoch(), ahead=True),
    "nodes, generator": lambda: pipeline(RandomSampler(range(SIZE), generator=seeded()), ahead=True),
    "nodes, threads": lambda: pipeline(ByEpoch(), method="thread", ahead=True),
    "nodes, processes": lambda: pipeline(ByEpoch(), method="process"),
    "nodes, position": lambda: flowing(ahead=True),
    "trainlab, counting": lambda: DataLoader(Counting(), BATCH, shuffle=True, num_workers=2),
    "trainlab, counting, persistent": lambda: DataLoader(
        Counting(), BATCH, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "trainlab, counting, sampler": lambda: DataLoader(Counting(), BATCH, sampler=ByEpoch(), num_workers=3),
    "trainlab, position": lambda: DataLoader(Position(augmented=True), BATCH, num_workers=2),
    "trainlab, rewinding": lambda: DataLoader(Rewinding(augmented=True), BATCH, num_workers=2),
    "trainlab, position, uneven": lambda: DataLoader(Position(13, augmented=True), BATCH, num_workers=3),
    "trainlab, position, persistent": lambda: DataLoader(
        Position(augmented=True), BATCH, num_workers=2, persistent_workers=True, drop_last=True
    ),
    "trainlab, lazy, persistent": lambda: DataLoader(
        Lazy(augmented=True), BATCH, num_workers=2, persistent_workers=True
    ),
    "trainlab, rewinding, persistent": lambda: DataLoader(
        Rewinding(augmented=True), BATCH, num_workers=2, persistent_workers=True
    ),
}


def numbers(records: list[Any]) -> torch.Tensor:
    """What of the records does not hang on a worker's random numbers."""
    return torch.stack([number for number, _ in records])
