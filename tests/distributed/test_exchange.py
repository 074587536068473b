"""Exchange: what comes out of it on three real ranks."""

import enum
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distributed.ranks import run_ranks
from trainlab.distributed import DistributedContext, Exchange, Watchdog
from trainlab.distributed.packing import is_packed, pack, pack_error, unpack
from trainlab.errors import DistributedError, InvalidTypeError, InvalidValueError, StorageError

RANKS = 3


class Color(enum.Enum):
    RED = 1


class Fragile(Exception):
    def __init__(self, code: int, name: str) -> None:
        super().__init__(f"{name} {code}")


class Locked(Exception):
    def __init__(self) -> None:
        super().__init__("a lock")
        self.lock = threading.Lock()


class LockedStorage(StorageError):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def caught(call: Any) -> tuple[str, str]:
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def exchanges() -> dict[str, Any]:
    with DistributedContext.from_torch_distributed() as context:
        exchange = context.exchange
        rank = exchange.rank
        long = "x" * 3000 * rank
        shared = torch.arange(3.0) + rank
        found: dict[str, Any] = {
            "allgather": exchange.allgather((rank, Color.RED, {"loss": np.float64(rank)})),
            "lengths": [len(text) for text in exchange.allgather(long)],
            "gather": exchange.gather([rank]),
            "gather to 2": exchange.gather(long, to=2),
            "broadcast": exchange.broadcast({"a": rank}),
            "broadcast from 2": exchange.broadcast(long, source=2) == "x" * 6000,
            "tensors": exchange.allgather({"t": shared, "same": (shared, [shared[:1]])}),
            "maximum": exchange.maximum([rank, -rank, 2**62 + rank]),
            "none": exchange.maximum([]),
            "own": exchange.allgather(shared)[rank] is shared,
            "unpicklable": caught(lambda: exchange.allgather(threading.Lock() if rank == 1 else rank)),
            "unpicklable broadcast": caught(lambda: exchange.broadcast(threading.Lock())),
            "after": exchange.allgather(rank),
        }
        found["barrier"] = exchange.barrier()
        side = context.side_exchange()
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(side.allgather(rank)))
        thread.start()
        found["main beside"] = exchange.allgather(-rank)
        thread.join()
        found["side"] = results[0]
    found["closed"] = [caught(lambda: exchange.allgather(1))[0], caught(side.barrier)[0]]
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Any]]:
    return run_ranks(exchanges, RANKS)


def test_allgather_gives_the_values_of_all_to_all(by_rank: list[dict[str, Any]]) -> None:
    """Every rank gets the values of all, in the order of the ranks, whatever can be pickled and however long."""
    for found in by_rank:
        assert found["allgather"] == [(rank, Color.RED, {"loss": float(rank)}) for rank in range(RANKS)]
        assert found["lengths"] == [0, 3000, 6000]


def test_gather_gives_them_to_one(by_rank: list[dict[str, Any]]) -> None:
    """One rank gets the values of all, and the others None."""
    assert [found["gather"] for found in by_rank] == [[[0], [1], [2]], None, None]
    assert [found["gather to 2"] for found in by_rank] == [None, None, ["x" * 3000 * rank for rank in range(RANKS)]]


def test_broadcast_gives_the_value_of_one_to_all(by_rank: list[dict[str, Any]]) -> None:
    """All ranks get the value of the one that is asked for, by default of rank 0."""
    assert [found["broadcast"] for found in by_rank] == [{"a": 0}] * RANKS
    assert all(found["broadcast from 2"] for found in by_rank)


def test_tensors_come_as_they_were(by_rank: list[dict[str, Any]]) -> None:
    """Tensors inside of values come with their numbers, and one that stood twice is one again."""
    for own, found in enumerate(by_rank):
        for rank, value in enumerate(found["tensors"]):
            assert torch.equal(value["t"], torch.arange(3.0) + rank)
            assert torch.equal(value["same"][1][0], torch.tensor([float(rank)]))
            assert rank == own or value["same"][0] is value["t"]


def test_maximum_is_taken_number_by_number(by_rank: list[dict[str, Any]]) -> None:
    """Ranks that agree by the largest number get it exactly, up to 64 bits."""
    assert all(found["maximum"] == [2, 0, 2**62 + 2] for found in by_rank)
    assert all(found["none"] == [] for found in by_rank)


def test_this_ranks_own_value_is_not_copied(by_rank: list[dict[str, Any]]) -> None:
    """In what is gathered, a rank's own entry is the very object that it gave."""
    assert all(found["own"] for found in by_rank)


def test_a_value_that_cannot_be_pickled_is_an_error_on_all_ranks(by_rank: list[dict[str, Any]]) -> None:
    """No rank waits for another that could not send its value, and the exchange can be used afterwards."""
    for found in by_rank:
        for call in ("unpicklable", "unpicklable broadcast"):
            assert found[call][0] == "InvalidTypeError"
            assert "lock" in found[call][1]
        assert found["after"] == [0, 1, 2]


def test_a_side_exchange_serves_another_thread(by_rank: list[dict[str, Any]]) -> None:
    """A thread of its own exchanges values while the main thread does."""
    assert all((found["side"], found["main beside"]) == ([0, 1, 2], [0, -1, -2]) for found in by_rank)


def test_a_closed_exchange_says_so(by_rank: list[dict[str, Any]]) -> None:
    """After its context is closed, an exchange among several ranks is an error and no hang."""
    assert all(found["closed"] == ["InvalidStateError"] * 2 for found in by_rank)


def test_one_rank_gets_back_what_it_gave() -> None:
    """With one rank every call returns its value at once, be it one that cannot be pickled."""
    exchange, lock = Exchange(0, 1, None, Watchdog()), threading.Lock()
    assert exchange.allgather(lock) == exchange.gather(lock) == [lock]
    assert exchange.broadcast(lock) is lock
    assert exchange.maximum([3, -1]) == [3, -1]
    exchange.barrier()
    exchange.close()


def test_a_rank_that_is_none_is_refused() -> None:
    """A value for a rank that there is not is an error that names the ranks."""
    exchange = Exchange(0, 1, None, Watchdog())
    with pytest.raises(InvalidValueError, match="between 0 and 0.*Received: 1"):
        exchange.broadcast(1, source=1)
    with pytest.raises(InvalidValueError, match="Received: -1"):
        exchange.gather(1, to=-1)


DTYPES = [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64, torch.uint8, torch.float8_e4m3fn]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.booleans())
def test_tensors_are_the_same_bit_by_bit(dtype: torch.dtype, shape: list[int], transposed: bool) -> None:
    """A tensor of any type and shape, empty ones and views too, arrives with the same bits."""
    tensor = (torch.randn(shape) * 3).to(dtype)
    sent = tensor.T if transposed and tensor.ndim == 2 else tensor
    received = unpack(pack([sent]))[0]
    assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
    assert received.contiguous().flatten().tolist() == sent.contiguous().flatten().tolist()


def test_special_tensors_arrive() -> None:
    """Sparse tensors, parameters and views that are conjugated arrive; what is sent apart has lost its gradient."""
    sparse = torch.eye(2).to_sparse()
    conjugated = torch.tensor([1 + 2j]).conj()
    needs_gradient = torch.ones(2, requires_grad=True) * 2
    values = unpack(pack([sparse, torch.nn.Parameter(torch.ones(1)), conjugated, needs_gradient]))
    assert torch.equal(values[0].to_dense(), torch.eye(2))
    assert isinstance(values[1], torch.nn.Parameter)
    assert values[2].tolist() == [1 - 2j]
    assert values[3].tolist() == [2.0, 2.0]
    assert not values[3].requires_grad


def test_tensors_are_not_pickled() -> None:
    """The bytes of a tensor travel as they are, without a pickle of its storage."""
    content = pack({"t": torch.full((2,), 1.5)})
    assert torch.full((2,), 1.5).numpy().tobytes() in content
    assert b"_rebuild_tensor" not in content


def test_containers_keep_their_types() -> None:
    """Tuples stay tuples, ordered dicts ordered, also with tensors in them."""
    value = OrderedDict(b=(torch.ones(1), None), a=[{"c"}])
    received = unpack(pack(value))
    assert type(received) is OrderedDict
    assert list(received) == ["b", "a"]
    assert isinstance(received["b"], tuple)


@pytest.mark.parametrize("error", [ValueError("boom"), KeyError("k"), StorageError(28, "no space"), SystemExit(143)])
def test_an_error_arrives_as_it_is(error: BaseException) -> None:
    """An error that can be pickled is raised with its type and arguments."""
    with pytest.raises(type(error)) as raised:
        unpack(pack_error(error))
    assert raised.value.args == error.args


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Locked(), DistributedError, "Locked: a lock"),
        (Fragile(3, "f"), DistributedError, "Fragile: f 3"),
        (LockedStorage("full"), LockedStorage, "full"),
    ],
)
def test_an_error_that_cannot_be_pickled_arrives_with_its_message(
    error: BaseException, kind: type[BaseException], text: str
) -> None:
    """An error that cannot travel is told by its message, and one of trainlab's keeps its class."""
    with pytest.raises(kind) as raised:
        unpack(pack_error(error))
    assert str(raised.value) == text
    assert type(raised.value) is kind


def test_what_cannot_be_packed_is_told_when_it_is_unpacked() -> None:
    """A value that cannot be pickled becomes an error that names its type and says what can be sent."""
    content = pack([threading.Lock()])
    assert not is_packed(content)
    with pytest.raises(InvalidTypeError, match="list: TypeError: cannot pickle '_thread.lock'.*Send numbers"):
        unpack(content)
