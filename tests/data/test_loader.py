import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from tests.data.datasets import Flow, Numbers, SizedFlow
from trainlab.data import DataLoader
from trainlab.errors import DataError


def test_arguments_are_torchs() -> None:
    """Every argument of torch's loader is there, at its place and with its default; ``sharded`` comes after them."""
    *ours, last = inspect.signature(DataLoader).parameters.values()
    theirs = inspect.signature(torch.utils.data.DataLoader).parameters.values()
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]
    assert (last.name, last.default) == ("sharded", False)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"persistent_workers": True},
        {"sampler": [0], "shuffle": True},
        {"batch_sampler": [[0]], "batch_size": 2},
        {"batch_sampler": [[0]], "shuffle": True},
        {"batch_sampler": [[0]], "sampler": [0]},
        {"batch_sampler": [[0]], "drop_last": True},
        {"batch_size": None, "drop_last": True},
        {"batch_size": 0},
        {"batch_size": True},
        {"batch_size": 1.5},
        {"multiprocessing_context": "fork"},
        {"multiprocessing_context": "telepathy", "num_workers": 1},
    ],
    ids=str,
)
def test_contradictions_are_value_errors(arguments: dict[str, Any]) -> None:
    """Arguments that contradict each other, or are out of range, are a ValueError that says what was received."""
    with pytest.raises(ValueError, match="Received"):
        DataLoader(Numbers(3), **arguments)


@pytest.mark.parametrize("arguments", [{"shuffle": True}, {"sampler": [0]}, {"batch_sampler": [[0]]}], ids=str)
def test_an_iterable_has_its_own_order(arguments: dict[str, Any]) -> None:
    """An iterable data set together with an order is an error."""
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Flow(), **arguments)


def test_wrong_types_are_type_errors() -> None:
    """A context or a generator that is none is a TypeError."""
    with pytest.raises(TypeError, match="Received"):
        DataLoader(Numbers(3), num_workers=1, multiprocessing_context=3)
    with pytest.raises(TypeError, match="Received"):
        DataLoader(Numbers(3), generator=3)


def test_neither_map_style_nor_iterable() -> None:
    """A data set that can only be iterated is refused, with what to do."""
    with pytest.raises(DataError, match="IterableDataset"):
        DataLoader({1, 2})


def test_an_empty_set_cannot_be_shuffled() -> None:
    """Shuffling nothing is an error that says so."""
    with pytest.raises(DataError, match="empty"):
        DataLoader([], shuffle=True)


@pytest.mark.parametrize("size", [0, 1, 7, 8])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"batch_size": 3},
        {"batch_size": 3, "drop_last": True},
        {"batch_size": None},
        {"sampler": range(5), "batch_size": 2},
        {"batch_sampler": [[0], [0]]},
    ],
    ids=str,
)
def test_length_and_content_outside_training(size: int, arguments: dict[str, Any]) -> None:
    """Outside training it has torch's length, and iterates over what torch's gives, each time again."""
    if not size and ("sampler" in arguments or "batch_sampler" in arguments):
        pytest.skip("there is nothing to index")
    size = max(size, 5) if "sampler" in arguments else size
    loader = DataLoader(Numbers(size), **arguments)
    theirs = torch.utils.data.DataLoader(Numbers(size), **arguments)
    assert len(loader) == len(theirs)
    expected = [torch.as_tensor(batch).tolist() for batch in theirs]
    assert [torch.as_tensor(batch).tolist() for batch in loader] == expected
    assert [torch.as_tensor(batch).tolist() for batch in loader] == expected


def test_length_of_iterables() -> None:
    """An iterable data set's length is that of its batches; without one, len is a TypeError."""
    assert len(DataLoader(SizedFlow(10), batch_size=4)) == 3
    assert len(DataLoader(SizedFlow(10), batch_size=4, drop_last=True)) == 2
    with pytest.raises(TypeError, match="Flow"):
        len(DataLoader(Flow(10)))


def test_attributes_are_torchs() -> None:
    """Code that looks at a loader finds torch's samplers and its own arguments."""
    dataset = Numbers(5)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, drop_last=True)
    assert loader.dataset is dataset
    assert (loader.batch_size, loader.drop_last, loader.num_workers, loader.prefetch_factor) == (2, True, 0, None)
    assert type(loader.sampler) is RandomSampler
    assert type(loader.batch_sampler) is BatchSampler
    assert type(DataLoader(dataset).sampler) is SequentialSampler
    assert DataLoader(dataset, num_workers=1).prefetch_factor == 2
    own = [[0]]
    loader = DataLoader(dataset, batch_sampler=own)
    assert loader.batch_sampler is own
    assert loader.batch_size is None


def test_orders_outside_training() -> None:
    """Outside training each pass has another order, drawn from the generator or else from torch's."""
    loader = DataLoader(torch.arange(50), batch_size=50, shuffle=True)
    torch.manual_seed(1)
    first, second = next(iter(loader)).tolist(), next(iter(loader)).tolist()
    torch.manual_seed(1)
    assert next(iter(loader)).tolist() == first != second
    orders = []
    for _ in range(2):
        own = DataLoader(torch.arange(50), batch_size=50, shuffle=True, generator=torch.Generator().manual_seed(7))
        orders.append(next(iter(own)).tolist())
    assert orders[0] == orders[1]


def test_reading_in_order_draws_nothing() -> None:
    """A pass in order, in this process, leaves torch's generator as it was."""
    before = torch.get_rng_state()
    list(DataLoader(torch.arange(5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_read_until_asked_for() -> None:
    """Making a loader and an iterator reads no record."""

    class Refusing(Numbers):
        def __getitem__(self, index: int) -> int:
            raise RuntimeError("read")

    iterator = iter(DataLoader(Refusing(3)))
    with pytest.raises(RuntimeError, match="read"):
        next(iterator)


def test_an_iterable_with_batches_of_its_own() -> None:
    """batch_size=None hands on the elements of an iterable data set as they are."""
    batches = list(DataLoader(Flow(3, shuffled=False), batch_size=None))
    assert [index.item() for index, _ in batches] == [0, 1, 2]


def test_a_batch_size_may_be_numpys() -> None:
    """A batch size that numpy computed is as good as an int, and is one afterwards."""
    loader = DataLoader(Numbers(5), batch_size=np.int64(2))
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
    assert type(loader.batch_size) is int and len(loader) == 3
    with pytest.raises(ValueError, match="batch_size"):
        DataLoader(Numbers(5), batch_size=np.bool_(True))


def test_an_annotation_may_name_the_records() -> None:
    """``DataLoader[int]``, as one writes it for torch's, can be evaluated, and makes a loader."""
    assert isinstance(DataLoader[int](Numbers(5)), DataLoader)
