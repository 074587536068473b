import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SubsetRandomSampler, WeightedRandomSampler

from tests.data.datasets import Augmented, Flow, GrowingFlow, Numbers, SizedFlow, StatefulFlow
from trainlab import data
from trainlab.data import BatchStream, DataLoader
from trainlab.distributed import RngState, seed_all
from trainlab.errors import DataError, InvalidStateError


def numbers_of(stream: BatchStream, epoch: int, **position: int) -> list[list[int]]:
    """Read an epoch, as Python values."""
    stream.start_epoch(epoch, **position)
    return [torch.as_tensor(batch).tolist() for batch in stream]


def plain(value: Any) -> Any:
    """Turn a batch into Python values, which compare exactly."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def train(stream: BatchStream, epochs: int, stop: int | None = None, saved: dict[str, Any] | None = None) -> Any:
    """Read as the loop does, drawing random numbers of one's own in between, from a saved position on."""
    given: list[Any] = []
    epoch, records, batches = (saved["epoch"], saved["records"], saved["batches"]) if saved else (0, 0, 0)
    stream.start_epoch(epoch, records=records, batches=batches, state=saved and saved["stream"])
    if saved:
        saved["rng"].restore()
    total = 0
    while epoch < epochs:
        given.append((epoch, plain(next(stream))))
        batches += 1
        total += 1
        torch.rand(1), np.random.rand(), random.random()
        ended = stream.exhausted()
        position = stream.position()
        if ended:
            epoch, batches, position = epoch + 1, 0, 0
        if total == stop:
            state = stream.state_dict()
            stream.close()
            return {
                "epoch": epoch,
                "records": position,
                "batches": batches,
                "stream": state,
                "rng": RngState.capture(),
                "given": given,
            }
        if ended and epoch < epochs:
            stream.start_epoch(epoch)
    stream.close()
    return given


class PerEpoch(Sampler[int]):
    """Draws from torch's generator when it begins, and heeds the epoch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch = -1

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        order = torch.randperm(self.size).tolist()
        return iter(order[self.epoch % 3 :])


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(Augmented(), batch_size=4, shuffle=True),
    "in order, last left out": lambda: DataLoader(Augmented(), batch_size=4, drop_last=True),
    "alone": lambda: DataLoader(Augmented(11), batch_size=None, shuffle=True),
    "tensors": lambda: DataLoader(torch.arange(37), batch_size=4, shuffle=True),
    "generator": lambda: DataLoader(
        torch.arange(37), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "own sampler": lambda: DataLoader(Augmented(), batch_size=4, sampler=PerEpoch(37)),
    "random sampler": lambda: DataLoader(Augmented(), batch_size=4, sampler=RandomSampler(range(37), replacement=True)),
    "sampler with a generator": lambda: DataLoader(
        Augmented(), batch_size=4, sampler=RandomSampler(range(37), generator=torch.Generator().manual_seed(4))
    ),
    "weighted": lambda: DataLoader(Augmented(), batch_size=4, sampler=WeightedRandomSampler([1.0, 2.0] * 8, 19)),
    "subset": lambda: DataLoader(Augmented(), batch_size=4, sampler=SubsetRandomSampler(range(3, 20))),
    "own batches": lambda: DataLoader(
        Augmented(),
        batch_sampler=data.SkipBatchSampler(BatchSampler(data.ReproducibleShuffleSampler(range(37), 7), 4, False), 1),
    ),
    "own alone": lambda: DataLoader(torch.arange(37), batch_size=None, sampler=BatchSampler(PerEpoch(37), 4, False)),
    "iterable": lambda: DataLoader(Flow(), batch_size=4),
    "iterable of batches": lambda: DataLoader(Flow(9), batch_size=None),
    "iterable with len": lambda: DataLoader(SizedFlow(), batch_size=4),
    "iterable with a state": lambda: DataLoader(StatefulFlow(), batch_size=4),
    "torch's": lambda: torch.utils.data.DataLoader(Augmented(), batch_size=4, shuffle=True),
    "torch's, generator": lambda: torch.utils.data.DataLoader(
        Augmented(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "torch's, iterable": lambda: torch.utils.data.DataLoader(Flow(), batch_size=4),
    "a list": lambda: [torch.arange(3), torch.arange(2)],
}


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_resume_is_exact(name: str, cut: bool) -> None:
    """Stopped after any batch and gone on in a new stream, the batches are those of the uninterrupted run."""
    if cut and name in ("iterable", "iterable of batches", "iterable with a state", "torch's, iterable"):
        pytest.skip("such a loader is one endless epoch; see below")

    def stream() -> BatchStream:
        return BatchStream(LOADERS[name](), seed=9, cut_by_len=cut)

    seed_all(1)
    whole = train(stream(), 3)
    for stop in {1, 2, 5, len(whole) // 3, len(whole) // 2, len(whole) - 1} - {0, len(whole)}:
        seed_all(1)
        saved = train(stream(), 3, stop=stop)
        seed_all(99)
        assert saved["given"] == whole[:stop]
        assert train(stream(), 3, saved=saved) == whole[stop:], f"after {stop} batches"


@given(size=st.integers(1, 40), batch_size=st.integers(1, 9), epoch=st.integers(0, 5), data=st.data())
@settings(max_examples=40, deadline=None)
def test_ranks_share_each_batch(size: int, batch_size: int, epoch: int, data: st.DataObject) -> None:
    """The pieces of 1, 2 or 4 ranks, put together, are the same global batches, and differ by at most one record."""
    loader = DataLoader(torch.arange(size), batch_size=batch_size, shuffle=data.draw(st.booleans()))
    whole = numbers_of(BatchStream(loader, seed=1), epoch)
    assert sorted(itertools.chain(*whole)) == list(range(size))
    for ranks in (2, 4):
        pieces = [
            numbers_of(BatchStream(loader, seed=1, data_rank=rank, data_size=ranks), epoch) for rank in range(ranks)
        ]
        for number, batch in enumerate(whole):
            mine = [piece[number] for piece in pieces]
            if len(batch) >= ranks:
                assert list(itertools.chain(*mine)) == batch
                assert max(map(len, mine)) - min(map(len, mine)) <= 1
            else:  # a rank without a record stands in with the first
                assert all(len(piece) == 1 and piece[0] in batch for piece in mine)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    """Same seed and epoch: same order, whatever was read before. Another seed or epoch: another order."""
    loader = DataLoader(torch.arange(60), batch_size=7, shuffle=True)
    stream = BatchStream(loader, seed=1)
    first, second = numbers_of(stream, 0), numbers_of(stream, 1)
    torch.rand(3)
    assert numbers_of(BatchStream(loader, seed=1), 1) == second != first == numbers_of(stream, 0)
    assert numbers_of(BatchStream(loader, seed=2), 0) != first


def test_a_generator_takes_the_seeds_place() -> None:
    """With a generator its initial seed sets the order, for any seed of the run."""

    def order(generator_seed: int, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(generator_seed)
        loader = DataLoader(torch.arange(60), batch_size=60, shuffle=True, generator=generator)
        return numbers_of(BatchStream(loader, seed=seed), 0)

    assert order(5, seed=1) == order(5, seed=2) != order(6, seed=1)


@pytest.mark.parametrize("name", ["own sampler", "random sampler", "sampler with a generator", "weighted", "subset"])
def test_own_samplers_are_functions_of_seed_and_epoch(name: str) -> None:
    """A user's sampler gives the same order for the same seed and epoch, another for another epoch."""

    def order(stream: BatchStream, epoch: int) -> list[int]:
        stream.start_epoch(epoch)
        return list(itertools.chain(*(batch[0].tolist() for batch in stream)))

    stream = BatchStream(LOADERS[name](), seed=1)
    orders = [order(stream, epoch) for epoch in range(4)]
    torch.rand(5)
    assert order(BatchStream(LOADERS[name](), seed=1), 3) == orders[3] == order(stream, 3)
    assert orders[0] != orders[3]


@pytest.mark.parametrize("name", LOADERS)
def test_beginning_an_epoch_draws_nothing(name: str) -> None:
    """Beginning an epoch leaves the generators of the process as they were."""
    if name.startswith("torch's"):
        pytest.skip("torch's loader draws by itself")
    dataset_draws = name.startswith("iterable")
    stream = BatchStream(LOADERS[name](), seed=1)
    before = torch.get_rng_state(), random.getstate()
    stream.start_epoch(0)
    if not dataset_draws and "tensors" in name:
        next(stream)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_a_resume_reads_no_earlier_record() -> None:
    """Going on at a position reads the records that follow and no other, also with a sampler of one's own."""
    for arguments in ({"shuffle": True}, {"sampler": PerEpoch(37)}):
        dataset = Augmented()
        stream = BatchStream(DataLoader(dataset, batch_size=4, **arguments), seed=1)
        stream.start_epoch(3)
        list(stream)
        order, dataset.read = dataset.read, []
        stream.start_epoch(3, records=24, batches=6)
        assert dataset.read == []
        list(stream)
        assert dataset.read == order[24:]


def test_an_iterable_with_a_state_reads_no_earlier_record() -> None:
    """An iterable data set that can save and load its state goes on there, without reading again."""
    stream = BatchStream(DataLoader(StatefulFlow(20), batch_size=4), seed=1)
    stream.start_epoch(0)
    next(stream), next(stream)
    stream.exhausted()
    dataset = StatefulFlow(20)
    resumed = BatchStream(DataLoader(dataset, batch_size=4), seed=1)
    resumed.start_epoch(0, records=8, batches=2, state=stream.state_dict())
    assert [batch[0].tolist() for batch in resumed] == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    assert dataset.read == 12


def test_reading_again_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """An iterable data set without a state is read again up to the position, which is logged once."""
    stream = BatchStream(DataLoader(Flow(20, shuffled=False), batch_size=4), seed=1)
    with caplog.at_level("INFO", logger="trainlab.data"):
        for _ in range(2):
            stream.start_epoch(0, records=8, batches=2)
            assert next(stream)[0].tolist() == [8, 9, 10, 11]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "read again" in caplog.text


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_batch_size_may_change_at_a_resume(drop_last: bool) -> None:
    """The position counts records, so another batch size goes on where the last record was, and knows its length."""

    def stream(batch_size: int) -> BatchStream:
        loader = DataLoader(torch.arange(30), batch_size=batch_size, shuffle=True, drop_last=drop_last)
        return BatchStream(loader, seed=1)

    first = stream(4)
    first.start_epoch(0)
    begun = [next(first).tolist() for _ in range(3)]
    second = stream(5)
    rest = numbers_of(second, 0, records=first.position(), batches=3)
    whole = numbers_of(stream(30), 0)[0]
    assert list(itertools.chain(*begun, *rest)) == (whole[:27] if drop_last else whole)
    assert second.epoch_length == 3 + len(rest)


def test_position_counts_what_was_given() -> None:
    """A batch that was fetched to see whether one follows is not counted until it is given."""
    stream = BatchStream(DataLoader(Flow(10), batch_size=4), seed=1)
    stream.start_epoch(0)
    positions = []
    for _ in range(3):
        next(stream)
        stream.exhausted()
        positions.append(stream.position())
    assert positions == [4, 8, 10]
    assert stream.exhausted()
    with pytest.raises(StopIteration):
        next(stream)


def test_epochs_may_differ_in_length() -> None:
    """Each epoch of an iterable data set ends when the data set does."""
    stream = BatchStream(DataLoader(GrowingFlow(3), batch_size=2), seed=1)
    assert [numbers_of(stream, epoch) for epoch in range(3)] == [[[0, 1], [2]], [[0, 1], [2, 3]], [[0, 1], [2, 3], [4]]]


def test_a_length_that_is_wrong_does_not_cut() -> None:
    """A sampler whose length is not the number of its indices still gives all of them and no more."""
    stream = BatchStream(DataLoader(Numbers(15), batch_size=2, sampler=data.SkipSampler(range(15), 11)), seed=1)
    stream.start_epoch(0)
    given = []
    while not stream.exhausted():
        given.append(next(stream).tolist())
    assert given == [[11, 12], [13, 14]]


@pytest.mark.parametrize(
    ("loader", "hint"),
    [
        (DataLoader(Flow(0)), "iterated"),
        (DataLoader(Numbers(0)), "records"),
        (DataLoader(Numbers(3), batch_size=4, drop_last=True), "drop_last"),
        (DataLoader(Numbers(3), sampler=[]), "records"),
        ([], "records"),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_an_empty_epoch_is_an_error(loader: Any, hint: str, cut: bool) -> None:
    """An epoch without a batch is an error that names the role and what to do, however it is found."""
    for ask in (next, BatchStream.exhausted):
        stream = BatchStream(loader, seed=1, role="validation", cut_by_len=cut)
        stream.start_epoch(0)
        if cut and ask is BatchStream.exhausted and stream.epoch_length is None:
            continue
        with pytest.raises(DataError, match=f"validation data set is empty.*{hint}"):
            ask(stream)  # type: ignore[operator]


def test_a_one_shot_iterator_is_refused() -> None:
    """A generator cannot be a loader, since the second epoch would be empty."""
    with pytest.raises(TypeError, match="only once"):
        BatchStream(iter([1]), seed=1)
    with pytest.raises(TypeError, match="DataLoader"):
        BatchStream(3, seed=1)


class Remembering(Numbers):
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Again:
    """Batches without a state."""

    def __iter__(self) -> Any:
        return iter([torch.arange(3)])


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (
            torch.utils.data.DataLoader(Numbers(3), num_workers=1),
            "num_workers=1.*With num_workers=0.*trainlab.DataLoader",
        ),
        (torch.utils.data.DataLoader(Remembering(3)), "Remembering.*trainlab.DataLoader"),
        (torch.utils.data.DataLoader(Numbers(3), sampler=data.RepeatSampler(range(3))), "RepeatSampler"),
        (Again(), "Again, has no state_dict"),
        (DataLoader(Numbers(3), num_workers=2, in_order=False), "in_order=False"),
    ],
)
def test_what_cannot_be_resumed_exactly_is_told_once(loader: Any, told: str, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be resumed exactly is told at the first checkpoint, not before, with what would be exact."""
    for options in ({"role": "validation"}, {"warn": False}):
        if not isinstance(loader, DataLoader) or "role" in options:
            BatchStream(loader, seed=1, **options).warn_of_inexactness()
    stream = BatchStream(loader, seed=1)
    stream.start_epoch(0)
    assert not caplog.records
    for _ in range(2):
        stream.warn_of_inexactness()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search(told, caplog.text)
    stream.close()


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Remembering(3), num_workers=1),
        DataLoader(Flow(), num_workers=2),
        torch.utils.data.DataLoader(Numbers(3), shuffle=True),
        torch.utils.data.DataLoader(Flow()),
        [torch.arange(3)],
    ],
)
def test_what_is_resumed_exactly_is_not_warned_of(loader: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said of a loader that is resumed exactly, be it by reading again."""
    BatchStream(loader, seed=1).warn_of_inexactness()
    assert not caplog.records


def test_a_foreign_loader_with_a_state() -> None:
    """A loader that can save and load its state is resumed by it, and not read again."""

    class Stateful:
        def __init__(self) -> None:
            self.next = self.begin = 0
            self.read: list[int] = []

        def __iter__(self) -> Any:
            begin, self.begin = self.begin, 0
            for number in range(begin, 5):
                self.next = number + 1
                self.read.append(number)
                yield torch.tensor([number])

        def state_dict(self) -> dict[str, int]:
            return {"next": self.next}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.begin = state["next"]

    stream = BatchStream(Stateful(), seed=1)
    stream.start_epoch(0)
    next(stream), next(stream)
    assert not stream.exhausted()
    loader = Stateful()
    resumed = BatchStream(loader, seed=1)
    resumed.start_epoch(0, records=stream.position(), batches=2, state=stream.state_dict())
    once_more = BatchStream(Stateful(), seed=1)
    once_more.start_epoch(0, records=2, batches=2, state=resumed.state_dict())
    assert [batch.item() for batch in once_more] == [2, 3, 4]
    assert [batch.item() for batch in resumed] == [2, 3, 4] == loader.read
    finished = resumed.state_dict()
    after = BatchStream(Stateful(), seed=1)
    after.start_epoch(1, state=finished)
    assert [batch.item() for batch in after] == [0, 1, 2, 3, 4]


def test_cut_epochs_go_on_in_one_iterator() -> None:
    """Cut by len, an endless loader has epochs, and its iterator is never begun anew inside."""
    sampler = data.RepeatSampler(data.ReproducibleShuffleSampler(range(5), 777))
    stream = BatchStream(DataLoader(Numbers(5), batch_size=2, sampler=sampler), seed=1, cut_by_len=True)
    given = []
    for epoch in range(3):
        stream.start_epoch(epoch)
        assert stream.epoch_length == 3
        while not stream.exhausted():
            given += next(stream).tolist()
        assert stream.position() == 6
    expected = data.ReproducibleShuffleSampler(range(5), 777)
    assert given == list(itertools.chain(*(list(expected) for _ in range(4))))[:18]


def test_a_cut_loader_that_ends_is_begun_again() -> None:
    """Cut by len, a loader with fewer batches than its len fills the epoch from its next pass."""
    loader = DataLoader(Numbers(6), batch_size=2, sampler=data.SkipSampler(range(6), 2))
    stream = BatchStream(loader, seed=1, cut_by_len=True)
    assert [numbers_of(stream, epoch) for epoch in range(2)] == [[[2, 3], [4, 5], [2, 3]], [[4, 5], [2, 3], [4, 5]]]


def test_a_cut_loader_without_a_length_has_one_endless_epoch() -> None:
    """Cut by len and without one, the epoch never ends; a resume goes on at its position."""

    def stream() -> BatchStream:
        return BatchStream(DataLoader(Flow(5, shuffled=False), batch_size=2), seed=1, cut_by_len=True)

    whole = stream()
    whole.start_epoch(0)
    given = [next(whole)[0].tolist() for _ in range(7)]
    assert given == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4], [0, 1]]
    assert not whole.exhausted()
    resumed = stream()
    resumed.start_epoch(0, records=whole.position(), batches=7, state=whole.state_dict())
    assert resumed.epoch_length is None
    assert resumed.position() == whole.position() == 12
    assert next(resumed)[0].tolist() == next(whole)[0].tolist() == [2, 3]


def test_batches_are_moved() -> None:
    """Every batch goes through ``move``, one that was fetched to look ahead too, and once."""
    moved: list[Any] = []

    def move(batch: Any) -> Any:
        moved.append(batch[0].tolist())
        return "moved"

    stream = BatchStream(DataLoader(Flow(5, shuffled=False), batch_size=2), seed=1, move=move)
    stream.start_epoch(0)
    given = []
    while not stream.exhausted():
        given.append(next(stream))
    assert given == ["moved"] * 3
    assert moved == [[0, 1], [2, 3], [4]]


def test_nothing_is_given_before_an_epoch_begins() -> None:
    """Asking for a batch before an epoch was begun is an error rather than an epoch without batches."""
    for ask in (next, BatchStream.exhausted):
        with pytest.raises(InvalidStateError, match="start_epoch"):
            ask(BatchStream(DataLoader(Numbers(3)), seed=1))  # type: ignore[operator]


def test_an_epoch_can_begin_again() -> None:
    """A validation begins the same epoch again and again, also after it was left in the middle."""
    stream = BatchStream(DataLoader(Numbers(6), batch_size=2), seed=1, role="validation")
    for _ in range(2):
        stream.start_epoch(0)
        assert next(stream).tolist() == [0, 1]
    assert numbers_of(stream, 0) == [[0, 1], [2, 3], [4, 5]]


def test_map_style_state_is_kept() -> None:
    """A map-style data set's own state is saved and given back too."""

    class Drawing(Numbers):
        def __init__(self) -> None:
            super().__init__(6)
            self.random = random.Random(3)

        def __getitem__(self, index: int) -> int:
            return self.random.randrange(1000)

        def state_dict(self) -> dict[str, Any]:
            return {"random": self.random.getstate()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.random.setstate(state["random"])

    stream = BatchStream(DataLoader(Drawing(), batch_size=2), seed=1)
    stream.start_epoch(0)
    next(stream)
    state = stream.state_dict()
    resumed = BatchStream(DataLoader(Drawing(), batch_size=2), seed=1)
    resumed.start_epoch(0, records=2, batches=1, state=state)
    assert [b.tolist() for b in resumed] == [b.tolist() for b in stream]


@pytest.mark.parametrize(("before", "now"), [(0, 1), (1, 2), (1, 0)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_another_number_of_workers_cannot_take_over_a_state(
    before: int, now: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A state saved with another number of workers is not put back, which is told with both numbers."""
    stream = BatchStream(DataLoader(Remembering(8), num_workers=before), seed=1)
    stream.start_epoch(0)
    next(stream)
    state = stream.state_dict()
    stream.close()
    assert not caplog.records
    resumed = BatchStream(DataLoader(Remembering(8), num_workers=now), seed=1)
    resumed.start_epoch(0, records=1, batches=1, state=state)
    assert [batch.tolist() for batch in resumed] == [[number] for number in range(1, 8)]
    assert len(caplog.records) == 1
    assert f"saved with num_workers={before}, and with num_workers={now} " in caplog.text


def test_the_epoch_is_told_to_a_foreign_loaders_sampler() -> None:
    """A sampler that heeds the epoch is told it, also when a resume begins in the middle of one."""
    sampler = PerEpoch(9)
    stream = BatchStream(torch.utils.data.DataLoader(Numbers(9), batch_size=4, sampler=sampler), seed=1)
    stream.start_epoch(2, records=4, batches=1)
    assert sampler.epoch == 2
    assert sum(map(len, stream)) == 3
