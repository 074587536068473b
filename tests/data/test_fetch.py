from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from trainlab.data import DataLoader

SIZE = 11


class WithGetItems(Dataset):
    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> int:
        raise AssertionError("asked for one record")

    def __getitems__(self, indices: list[int]) -> list[dict[str, int]]:
        self.asked.append(indices)
        return [{"x": index} for index in indices]


class Doubling(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return tuple(tensor * 2 for tensor in super().__getitem__(index))


def data_sets() -> dict[str, Any]:
    """Make a data set of each kind that is fetched in its own way."""
    images = torch.randn(SIZE, 3, 2)
    labels = torch.arange(SIZE)
    both = TensorDataset(images, labels)
    read_only = np.arange(SIZE * 2, dtype=np.float32).reshape(SIZE, 2)
    read_only.flags.writeable = False
    return {
        "tensors": both,
        "one tensor in a data set": TensorDataset(images),
        "tensor": images,
        "vector": labels,
        "strided": torch.randn(2, SIZE).t(),
        "half": images.bfloat16(),
        "array": images.numpy(),
        "numbers float32": np.arange(SIZE, dtype=np.float32),
        "numbers float64": np.arange(SIZE, dtype=np.float64),
        "numbers int32": np.arange(SIZE, dtype=np.int32),
        "numbers bool": np.arange(SIZE) > 3,
        "backwards": images.numpy()[::-1],
        "subset": Subset(both, [7, 3, 3, 0, 9]),
        "subset from the end": Subset(both, [-1, 3]),
        "subset of a subset": Subset(Subset(both, range(5)), [1, 0]),
        "subset of a tensor": Subset(images, range(0, SIZE, 2)),
        "changed in a subclass": Doubling(images, labels),
        "with a gradient": TensorDataset(images.clone().requires_grad_()),
        "list": [(index, {"x": float(index)}) for index in range(SIZE)],
        "many at once": WithGetItems(),
    }


def same(one: Any, other: Any) -> bool:
    """Tell whether two batches agree in structure, types and values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other) and one.requires_grad == other.requires_grad
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("name", data_sets())
@pytest.mark.parametrize("how", ["in order", "own sampler", "own batches", "alone"])
@pytest.mark.filterwarnings("ignore:The given NumPy array")  # torch's own loader says so
def test_batches_are_those_of_torch(name: str, how: str) -> None:
    """However a data set is fetched, structure, type and values are those of torch's own loader."""
    dataset = data_sets()[name]
    if name == "many at once" and how == "alone":
        pytest.skip("torch asks for single records then")
    backwards = range(len(dataset) - 1, -1, -1)
    arguments: dict[str, Any] = {
        "in order": {"batch_size": 4},
        "own sampler": {"batch_size": 4, "sampler": backwards, "drop_last": True},
        "own batches": {"batch_sampler": [[1, 0], [0]]},
        "alone": {"batch_size": None},
    }[how]
    ours = list(DataLoader(dataset, **arguments))
    theirs = list(torch.utils.data.DataLoader(dataset, **arguments))
    assert len(ours) == len(theirs)
    assert all(map(same, ours, theirs))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_batch_is_a_copy(shuffle: bool) -> None:
    """A batch that is changed in place leaves the data set as it was."""
    images = torch.ones(SIZE, 2)
    for (batch,) in DataLoader(TensorDataset(images), batch_size=4, shuffle=shuffle):
        batch.zero_()
    assert images.eq(1).all()


def test_shuffled_records_belong_together() -> None:
    """Shuffling moves the tensors of a data set together, and gives each record once."""
    labels = torch.arange(SIZE)
    batches = list(DataLoader(TensorDataset(labels * 10, labels), batch_size=3, shuffle=True))
    assert all(torch.equal(tens, ones * 10) for tens, ones in batches)
    assert sorted(torch.cat([ones for _, ones in batches]).tolist()) == labels.tolist()


def test_getitems_is_asked_once_a_batch() -> None:
    """A data set that can give many records at once is asked once per batch, with a list of ints."""
    dataset = WithGetItems()
    list(DataLoader(dataset, batch_size=4, shuffle=True))
    assert [len(indices) for indices in dataset.asked] == [4, 4, 3]
    assert all(type(index) is int for indices in dataset.asked for index in indices)


def test_own_collate_gets_records() -> None:
    """A collate function of one's own gets a list of records."""
    dataset = TensorDataset(torch.arange(5))
    batches = list(DataLoader(dataset, batch_size=2, collate_fn=lambda records: [type(records), len(records)]))
    assert batches == [[list, 2], [list, 2], [list, 1]]


def test_a_sampler_may_count_from_the_end() -> None:
    """Negative indices of a sampler mean what they mean for the data set."""
    (batch,) = DataLoader(torch.arange(5), batch_size=2, sampler=[-1, 0])
    assert batch.tolist() == [4, 0]


def test_keys_of_a_sampler_reach_the_data_set() -> None:
    """A sampler may give whatever the data set takes, strings too."""
    loader = DataLoader({"a": 1, "b": 2}, batch_size=2, sampler=["b", "a"])
    assert [batch.tolist() for batch in loader] == [[2, 1]]


def outcome(loader: Any) -> Any:
    """The batches of a loader, or the kind of error that reading them ends with."""
    try:
        return list(loader)
    except Exception as error:
        return [type(error)]


KEYS: dict[str, list[Any]] = {
    "ints": [3, -1, 0, 2],
    "numpy ints": list(np.array([3, -1, 0, 2])),
    "unsigned bytes": list(np.array([3, 1, 0, 2], dtype=np.uint8)),
    "tensors": list(torch.tensor([3, -1, 0, 2])),
    "tensors of bytes": list(torch.tensor([3, 1, 0, 2], dtype=torch.int16)),
    "tuples": [(0, 1), (1, 0), (2, 1), (3, 0)],
    "bools": [True, True],
    "numpy bools": list(np.array([True, True])),
    "tensor bools": list(torch.tensor([True, True])),
    "ints and bools": [1, True],
    "slices": [slice(0, 2), slice(2, 4)],
    "lists": [[0, 1], [2, 3]],
    "floats": [1.0, 2.0],
    "beyond the end": [0, SIZE],
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("how", ["one by one", "a list", "a tensor", "an array", "alone"])
@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8", "ignore:In future, it will be an error")
def test_keys_of_a_sampler_mean_what_they_mean_for_torch(keys: list[Any], how: str) -> None:
    """Whatever a sampler gives for the records of tensors, the batches are torch's, or the kind of error is."""
    arguments: dict[str, Any] = {"sampler": keys, "batch_size": 2}
    if how == "alone":
        arguments["batch_size"] = None
    elif how != "one by one":
        make = {"a list": list, "a tensor": torch.tensor, "an array": np.array}[how]
        try:
            arguments = {"batch_sampler": [make(keys)]}
        except (TypeError, ValueError, RuntimeError):
            pytest.skip("there is no such batch of keys")
    table = torch.arange(SIZE * 2).reshape(SIZE, 2)
    for dataset in (TensorDataset(table, table * 10), table, Subset(TensorDataset(table), range(SIZE))):
        ours = outcome(DataLoader(dataset, **arguments))
        theirs = outcome(torch.utils.data.DataLoader(dataset, **arguments))
        assert len(ours) == len(theirs)
        assert all(map(same, ours, theirs)), (ours, theirs)


def test_workers_are_told_the_keys_of_a_sampler() -> None:
    """With workers too, a sampler's slices, tuples and arrays reach the data set as they are."""
    table = torch.arange(SIZE * 2).reshape(SIZE, 2)
    for arguments in (
        {"sampler": [slice(1, 3), (2, 0)], "batch_size": None},
        {"batch_sampler": [np.array([-1, 0]), [(2, 0), (1, 1)]]},
    ):
        (first, second) = DataLoader(TensorDataset(table), num_workers=1, **arguments)
        theirs = list(torch.utils.data.DataLoader(TensorDataset(table), **arguments))
        assert same(list(first), list(theirs[0])) and same(list(second), list(theirs[1]))
