from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from trainlab import data
from trainlab.errors import DataError, InvalidValueError


def batches_of(size: int, batch_size: int = 2) -> BatchSampler:
    """Make a batch sampler over a range."""
    return BatchSampler(SequentialSampler(range(size)), batch_size, drop_last=False)


@given(size=st.integers(0, 40), skip=st.integers(0, 50))
def test_skip(size: int, skip: int) -> None:
    """Skipping leaves out the first on every iteration, and the length stays that of the sampler inside."""
    sampler = data.SkipSampler(range(size), skip)
    assert list(sampler) == list(sampler) == list(range(size))[skip:]
    assert len(sampler) == size
    batch_sampler = data.SkipBatchSampler(batches_of(size), skip)
    assert list(batch_sampler) == list(batch_sampler) == list(batches_of(size))[skip:]
    assert len(batch_sampler) == len(batches_of(size))


def test_lengths_after_a_skip() -> None:
    """15 of 15 after skipping 2; 8 batches of 15 records by 2."""
    assert len(data.SkipSampler(range(15), 2)) == 15
    assert len(data.SkipBatchSampler(batches_of(15), 2)) == 8


@given(size=st.integers(1, 20), count=st.integers(0, 60))
def test_repeat(size: int, count: int) -> None:
    """Repeating goes round for ever, and has the length of one pass."""
    sampler = data.RepeatSampler(range(size))
    assert list(islice(sampler, count)) == [number % size for number in range(count)]
    assert len(sampler) == size
    batch_sampler = data.RepeatBatchSampler(batches_of(size))
    assert list(islice(batch_sampler, count)) == (list(batches_of(size)) * (count + 1))[:count]
    assert len(batch_sampler) == len(batches_of(size))


def test_repeat_iterates_anew() -> None:
    """Each pass asks the sampler inside for a new iteration, so a shuffle gives another order."""
    passes = list(islice(data.RepeatSampler(data.ReproducibleShuffleSampler(range(5), 777)), 10))
    assert passes == [0, 4, 1, 2, 3, 2, 0, 1, 3, 4]


def test_repeat_of_nothing_is_an_error() -> None:
    """Repeating an empty sampler is an error rather than a loop without an end."""
    with pytest.raises(DataError, match="empty"):
        next(iter(data.RepeatSampler([])))


@given(size=st.integers(0, 40), workers=st.integers(1, 8))
def test_distributed(size: int, workers: int) -> None:
    """The shares hold every element once, dealt out in turn, and know their exact length."""
    shares = [data.DistributedSampler(range(size), num_workers=workers, rank=rank) for rank in range(workers)]
    for rank, share in enumerate(shares):
        assert list(share) == list(range(size))[rank::workers]
        assert len(share) == len(list(share))
    batch_shares = [data.DistributedBatchSampler(batches_of(size), workers, rank) for rank in range(workers)]
    for rank, batch_share in enumerate(batch_shares):
        assert list(batch_share) == list(batches_of(size))[rank::workers]
        assert len(batch_share) == len(list(batch_share))


def test_distributed_worked_lengths() -> None:
    """19 over 4 are 5, 5, 5, 4, and 10 batches over 4 are 3, 3, 2, 2."""
    assert [len(data.DistributedSampler(range(19), 4, rank)) for rank in range(4)] == [5, 5, 5, 4]
    assert [len(data.DistributedBatchSampler(batches_of(20), 4, rank)) for rank in range(4)] == [3, 3, 2, 2]


@pytest.mark.parametrize("kind", [data.DistributedSampler, data.DistributedBatchSampler])
@pytest.mark.parametrize(("workers", "rank"), [(2, -1), (0, 0), (2, 2)])
def test_distributed_refuses(kind: type, workers: int, rank: int) -> None:
    """A rank that is none of the workers, and no workers at all, are errors."""
    with pytest.raises(InvalidValueError, match="Received"):
        kind([], num_workers=workers, rank=rank)


def test_skip_refuses_negative() -> None:
    """A negative number to skip is an error."""
    with pytest.raises(InvalidValueError, match="-1"):
        data.SkipSampler(range(3), -1)


def test_reproducible_shuffle_has_fixed_values() -> None:
    """The orders are those of numpy's RandomState, iteration after iteration."""
    sampler = data.ReproducibleShuffleSampler(range(5), 777)
    assert [list(sampler), list(sampler)] == [[0, 4, 1, 2, 3], [2, 0, 1, 3, 4]]
    first = [[0, 1], [8, 9], [2, 3], [4, 5], [6, 7]]
    second = [[4, 5], [0, 1], [2, 3], [6, 7], [8, 9]]
    for kind in (data.ReproducibleShuffleBatchSampler, data.ReproducibleShuffleSampler):
        batch_sampler = kind(batches_of(10), 777)
        assert [list(batch_sampler), list(batch_sampler)] == [first, second]
        assert len(batch_sampler) == 5


@given(size=st.integers(0, 30), seed=st.integers(0, 2**32 - 1), passes=st.integers(0, 4))
def test_a_shuffle_is_restored(size: int, seed: int, passes: int) -> None:
    """A state saved after some iterations, also through a sampler around it, gives the orders that follow."""
    sampler = data.SkipSampler(data.ReproducibleShuffleSampler(range(size), seed), 1)
    for _ in range(passes):
        list(sampler)
    saved = sampler.state_dict()
    expected = [list(sampler), list(sampler)]
    other = data.SkipSampler(data.ReproducibleShuffleSampler(range(size), 1), 1)
    other.load_state_dict(saved)
    assert [list(other), list(other)] == expected


def test_samplers_are_torchs() -> None:
    """They are torch samplers, so torch's own loader takes them."""
    loader = torch.utils.data.DataLoader(list(range(6)), sampler=data.SkipSampler(range(6), 4), batch_size=2)
    assert [batch.tolist() for batch in loader] == [[4, 5]]
