"""Loaders and samplers in training, and outside it."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, SequentialSampler, TensorDataset

from tests.compat.trials import OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch, Epoch
from trainlab.data.share import Share


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def joined(lists: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def read(loader: Any, limit: int | None = None) -> list[list[int]]:
    return [batch[0].tolist() for batch in itertools.islice(loader, limit)]


class Own(OneWeightTrial):
    """Trains from the loader that the test makes, in batches whose records are kept."""

    loader: Any = None

    def build_training_data_loader(self) -> Any:
        return type(self).loader(self.data())


def trained(context: Any, loader: Any, records: int = 10, **arguments: Any) -> list[list[int]]:
    """The records of each batch, as training reads them."""
    trial_class = type("Trial", (Own,), {"loader": staticmethod(loader), "records": records})
    return fit(context, trial_class(context), **arguments)[0].batches


def test_without_shuffling_batches_come_in_order(open_run: Open) -> None:
    """Training reads the data set from its beginning, short last batch included, in each epoch."""
    batches = trained(open_run(), lambda data: pytorch.DataLoader(data, batch_size=4), max_length=Epoch(2))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


def test_shuffling_drop_last_and_size_go_together(open_run: Open) -> None:
    """All three at once: each epoch has full batches of different records in another order."""
    loader = lambda data: pytorch.DataLoader(data, batch_size=2, shuffle=True, drop_last=True)  # noqa: E731
    batches = trained(open_run(), loader, records=9, max_length=Epoch(2))
    assert [len(batch) for batch in batches] == [2] * 8
    first, second = joined(batches[:4]), joined(batches[4:])
    assert len(set(first)) == len(set(second)) == 8 and first != second


def test_samplers_in_training(open_run: Open) -> None:
    """A shuffling sampler gives its own orders, epoch by epoch, as fixed by its seed."""

    def loader(data: Any) -> Any:
        sampler = pytorch.samplers.ReproducibleShuffleSampler(SequentialSampler(data), 777)
        return pytorch.DataLoader(data, batch_size=5, sampler=sampler)

    batches = trained(open_run(), loader, records=5, max_length=Epoch(2))
    assert batches == [[0, 4, 1, 2, 3], [2, 0, 1, 3, 4]]


def test_a_batch_sampler_in_training(open_run: Open) -> None:
    """Batches of indices dealt out and skipped by hand arrive as they are, cut by their len."""

    def loader(data: Any) -> Any:
        inner = torch.utils.data.BatchSampler(SequentialSampler(data), 2, drop_last=False)
        return pytorch.DataLoader(data, batch_sampler=pytorch.samplers.DistributedBatchSampler(inner, 2, 1))

    assert trained(open_run(), loader, max_length=Epoch(1)) == [[2, 3], [6, 7]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"persistent_workers": True},
        {"sampler": range(3), "shuffle": True},
        {"batch_sampler": [[0]], "batch_size": 2},
        {"batch_sampler": [[0]], "shuffle": True},
        {"batch_sampler": [[0]], "sampler": range(3)},
        {"batch_sampler": [[0]], "drop_last": True},
    ],
)
def test_arguments_that_contradict_each_other(arguments: dict[str, Any]) -> None:
    """What torch's loader refuses is a ValueError here, too."""
    with pytest.raises(ValueError):
        pytorch.DataLoader(numbers(3), **arguments)


def test_outside_training_a_loader_is_read_once() -> None:
    """A loader can be iterated by hand; its len is the number of batches of the whole."""
    loader = pytorch.DataLoader(numbers(10), batch_size=4)
    assert read(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(loader) == 3


def test_a_torch_loader_of_the_same_data() -> None:
    """get_data_loader gives a torch DataLoader: everything once, or repeated, dealt out and skipped."""
    loader = pytorch.DataLoader(numbers(10), batch_size=4)
    made = loader.get_data_loader()
    assert type(made) is torch.utils.data.DataLoader and read(made) == read(loader)
    skipped = loader.get_data_loader(repeat=True, skip=2)
    assert read(skipped, 5) == [[8, 9], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    shares = [read(loader.get_data_loader(num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert shares == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7]]]
    # Dealt out of the repeated stream: the second share begins where the first pass ended.
    assert read(loader.get_data_loader(True, 1, 2, 1), 2) == [[0, 1, 2, 3], [8, 9]]
    assert read(pytorch.DataLoader(numbers(4), batch_size=2, num_workers=1).get_data_loader(skip=1)) == [[2, 3]]
    collated = pytorch.DataLoader(numbers(4), batch_size=2, collate_fn=len).get_data_loader()
    assert list(collated) == [2, 2]


def test_a_data_set_without_indices_has_no_torch_loader() -> None:
    """What cannot be dealt out by indices is refused with the reason."""
    with pytest.raises(ValueError, match="map-style"):
        pytorch.DataLoader(Ten(), batch_size=2).get_data_loader()


def test_a_batch_sampler_is_adapted_by_itself() -> None:
    """adapt_batch_sampler repeats, deals out and skips, in this order."""
    inner = torch.utils.data.BatchSampler(range(10), 4, drop_last=False)
    assert pytorch.adapt_batch_sampler(inner) is inner
    adapted = pytorch.adapt_batch_sampler(inner, repeat=True, skip=1, num_replicas=2, rank=0)
    assert list(itertools.islice(adapted, 2)) == [[8, 9], [4, 5, 6, 7]]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_batch_size_is_that_of_one_process(ranks: int) -> None:
    """With n processes and batches of 2, global batch k is records 2nk … 2nk + 2n - 1, in pieces of 2."""
    loader = pytorch.DataLoader(numbers(12), batch_size=2)
    shares = [Share(rank, ranks) for rank in range(ranks)]
    read_by = [
        [batch[0].tolist() for batch in loader.for_ranks(ranks).source(0, share).batches(0, 0, 0, None)]
        for share in shares
    ]
    global_batches = [joined(pieces) for pieces in zip(*read_by, strict=True)]
    assert global_batches == [list(range(first, first + 2 * ranks)) for first in range(0, 12, 2 * ranks)]
    assert all(len(piece) == 2 for pieces in read_by for piece in pieces)


class Ten(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(1), torch.ones(1), number) for number in range(10)])

    def __len__(self) -> int:
        return 10


def test_an_iterable_data_set_is_trained(open_run: Open) -> None:
    """An iterable data set with a len has epochs of it."""
    batches = trained(open_run(), lambda data: pytorch.DataLoader(Ten(), batch_size=4), max_length=Epoch(2))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


@pytest.mark.parametrize("which", ["training", "validation"])
def test_a_plain_torch_loader_is_an_error(open_run: Open, which: str) -> None:
    """A torch DataLoader from a build hook is a RuntimeError that says how to switch the check off."""

    class Plain(OneWeightTrial):
        pass

    setattr(Plain, f"build_{which}_data_loader", lambda self: torch.utils.data.DataLoader(self.data(), batch_size=4))
    context = open_run()
    trial = Plain(context)
    with pytest.raises(RuntimeError, match="you can disable this check by calling"):
        fit(context, trial, max_length=Batch(1))
    assert trial.seen == []


def test_a_plain_torch_loader_that_is_asked_for(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    """After the check is disabled a torch DataLoader trains, is begun anew when it ends, and is not warned of."""

    class Plain(OneWeightTrial):
        records = 8

        def __init__(self, context: Any) -> None:
            super().__init__(context)
            context.experimental.disable_dataset_reproducibility_checks()

        def build_training_data_loader(self) -> Any:
            return torch.utils.data.DataLoader(self.data(), batch_size=4)

        build_validation_data_loader = build_training_data_loader

    context = open_run()
    trial, _ = fit(context, Plain(context), max_length=Batch(5), checkpoint_policy="none")
    assert trial.batches == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2 + [[0, 1, 2, 3]]
    assert trial.seen[-1] == (2, 4)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
