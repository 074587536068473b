"""Data that shards itself, on several ranks: threads that share an exchange, and real processes where that matters."""

import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler as TorchsSampler
from torch.utils.data import IterableDataset, TensorDataset

from tests.data.datasets import Numbers
from tests.distributed.ranks import run_ranks, start_ranks
from trainlab.data import BatchStream, DataLoader, DistributedBatchSampler, DistributedSampler, sharded
from trainlab.distributed import DistributedContext, RngState
from trainlab.errors import DataError, InvalidValueError

THREAD = "trainlab-data-rounds"


class Meeting:
    """What the exchanges of threads meet in."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=120)
        self.slots: list[Any] = [None] * ranks
        self.rounds = 0

    def exchange(self, rank: int) -> Any:
        return InThread(self, rank)


class InThread:
    """An exchange among threads of this process."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank = meeting, rank

    def all(self, value: Any) -> list[Any]:
        self.meeting.slots[self.rank] = value
        self.meeting.barrier.wait()
        found = list(self.meeting.slots)
        self.meeting.barrier.wait()
        return found

    def maximum(self, numbers: list[int]) -> list[int]:
        self.meeting.rounds += self.rank == 0
        return [max(column) for column in zip(*self.all(numbers), strict=True)]

    def broadcast(self, value: Any, source: int = 0) -> Any:
        return self.all(value)[source]


def on_threads(ranks: int, function: Callable[[int, Any], Any]) -> list[Any]:
    """Call a function for each rank, at the same time."""
    meeting = Meeting(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda rank: function(rank, meeting.exchange(rank)), range(ranks)))


class Shard(IterableDataset[Any]):
    """The records of one rank."""

    def __init__(self, records: list[int]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[Any]:
        return map(torch.tensor, self.records)


class StatefulShard(Shard):
    """The same, there and back, with its position and pass; at a pass's end it says that it is at the next's start."""

    def __init__(self, records: list[int]) -> None:
        super().__init__(records)
        self.passes = self.next = 0

    def __iter__(self) -> Iterator[Any]:
        order = self.records[:: -1 if self.passes % 2 else 1]
        for record in order[self.next :]:
            self.next += 1
            if self.next == len(order):
                self.next, self.passes = 0, self.passes + 1
            yield torch.tensor(record)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next, "passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next, self.passes = state["next"], state["passes"]


def deal_out(counts: list[int]) -> list[list[int]]:
    """Different records for each rank."""
    numbers = iter(range(sum(counts)))
    return [list(itertools.islice(numbers, count)) for count in counts]


def make_loader(kind: str, records: list[int], each: int, ranks: int) -> Any:
    """A loader of one rank's records, of one of the kinds that shard themselves."""
    if kind == "torch's":
        return sharded(torch.utils.data.DataLoader(Shard(records), batch_size=each))
    if kind == "list":
        return sharded([torch.tensor(records[start : start + each]) for start in range(0, len(records), each)])
    dataset = {"iterable": Shard, "stateful": StatefulShard, "map": Numbers}[kind]
    if kind == "map":
        return DataLoader(torch.tensor(records), batch_size=each * ranks, sharded=True)
    return DataLoader(dataset(records), batch_size=each * ranks, sharded=True)


Given = list[tuple[int, int, list[int]]]


def read(stream: BatchStream, limit: int | None = None) -> Given:
    """Of each batch the records that count here and on all ranks, and what it holds."""
    return [
        (stream.local_records, stream.global_records, batch.reshape(-1).tolist())
        for batch in itertools.islice(stream, limit)
    ]


KINDS = ["iterable", "stateful", "map", "torch's", "list"]
COUNTS = st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(any)


@pytest.mark.parametrize("kind", KINDS)
@given(counts=COUNTS, each=st.integers(1, 3), asks=st.booleans())
@settings(max_examples=20, deadline=None)
def test_each_record_comes_once_in_each_epoch(kind: str, counts: list[int], each: int, asks: bool) -> None:
    """Shards of any lengths, empty ones too: each record once, equally many batches on each rank, for every epoch."""
    shards, ranks = deal_out(counts), len(counts)

    def rank_reads(rank: int, exchange: Any) -> list[Given]:
        loader = make_loader(kind, shards[rank], each, ranks)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=ranks, exchange=exchange, warn=False)
        epochs = []
        for epoch in range(2):
            stream.start_epoch(epoch)
            if asks:
                found: Given = []
                while not stream.exhausted():
                    found += read(stream, 1)
            else:
                found = read(stream)
            epochs.append(found)
            assert stream.position() == sum(counts)
        stream.close()
        return epochs

    for epoch in zip(*on_threads(ranks, rank_reads), strict=True):
        for rank, found in enumerate(epoch):
            mine = [record for local, _, batch in found for record in batch[:local]]
            assert sorted(mine) == shards[rank]
            assert all(len(batch) == local or (local == 0 and batch) for local, _, batch in found)
        assert len({len(found) for found in epoch}) == 1
        for together in zip(*epoch, strict=True):
            assert {everywhere for _, everywhere, _ in together} == {sum(local for local, _, _ in together)}


@pytest.mark.parametrize("kind", KINDS)
@given(counts=COUNTS, each=st.integers(1, 3), asks=st.booleans(), data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_resume_is_exact_for_each_rank(
    kind: str, counts: list[int], each: int, asks: bool, data: st.DataObject
) -> None:
    """Stopped after any batch, also where some ranks have run out, the rest and the next epoch are as uninterrupted."""
    shards, ranks = deal_out(counts), len(counts)
    batches = max(-(-count // each) for count in counts)
    stop = data.draw(st.integers(0, batches))

    def stream(rank: int, exchange: Any) -> BatchStream:
        loader = make_loader(kind, shards[rank], each, ranks)
        return BatchStream(loader, seed=1, data_rank=rank, data_size=ranks, exchange=exchange, warn=False)

    def stopped(rank: int, exchange: Any) -> Any:
        one = stream(rank, exchange)
        one.start_epoch(0)
        given = read(one, stop)
        ended = asks and one.exhausted()
        saved = (one.position(), one.state_dict(), ended)
        rest = read(one)
        one.start_epoch(1)
        following = read(one)
        one.close()
        return given, saved, rest, following

    def resumed(rank: int, exchange: Any) -> Any:
        position, state, ended = before[rank][1]
        one = stream(rank, exchange)
        if ended:
            one.start_epoch(1, state=state)
            following = read(one)
            one.close()
            return [], following
        one.start_epoch(0, records=position, batches=stop, state=state)
        assert one.position() == position
        rest = read(one)
        one.start_epoch(1)
        following = read(one)
        one.close()
        return rest, following

    def counting(given: Given) -> Given:
        return [(local, everywhere, batch if local else []) for local, everywhere, batch in given]

    before = on_threads(ranks, stopped)
    after = on_threads(ranks, resumed)
    assert len({saved[0] for _, saved, _, _ in before}) == 1
    for (_, _, rest, following), (rest_after, following_after) in zip(before, after, strict=True):
        assert counting(rest_after) == counting(rest)
        assert counting(following_after) == counting(following)


def test_one_round_for_each_batch() -> None:
    """The ranks agree once for each batch, and once more at the end."""
    meeting = Meeting(2)

    def rank_reads(rank: int) -> int:
        loader = DataLoader(Shard(list(range(6))), batch_size=2, sharded=True)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, exchange=meeting.exchange(rank))
        stream.start_epoch(0)
        number = len(list(stream))
        assert stream.exhausted()
        stream.close()
        return number

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(rank_reads, range(2))) == [6, 6]
    assert meeting.rounds == 7


def test_one_rank_has_no_thread_and_needs_no_exchange() -> None:
    """On one rank a data set that shards itself is read as any other."""
    before = threads_of_rounds()  # of streams that were closed may come back from their last round a little later
    stream = BatchStream(DataLoader(Shard(list(range(5))), batch_size=2, sharded=True), seed=1)
    stream.start_epoch(0)
    assert [batch.tolist() for batch in stream] == [[0, 1], [2, 3], [4]]
    assert not set(threads_of_rounds()) - set(before)


def threads_of_rounds() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


@pytest.mark.parametrize("how", ["close", "forgotten", "error", "end"])
def test_the_thread_ends_with_the_stream(how: str) -> None:
    """No thread is left once the stream is closed, in the middle of an epoch too, or has been forgotten."""
    both_have_a_batch = threading.Barrier(2, timeout=120)

    def rank_reads(rank: int, exchange: Any) -> None:
        loader = DataLoader(Shard(list(range(8))), batch_size=2, sharded=True)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, exchange=exchange)
        stream.start_epoch(0)
        next(stream)
        if how == "end":
            list(stream)
        if how == "error":
            both_have_a_batch.wait()
            exchange.meeting.barrier.abort()
            with pytest.raises(threading.BrokenBarrierError):
                list(stream)
        if how != "forgotten":
            stream.close()

    on_threads(2, rank_reads)
    for thread in threads_of_rounds():
        thread.join(120)
    assert not threads_of_rounds()


def test_an_error_of_the_exchange_comes_out_where_a_batch_is_asked_for() -> None:
    """When the ranks can no longer agree, asking for a batch, or whether one follows, raises what went wrong."""

    class Failing:
        def maximum(self, numbers: list[int]) -> list[int]:
            raise ConnectionError("the peer is gone")

    loader = DataLoader(Shard([1, 2, 3]), batch_size=2, sharded=True)
    stream = BatchStream(loader, seed=1, data_size=2, exchange=Failing())  # type: ignore[arg-type]
    stream.start_epoch(0)
    asks: list[Callable[[BatchStream], Any]] = [next, BatchStream.exhausted]
    for ask in asks:
        with pytest.raises(ConnectionError, match="gone"):
            ask(stream)
    stream.close()


def test_a_stream_can_be_opened_again_after_it_was_closed() -> None:
    """A second fit goes on after the first has closed the stream, in the middle of an epoch."""

    def rank_reads(rank: int, exchange: Any) -> list[Given]:
        loader = DataLoader(Shard([4 * rank + number for number in range(4)]), batch_size=2, sharded=True)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, exchange=exchange)
        stream.start_epoch(0)
        first = read(stream, 2)
        position, state = stream.position(), stream.state_dict()
        stream.close()
        stream.start_epoch(0, records=position, batches=2, state=state)
        rest = read(stream)
        stream.close()
        return [first, rest]

    for rank, (first, rest) in enumerate(on_threads(2, rank_reads)):
        assert [batch for _, _, (batch,) in first + rest] == [4 * rank + number for number in range(4)]


def test_an_epoch_of_shards_is_gone_on_with_by_as_many_ranks_only() -> None:
    """Within an epoch another number of ranks is an error that says what to do; at an epoch's end it is none."""

    def rank_reads(rank: int, exchange: Any) -> Any:
        loader = DataLoader(Shard(list(range(6))), batch_size=2, sharded=True)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, exchange=exchange)
        stream.start_epoch(0)
        next(stream)
        state = stream.state_dict()
        stream.close()
        return state

    state = on_threads(2, rank_reads)[0]
    fewer = BatchStream(DataLoader(Shard([1, 2]), batch_size=2, sharded=True), seed=1)
    dealt = BatchStream(DataLoader(Shard([1, 2]), batch_size=2), seed=1, data_size=2)
    cut = BatchStream(DataLoader(Shard([1, 2]), batch_size=2), seed=1, cut_by_len=True)
    for stream in (fewer, dealt):
        with pytest.raises(DataError, match="for 2 ranks, now dealt out by trainlab.*as many processes"):
            stream.start_epoch(0, records=2, batches=1, state=state)
        stream.start_epoch(1, state=state)
        assert next(stream).tolist()[0] == 1
    nested = {**state, "source": {"pass": 0, "pass_records": 2, "pass_batches": 1, "source": state["source"]}}
    with pytest.raises(DataError, match="now dealt out"):
        cut.start_epoch(0, records=2, batches=1, state=nested)
    more = BatchStream(DataLoader(Shard([1]), batch_size=3, sharded=True), seed=1, data_size=3, exchange=Meeting(1))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="for 2 ranks, now sharded by itself for 3"):
        more.start_epoch(0, records=2, batches=1, state=state)


def test_cut_epochs_are_as_long_as_the_chiefs() -> None:
    """Cut by len, shards of different lengths have epochs of the chief's length, filled up from the next pass."""

    def rank_reads(rank: int, exchange: Any) -> list[Given]:
        loader = DataLoader(torch.arange(3 - rank) + 10 * rank, batch_size=2, sharded=True)
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, exchange=exchange, cut_by_len=True)
        found = []
        for epoch in range(2):
            stream.start_epoch(epoch)
            assert stream.epoch_length == 3
            found.append(read(stream))
        stream.close()
        return found

    first, second = on_threads(2, rank_reads)
    assert first == [[(1, 2, [0]), (1, 2, [1]), (1, 1, [2])]] * 2
    assert second == [[(1, 2, [10]), (1, 2, [11]), (0, 1, [11])]] * 2


def test_what_does_not_fit_shards_is_refused() -> None:
    """A batch size that the ranks do not divide, another way with uneven ends, no exchange: errors before training."""
    loader = DataLoader(Shard([1]), batch_size=3, sharded=True)
    with pytest.raises(DataError, match="batch_size=3 for 2 ranks"):
        BatchStream(loader, seed=1, data_size=2)
    with pytest.raises(InvalidValueError, match="uneven='pad'"):
        BatchStream(loader, seed=1, data_size=3, uneven="pad", exchange=Meeting(3))  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="need an exchange"):
        BatchStream(loader, seed=1, data_size=3)
    samplers: list[Any] = [TorchsSampler(Numbers(4), 2, 0), DistributedSampler(range(4), 2, 0)]
    for sampler in samplers:
        wrong = torch.utils.data.DataLoader(Numbers(4), sampler=sampler)
        with pytest.raises(DataError, match="made for rank 0 of 2. Received: rank 1 of 2"):
            BatchStream(wrong, seed=1, data_rank=1, data_size=2)


@pytest.mark.parametrize("whose", ["torch's", "trainlab's", "trainlab's batches", "in our loader"])
def test_distributed_samplers_are_seen(whose: str) -> None:
    """A loader with a sampler for this rank is taken as sharded, without being marked: each record comes once."""

    def make(rank: int) -> Any:
        dataset = TensorDataset(torch.arange(9))
        if whose == "torch's":
            torchs: Any = TorchsSampler(range(8), 2, rank, shuffle=False)  # type: ignore[arg-type]
            return torch.utils.data.DataLoader(dataset, batch_size=2, sampler=torchs)
        if whose == "trainlab's batches":
            batches = torch.utils.data.BatchSampler(range(9), 2, drop_last=False)
            return torch.utils.data.DataLoader(dataset, batch_sampler=DistributedBatchSampler(batches, 2, rank))
        sampler = DistributedSampler(range(9), 2, rank)
        if whose == "in our loader":
            return DataLoader(dataset, batch_size=4, sampler=sampler, sharded=True)
        return torch.utils.data.DataLoader(dataset, batch_size=2, sampler=sampler)

    def rank_reads(rank: int, exchange: Any) -> Any:
        stream = BatchStream(make(rank), seed=1, data_rank=rank, data_size=2, exchange=lambda: exchange, warn=False)
        stream.start_epoch(0)
        found = [batch[0].tolist()[: stream.local_records] for batch in stream]
        stream.close()
        whole = BatchStream(make(rank), seed=1, data_rank=rank, data_size=2, deal="batches")
        whole.start_epoch(0)
        return found, [(whole.batch_number, batch[0].tolist()) for batch in whole]

    results = on_threads(2, rank_reads)
    size = 8 if whose == "torch's" else 9
    assert sorted(itertools.chain(*itertools.chain(*(found for found, _ in results)))) == list(range(size))
    whole = sorted(itertools.chain(*(dealt for _, dealt in results)))
    assert len({number for number, _ in whole}) == len(whole)
    assert sorted(itertools.chain(*(batch for _, batch in whole))) == list(range(size))


def test_what_torchs_sampler_repeats_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """That torch's DistributedSampler fills its shares up is told with the number of records."""
    loader = torch.utils.data.DataLoader(Numbers(7), sampler=TorchsSampler(Numbers(7), 3, 0))
    stream = BatchStream(loader, seed=1, data_size=3, deal="batches", role="validation")
    stream.start_epoch(0)
    stream.start_epoch(0)
    assert len(caplog.records) == 1
    assert "of 7 records 2 are used twice" in caplog.text


def test_a_marked_loader_is_otherwise_what_it_was() -> None:
    """A marked loader can be iterated and measured, has the loader's attributes, and can be marked again."""
    loader = torch.utils.data.DataLoader(Numbers(7), batch_size=2)
    marked = sharded(sharded(loader))
    assert marked.loader is loader
    assert (len(marked), marked.batch_size) == (4, 2)
    assert [batch.tolist() for batch in marked] == [[0, 1], [2, 3], [4, 5], [6]]
    ours = DataLoader(Numbers(7), batch_size=2)
    assert sharded(ours).sharded and not ours.sharded


class Drawing(Shard):
    """Records with random numbers of the process's own generators."""

    def __iter__(self) -> Iterator[Any]:
        for record in self.records:
            yield torch.tensor([float(record), random.random(), torch.rand(()).item()])


def exact_on_processes(workers: int) -> dict[str, Any]:
    """Train on some batches with random numbers in between, and resume after each of them."""
    torch.set_num_threads(1)
    with DistributedContext.from_torch_distributed() as context:
        rank, ranks = context.data_rank, context.data_size
        exchange = context.side_exchange()
        own_exchange = context.exchange
        records = list(range(100 * rank, 100 * rank + 5 + 3 * rank))

        def make() -> BatchStream:
            options: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "fork"} if workers else {}
            loader = DataLoader(Drawing(records), batch_size=2 * ranks, sharded=True, **options)
            return BatchStream(loader, seed=3, data_rank=rank, data_size=ranks, exchange=exchange)

        def train(saved: Any, stop: int | None) -> tuple[list[Any], Any]:
            stream = make()
            epoch, batches, position, state, rng = saved or (0, 0, 0, None, None)
            if state is None:
                torch.manual_seed(rank), random.seed(rank)
            stream.start_epoch(epoch, records=position, batches=batches, state=state)
            if rng is not None:
                rng.restore()
            given, point = [], None
            while True:
                for batch in stream:
                    own_exchange.barrier()  # the main thread's own collectives go on meanwhile
                    drawn = torch.rand(()).item(), random.random()
                    given.append((stream.local_records, batch.tolist() if stream.local_records else None, drawn))
                    batches += 1
                    if batches == stop and epoch == 0:
                        point = (epoch, batches, stream.position(), stream.state_dict(), RngState.capture())
                        stream.close()
                        torch.manual_seed(99), random.seed(99)
                        return given, point
                epoch, batches = epoch + 1, 0
                if epoch == 2:
                    stream.close()
                    return given, None
                stream.start_epoch(epoch)

        whole, _ = train(None, None)
        differences = []
        for stop in range(1, len(whole) // 2):
            before, point = train(None, stop)
            after, _ = train(point, None)
            if before + after != whole:
                differences.append(stop)
    return {"differences": differences, "batches": len(whole), "records": sum(local for local, _, _ in whole)}


@pytest.mark.parametrize("workers", [0, 1])
def test_on_processes_a_resume_is_exact_to_the_random_number(workers: int) -> None:
    """On real ranks, what is drawn for the data and by training after a resume is what an uninterrupted run draws."""
    results = run_ranks(exact_on_processes, 2, workers)
    assert [result["differences"] for result in results] == [[], []]
    assert {result["batches"] for result in results} == {8}
    assert [result["records"] for result in results] == [10, 16]


def killed_peer() -> str:
    """Read until the other rank is gone."""
    context = DistributedContext.from_torch_distributed(timeout=100)
    exchange = context.side_exchange()
    loader = DataLoader(Shard(list(range(100))), batch_size=2, sharded=True)
    stream = BatchStream(loader, seed=3, data_rank=context.data_rank, data_size=2, exchange=exchange)
    stream.start_epoch(0)
    try:
        for number, _ in enumerate(stream):
            if number == 3 and context.data_rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    except Exception as error:
        stream.close()
        print("raised", type(error).__name__, flush=True)
        os._exit(7)
    return "no error"


def test_a_killed_peer_is_an_error_and_not_a_hang() -> None:
    """When another rank is killed, asking for a batch raises, and the stream can be closed."""
    with start_ranks(killed_peer, 2) as ranks:
        statuses = ranks.wait()
        assert statuses == [7, -signal.SIGKILL], ranks.outputs()
        assert "raised" in ranks[0].output()


def ends_in_the_middle() -> None:
    """Leave a stream open at the end of the program."""
    context = DistributedContext.from_torch_distributed()
    loader = DataLoader(Shard(list(range(100))), batch_size=2, sharded=True)
    stream = BatchStream(loader, seed=3, data_rank=context.data_rank, data_size=2, exchange=context.side_exchange)
    stream.start_epoch(0)
    next(stream)
    globals()["kept"] = stream, context


def test_a_program_ends_with_a_stream_left_open() -> None:
    """A script that stops in the middle of an epoch, and closes nothing, ends by itself and well."""
    program = "from tests.data import test_sharded; test_sharded.ends_in_the_middle()"
    with start_ranks(["-c", program], 2) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs()
        assert "terminate" not in ranks.outputs() and "Traceback" not in ranks.outputs()
