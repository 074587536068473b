"""Resumes exactly where an epoch ends."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from tests.compat.trials import OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Epoch


def record(number: int) -> tuple[Any, ...]:
    """A record with random numbers of two generators."""
    return torch.rand(1), torch.ones(1) * random.random(), number


class Flow(IterableDataset[Any]):
    """Iterable, and said to have as many records as `length`."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        return map(record, range(6))

    def __len__(self) -> int:
        return self.length


class Table(Dataset[Any]):
    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return record(index)

    def __len__(self) -> int:
        return 6


LOADERS: dict[str, Callable[[], Any]] = {
    "iterable": lambda: pytorch.DataLoader(Flow(6), batch_size=3),
    "iterable, cut short": lambda: pytorch.DataLoader(Flow(3), batch_size=3),
    "iterable, begun anew": lambda: pytorch.DataLoader(Flow(9), batch_size=3),
    "torch's": lambda: torch.utils.data.DataLoader(Table(), batch_size=3, shuffle=True),
    "torch's, own generator": lambda: torch.utils.data.DataLoader(
        Table(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "torch's, iterable": lambda: torch.utils.data.DataLoader(Flow(6), batch_size=3),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_resume_at_an_epochs_end_is_the_uninterrupted_run(open_run: Open, name: str) -> None:
    """Going on after a whole epoch gives the records, augmentations, draws of train_batch and weights of one run."""

    class Drawing(OneWeightTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            context.experimental.disable_dataset_reproducibility_checks()
            self.draws: list[Any] = []

        def build_training_data_loader(self) -> Any:
            return LOADERS[name]()

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            x, y, number = batch
            drawn = float(torch.rand(())), random.random()  # as dropout would draw
            self.draws.append((epoch_idx, batch_idx, x.tolist(), y.tolist(), number.tolist(), drawn))
            return super().train_batch(batch, epoch_idx, batch_idx)

    def run(run_dir: str, epochs: int) -> list[Any]:
        context = open_run(run_dir=run_dir)
        trial, _ = fit(context, Drawing(context), max_length=Epoch(epochs), latest_checkpoint=context.latest_checkpoint)
        context.close()
        random.seed(99)
        torch.manual_seed(99)
        return [trial.draws, trial.weights]

    whole = run("whole", 3)
    parts = [run("parts", epochs) for epochs in (1, 2, 3)]
    assert [len(draws) for draws, _ in parts] == [len(whole[0]) // 3] * 3
    assert [[*first, *second, *third] for first, second, third in zip(*parts, strict=True)] == whole
