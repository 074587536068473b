"""Data sets that the tests of this folder share."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info


class Augmented(Dataset):
    """Records with random numbers of all three generators, which counts how often it is read."""

    def __init__(self, size: int = 37) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        self.read.append(index)
        return torch.tensor(index), torch.rand(2), np.random.rand(), random.random()


class Numbers(Dataset):
    """Its records are their own indices."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return index


class Flow(IterableDataset):
    """Iterable, without a length, in an order drawn at its start, dealt out among workers."""

    def __init__(self, size: int = 23, shuffled: bool = True) -> None:
        self.size = size
        self.shuffled = shuffled
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        order = torch.randperm(self.size).tolist() if self.shuffled else list(range(self.size))
        for index in order if info is None else list(range(self.size))[info.id :: info.num_workers]:
            self.read += 1
            yield torch.tensor(index), torch.rand(2)


class SizedFlow(Flow):
    """The same, with a length."""

    def __len__(self) -> int:
        return self.size


class StatefulFlow(IterableDataset):
    """Iterable, with a state: where it is."""

    def __init__(self, size: int = 23) -> None:
        self.size = size
        self.begin = 0
        self.next = 0
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        begin, self.begin = self.begin, 0
        for index in range(begin, self.size):
            self.next = index + 1
            self.read += 1
            yield torch.tensor(index), torch.rand(2)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = self.next = state["next"]


class GrowingFlow(IterableDataset):
    """One record more in each epoch."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        size, self.size = self.size, self.size + 1
        yield from range(size)
