"""One loader, several ranks: what each of them reads, made in one process by a stream for each rank."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, Sampler, TensorDataset

from tests.data.datasets import Augmented, Flow, Numbers, StatefulFlow
from trainlab.compat import determined
from trainlab.data import BatchStream, DataLoader, DistributedSampler
from trainlab.errors import DataError, InvalidStateError, InvalidValueError


class Lazy(Sampler[int]):
    """Draws from the process's generators with every index."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.size))
        while left:
            yield left.pop(random.randrange(len(left)))


class Buffered(IterableDataset[Any]):
    """Shuffles as it reads, with the process's generators."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        buffer: list[int] = []
        for index in range(self.size):
            buffer.append(index)
            if len(buffer) == 4:
                yield torch.tensor(buffer.pop(int(torch.randint(4, ()))))
        yield from map(torch.tensor, buffer)


Read = list[tuple[int, int, int, list[int]]]


def plain(batch: Any) -> list[int]:
    """The records of a batch, by their first element."""
    return torch.as_tensor(batch[0] if isinstance(batch, list | tuple) else batch).reshape(-1).tolist()


def begun(stream: BatchStream, epoch: int, **position: Any) -> BatchStream:
    """The stream, at a position in an epoch."""
    stream.start_epoch(epoch, **position)
    return stream


def read(stream: BatchStream, ranks: int, limit: int | None = None) -> Read:
    """Of each batch its number, the records that count here and on all ranks, and what it holds."""
    found = []
    for batch in itertools.islice(stream, limit):
        random.random(), torch.rand(1)
        records = plain(batch)
        counted = (stream.local_records, stream.global_records) if ranks > 1 else (len(records), len(records))
        found.append((stream.batch_number, *counted, records))
    return found


def of_ranks(loader: Any, ranks: int, **options: Any) -> list[Read]:
    """What each rank reads in epoch 1; each has random numbers of its own."""
    found = []
    for rank in range(ranks):
        random.seed(rank), torch.manual_seed(rank)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=ranks, **options)
        found.append(read(begun(stream, 1), ranks))
        stream.close()
    return found


def joined(found: list[Read]) -> list[list[int]]:
    """The global batches, put together of the pieces that count."""
    return [
        list(itertools.chain(*(records[:local] for _, local, _, records in pieces)))
        for pieces in zip(*found, strict=True)
    ]


def filled_up(batch: list[int], ranks: int) -> list[int]:
    """A batch, repeated from its beginning until it is a multiple of the ranks."""
    return list(itertools.islice(itertools.cycle(batch), -(-len(batch) // ranks) * ranks))


def make_loader(kind: str, size: int, batch_size: int, drop_last: bool) -> DataLoader:
    """A loader of numbers, of one of the kinds that are dealt out."""
    common: dict[str, Any] = {"batch_size": batch_size, "drop_last": drop_last and size >= batch_size}
    if kind in ("iterable", "buffered", "stateful"):
        made = {"iterable": Flow(size, shuffled=False), "buffered": Buffered(size), "stateful": StatefulFlow(size)}
        return DataLoader(made[kind], **common)
    samplers: dict[str, Any] = {"sampler": range(size - 1, -1, -1), "lazy sampler": Lazy(size)}
    if kind in samplers:
        return DataLoader(torch.arange(size), sampler=samplers[kind], **common)
    if kind == "batches":
        lists = [list(range(first, min(size, first + 1 + first % 5))) for first in range(0, size, 3)]
        return DataLoader(torch.arange(size), batch_sampler=lists)
    return DataLoader(torch.arange(size), shuffle=kind == "shuffle", **common)


FIXED = ["order", "shuffle", "sampler", "batches", "iterable", "stateful"]
# Those that draw as they are read: on one rank from the process's own generators.
DRAWN = ["lazy sampler", "buffered"]
SIZES = {
    "size": st.integers(1, 30),
    "batch_size": st.integers(1, 9),
    "ranks": st.integers(2, 5),
    "drop_last": st.booleans(),
}


@pytest.mark.parametrize("kind", FIXED + DRAWN)
@given(**SIZES)
@settings(max_examples=25, deadline=None)
def test_pieces_are_the_batches_of_one_process(
    kind: str, size: int, batch_size: int, ranks: int, drop_last: bool
) -> None:
    """On any number of ranks, of any kind of data, the pieces that count are each batch exactly, in its order."""
    loader = make_loader(kind, size, batch_size, drop_last)
    found = of_ranks(loader, ranks)
    batches, expected = joined(found), [records for *_, records in of_ranks(loader, 1)[0]]
    if kind in DRAWN:
        records = list(itertools.chain(*batches))
        assert len(set(records)) == len(records)
        assert [len(batch) for batch in batches] == [len(batch) for batch in expected]
    else:
        assert batches == expected
    for number, pieces in enumerate(zip(*found, strict=True)):
        sizes = [local for _, local, _, _ in pieces]
        assert max(sizes) - min(sizes) <= 1
        assert {(n, everywhere) for n, _, everywhere, _ in pieces} == {(number, sum(sizes))}
        # Who has none gets one to run.
        assert all(len(records) == max(local, 1) for _, local, _, records in pieces)


@pytest.mark.parametrize("kind", FIXED + DRAWN)
@given(**SIZES)
@settings(max_examples=25, deadline=None)
def test_whole_batches_are_those_of_one_process(
    kind: str, size: int, batch_size: int, ranks: int, drop_last: bool
) -> None:
    """Dealt out whole, number k is on rank k modulo the ranks and on no other, and is the batch of one process."""
    loader = make_loader(kind, size, batch_size, drop_last)
    found = of_ranks(loader, ranks, deal="batches")
    for rank, batches in enumerate(found):
        assert all(number % ranks == rank for number, *_ in batches)
        assert all(local == everywhere == len(records) for _, local, everywhere, records in batches)
    dealt = sorted(itertools.chain(*found))
    expected = read(begun(BatchStream(loader, seed=1), 1), 1)
    if kind in DRAWN:
        records = list(itertools.chain(*(batch for *_, batch in dealt)))
        assert len(set(records)) == len(records)
        assert [one[:3] for one in dealt] == [one[:3] for one in expected]
    else:
        assert dealt == expected
    last = BatchStream(loader, seed=1, deal="batches", data_rank=ranks - 1, data_size=ranks)
    given = read(begun(last, 1), ranks)
    assert last.total_batches == len(dealt)
    if kind in ("order", "shuffle"):
        assert last.epoch_length == len(given)
    first = plain(last.stand_in())
    assert len(first) == len(given[-1][3] if given else dealt[0][3])
    if kind not in DRAWN:
        assert first == (given[-1][3] if given else dealt[0][3])


@pytest.mark.parametrize("kind", ["order", "sampler", "iterable"])
@given(**SIZES)
@settings(max_examples=25, deadline=None)
def test_pieces_can_be_made_equal(kind: str, size: int, batch_size: int, ranks: int, drop_last: bool) -> None:
    """Pieces are equal where the end of a batch is left out, or it is filled up with its beginning."""
    loader = make_loader(kind, size, batch_size, drop_last)
    batches = [records for *_, records in of_ranks(loader, 1)[0]]
    padded = of_ranks(loader, ranks, uneven="pad")
    assert joined(padded) == [filled_up(batch, ranks) for batch in batches]
    cut = [batch[: len(batch) // ranks * ranks] for batch in batches if len(batch) >= ranks]
    if cut and batch_size >= ranks:
        dropped = of_ranks(loader, ranks, uneven="drop")
        assert joined(dropped) == cut
        padded += dropped
    for one in padded:
        assert all(local == len(records) and everywhere == local * ranks for _, local, everywhere, records in one)


@pytest.mark.parametrize("kind", FIXED + DRAWN)
@given(
    size=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    before=st.integers(1, 5),
    after=st.integers(1, 5),
    asked=st.booleans(),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_a_resume_on_other_ranks_goes_on_in_the_order(
    kind: str, size: int, batch_size: int, before: int, after: int, asked: bool, data: st.DataObject
) -> None:
    """Stopped on some ranks and gone on with on others, each record comes once, at its place in the order."""
    if kind in DRAWN:
        # One process draws from its own generators, between the reads and for them, which cannot be repeated.
        before, after = max(before, 2), max(after, 2) if kind == "lazy sampler" else after

    def stream(rank: int, ranks: int, drawn: int) -> BatchStream:
        torch.manual_seed(rank + drawn), random.seed(rank + drawn)
        return BatchStream(make_loader(kind, size, batch_size, False), seed=1, data_rank=rank, data_size=ranks)

    whole = read(begun(stream(0, 1, 0), 1), 1)
    stop = data.draw(st.integers(1, len(whole)))
    given, saved = [], []
    for rank in range(before):
        stopped = begun(stream(rank, before, 0), 1)
        given.append(read(stopped, before, stop))
        if asked:
            stopped.exhausted()
            if before > 1:
                assert stopped.local_records == given[-1][-1][1]
        saved.append((stopped.position(), stopped.state_dict()))
    assert len({position for position, _ in saved}) == 1
    position, state = saved[0]
    rest = [
        read(begun(stream(rank, after, 50), 1, records=position, batches=stop, state=state), after)
        for rank in range(after)
    ]
    batches = joined(given) + joined(rest)
    assert [len(batch) for batch in batches] == [len(records) for *_, records in whole]
    assert [number for number, *_ in rest[0]] == list(range(stop, len(whole)))
    if kind in DRAWN:
        assert sorted(itertools.chain(*batches)) == list(range(size))
    else:
        assert batches == [records for *_, records in whole]


@pytest.mark.parametrize("kind", ["map", "pad", "sampler", "iterable", "drop"])
@pytest.mark.parametrize("deal", ["pieces", "batches"])
def test_with_workers_it_is_the_same(kind: str, deal: str) -> None:
    """Fetched by workers, the ranks share the records of one process with as many workers, each once."""

    def loader() -> DataLoader:
        if kind in ("map", "pad"):
            return DataLoader(Augmented(21), batch_size=4, shuffle=True, num_workers=2)
        if kind == "sampler":
            return DataLoader(Augmented(21), batch_size=4, sampler=range(20, -1, -1), num_workers=2)
        return DataLoader(Flow(21, shuffled=False), batch_size=4, num_workers=2)

    uneven = kind if kind in ("pad", "drop") else "scale"
    expected = [records for *_, records in of_ranks(loader(), 1)[0]]
    found = of_ranks(loader(), 3, deal=deal, uneven=uneven)
    if deal == "batches":
        assert [records for *_, records in sorted(itertools.chain(*found))] == expected
    elif kind == "pad":
        assert joined(found) == [filled_up(batch, 3) for batch in expected]
    elif kind == "drop":
        assert joined(found) == [batch[: len(batch) // 3 * 3] for batch in expected if len(batch) >= 3]
    else:
        assert joined(found) == expected


def test_what_an_iterable_draws_in_workers_is_the_same_on_all_ranks() -> None:
    """An iterable data set that shuffles in its workers gives the same order on any number of ranks."""
    loader = DataLoader(Buffered(20), batch_size=4, num_workers=1)
    expected = [records for *_, records in of_ranks(loader, 1)[0]]
    assert expected != sorted(expected)
    for ranks in (2, 3):
        assert joined(of_ranks(loader, ranks)) == expected


def test_augmentation_differs_between_ranks_and_not_between_numbers_of_them() -> None:
    """With workers, ranks augment their pieces differently; a whole batch is augmented alike whichever rank has it."""
    loader = DataLoader(Augmented(8), batch_size=4, num_workers=1)

    def drawn(ranks: int, deal: str) -> list[list[float]]:
        streams = [BatchStream(loader, seed=1, data_rank=r, data_size=ranks, deal=deal) for r in range(ranks)]
        found = [[batch[1][0].tolist() for batch in begun(stream, 0)] for stream in streams]
        for stream in streams:
            stream.close()
        return [one for turn in itertools.zip_longest(*found) for one in turn if one is not None]

    pieces = drawn(2, "pieces")
    assert len(set(map(tuple, pieces))) == len(pieces) == 4
    assert drawn(2, "batches") == drawn(1, "batches")


def test_reading_alike_leaves_each_ranks_generators_alone() -> None:
    """While ranks read the same random order, what they draw for themselves is their own, as if nothing was read."""
    found = []
    for dataset in (Buffered(9), torch.arange(9)):
        torch.manual_seed(5)
        stream = begun(BatchStream(DataLoader(dataset, batch_size=3), seed=1, data_rank=1, data_size=2), 0)
        found.append([torch.rand(()).item() for _ in stream])
    assert found[0] == found[1]


def test_records_left_out_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """How many records an epoch leaves out, or uses twice, is told once and by one rank."""
    loader = DataLoader(torch.arange(23), batch_size=5)
    for rank in range(2):
        for uneven in ("drop", "pad", "scale"):
            stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, uneven=uneven)
            read(begun(stream, 0), 2), read(begun(stream, 1), 2)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "uneven='drop': 5 records of each epoch are left out",
        "uneven='pad': 5 records of each epoch are used twice",
    ]


def test_what_cannot_be_asked_for_is_refused() -> None:
    """Unknown options are an error that lists the allowed ones, and so is a batch too small to be cut."""
    loader = DataLoader(torch.arange(9), batch_size=2)
    for options, told in (
        ({"deal": "records"}, "pieces.*batches.*Received: 'records'"),
        ({"uneven": "fill"}, "scale.*drop.*pad.*Received: 'fill'"),
        ({"uneven": "drop"}, "at least one record for each rank.*batch_size=2 for 3"),
        ({"data_rank": 3}, "Received: 3 of 3"),
    ):
        with pytest.raises(InvalidValueError, match=told):
            BatchStream(loader, seed=1, data_size=3, **options)
    with pytest.raises(InvalidStateError, match="beginning"):
        BatchStream(loader, seed=1, data_size=3, deal="batches").start_epoch(0, records=2, batches=1)


def test_an_empty_set_is_an_error_on_every_rank() -> None:
    """Whole batches may leave a rank without any; only if there is none at all is the data set empty."""
    for dataset in (torch.arange(0), Flow(0)):
        with pytest.raises(DataError, match="empty"):
            next(begun(BatchStream(DataLoader(dataset), seed=1, deal="batches", data_rank=1, data_size=2), 0))
    for dataset in (torch.arange(1), Flow(1)):
        stream = begun(BatchStream(DataLoader(dataset), seed=1, deal="batches", data_rank=1, data_size=2), 0)
        assert stream.exhausted()
        assert list(stream) == []
        assert plain(stream.stand_in()) == [0]


def test_a_sampler_that_deals_out_is_not_dealt_out_again() -> None:
    """A sampler with a share of its own in a trainlab.DataLoader is an error, which says to leave it out."""
    sampler = DistributedSampler(range(9), 2, 0)
    with pytest.raises(DataError, match="DistributedSampler.*Leave it out"):
        BatchStream(DataLoader(torch.arange(9), sampler=sampler), seed=1, data_size=2)


def test_a_foreign_loader_is_not_trained_by_all_ranks_alike() -> None:
    """A loader that gives all ranks the same batches is refused for training, with the three ways out."""
    loader = torch.utils.data.DataLoader(Numbers(9), batch_size=2)
    told = r"trainlab\.DataLoader.*DistributedSampler.*trainlab\.data\.sharded"
    for one in (loader, [torch.arange(3)]):
        with pytest.raises(DataError, match=told):
            BatchStream(one, seed=1, data_size=2)


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_foreign_loader_is_validated_by_batches(ranks: int, shuffle: bool) -> None:
    """For validation a foreign loader's batches are dealt out, each to one rank, also where it shuffles."""
    loader = torch.utils.data.DataLoader(TensorDataset(torch.arange(14)), batch_size=3, shuffle=shuffle)
    found = of_ranks(loader, ranks, deal="batches", role="validation")
    dealt = sorted(itertools.chain(*found))
    assert [number for number, *_ in dealt] == list(range(5))
    assert sorted(itertools.chain(*(records for *_, records in dealt))) == list(range(14))
    assert [records for *_, records in dealt][:2] == [[0, 1, 2], [3, 4, 5]] or shuffle


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_determined_counts_batches_per_slot(ranks: int) -> None:
    """Determined's batch sizes are those of a process: pieces of so many in training, batches of so many besides."""
    sampler = torch.utils.data.BatchSampler(range(12), 2, drop_last=False)
    for loader in (
        determined.DataLoader(torch.arange(12), batch_size=2),
        determined.DataLoader(torch.arange(12), batch_sampler=sampler),
    ):
        batches = joined(of_ranks(loader, ranks, cut_by_len=True))
        assert batches == [list(range(start, start + 2 * ranks)) for start in range(0, 12, 2 * ranks)]
        dealt = sorted(itertools.chain(*of_ranks(loader, ranks, deal="batches")))
        assert [records for *_, records in dealt] == [[start, start + 1] for start in range(0, 12, 2)]


@pytest.mark.parametrize("uneven", ["scale", "drop", "pad"])
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    ranks=st.integers(2, 4),
    after=st.integers(2, 4),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_determined_deals_the_batches_of_a_batch_sampler_whole(
    uneven: str, sizes: list[int], ranks: int, after: int, data: st.DataObject
) -> None:
    """Of a user's batches of any sizes, number k is on rank k modulo the ranks, also after a resume on others."""
    numbers = iter(range(sum(sizes)))
    batches = [list(itertools.islice(numbers, size)) for size in sizes]
    loader = determined.DataLoader(torch.arange(sum(sizes)), batch_sampler=batches)
    groups = [batches[start : start + ranks] for start in range(0, len(batches), ranks)]
    if uneven == "drop":
        groups = [group for group in groups if len(group) == ranks]
    if uneven == "pad":
        groups = [list(itertools.islice(itertools.cycle(group), ranks)) for group in groups]
    assume(groups)
    found = of_ranks(loader, ranks, uneven=uneven)
    for rank, read_here in enumerate(found):
        assert [records for _, local, _, records in read_here if local] == [g[rank] for g in groups if rank < len(g)]
        assert [everywhere for _, _, everywhere, _ in read_here] == [sum(map(len, group)) for group in groups]
        assert all(len(records) == (local or len(records)) and records for _, local, _, records in read_here)
    assert len(set(map(len, found))) == 1
    if uneven != "scale":
        return
    stop = data.draw(st.integers(1, len(groups)))
    streams = [BatchStream(loader, seed=1, data_rank=rank, data_size=ranks) for rank in range(ranks)]
    assert [len(read(begun(stream, 1), ranks, stop)) for stream in streams] == [stop] * ranks
    rest = []
    for rank in range(after):
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=after)
        begun(stream, 1, records=streams[0].position(), batches=stop, state=streams[0].state_dict())
        rest.append([records for _, local, _, records in read(stream, after) if local])
    in_turn = [batch for turn in itertools.zip_longest(*rest) for batch in turn if batch is not None]
    assert in_turn == batches[stop * ranks :]


def test_with_workers_determined_deals_whole_batches_too() -> None:
    """Fetched by workers, a rank's batches are the user's whole ones, and an epoch has as many as are joined."""
    batches = [[0], [1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    loader = determined.DataLoader(torch.arange(11), batch_sampler=batches, num_workers=1)
    found = of_ranks(loader, 2, cut_by_len=True)
    assert [records for *_, records in found[0]] == batches[::2]
    assert [(local, everywhere, records) for _, local, everywhere, records in found[1]] == [
        (3, 4, [1, 2, 3]),
        (1, 3, [6]),
        (0, 4, [7, 8, 9, 10]),
    ]


def test_batches_of_any_sequence_are_gone_on_with() -> None:
    """A batch sampler may give tuples: a resume goes on at the next of its batches."""
    loader = DataLoader(torch.arange(6), batch_sampler=[(0, 1), (2, 3), (4, 5)])
    stream = begun(BatchStream(loader, seed=1), 1, records=2, batches=1)
    assert [records for *_, records in read(stream, 1)] == [[2, 3], [4, 5]]
