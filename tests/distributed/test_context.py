"""DistributedContext, alone and on four real ranks of two nodes."""

import os
import threading
from typing import Any

import pytest
import torch.distributed

from tests.distributed.ranks import run_ranks
from trainlab.distributed import DistributedContext
from trainlab.errors import (
    CheckpointNotFoundError,
    DistributedError,
    InvalidTypeError,
    InvalidValueError,
    TrainlabError,
)

NUMBERS = {"rank": 1, "size": 4, "local_rank": 1, "local_size": 2, "cross_rank": 0, "cross_size": 2}
CALLS = ["broadcast", "broadcast_local", "gather", "gather_local", "allgather", "allgather_local"]


def test_without_arguments_it_is_a_single_process() -> None:
    """A program that says nothing about processes is the only one, and the chief."""
    context = DistributedContext()
    assert (context.rank, context.size, context.local_rank, context.local_size) == (0, 1, 0, 1)
    assert (context.cross_rank, context.cross_size, context.data_rank, context.data_size) == (0, 1, 0, 1)
    assert context.chief_ip is None


@pytest.mark.parametrize("call", CALLS)
def test_a_single_process_gets_its_own_object_at_once(call: str) -> None:
    """With one process every exchange returns at once, with the very object that was given."""
    value = object()
    given = getattr(DistributedContext(), call)(value)
    assert given is value if call.startswith("broadcast") else given[0] is value and len(given) == 1


@pytest.mark.parametrize("left_out", NUMBERS)
def test_ranks_and_sizes_are_given_all_or_none(left_out: str) -> None:
    """A forgotten number is an error that names it."""
    given = {name: number for name, number in NUMBERS.items() if name != left_out}
    with pytest.raises(InvalidValueError, match=f"no {left_out}"):
        DistributedContext(**given, chief_ip="10.0.0.1")


@pytest.mark.parametrize(("name", "number"), [("rank", 4), ("rank", -1), ("local_rank", 2), ("size", 0), ("size", 1)])
def test_a_rank_out_of_range_is_refused(name: str, number: int) -> None:
    """A rank that is none of the size's, or more nodes than processes, is refused with what was received."""
    with pytest.raises(InvalidValueError, match="Received"):
        DistributedContext(**{**NUMBERS, name: number}, chief_ip="10.0.0.1")


@pytest.mark.parametrize("number", [True, 1.0, "1"])
def test_a_rank_that_is_no_int_is_refused(number: object) -> None:
    """A rank read from the environment and left as text is found at once."""
    with pytest.raises(InvalidTypeError, match="rank is an int"):
        DistributedContext(**{**NUMBERS, "rank": number}, chief_ip="10.0.0.1")  # type: ignore[arg-type]


def test_several_nodes_need_the_chiefs_address() -> None:
    """More than one node without chief_ip is an error that says what to pass."""
    with pytest.raises(InvalidValueError, match="Pass chief_ip"):
        DistributedContext(**NUMBERS)


def test_closing_twice_is_fine() -> None:
    """A context that was closed by hand and again at the end of its block is no error."""
    with DistributedContext() as context:
        context.close()
    context.close()


def test_a_process_alone_does_its_part_at_once() -> None:
    """With one process the chief's work is done here, its error is its own, and there is nothing to watch."""
    with DistributedContext() as context:
        assert context.is_chief
        assert context.on_chief(threading.Lock) is not None
        with pytest.raises(KeyError):
            context.on_chief({}.popitem)
        context.phase("train", 3)
        with context.guard():
            assert context.watchdog.failure is None
        assert context.new_groups([[0]]) is context.process_group is None
        assert context.side_exchange().allgather(1) == [1]
        assert context.channel("a").allgather(b"x") == [b"x"]
    assert context.allgather(2) == [2]


@pytest.mark.parametrize("layout", [[[0, 1]], [[0], [0]], [[1]], [[0], []]])
def test_a_layout_has_each_rank_once(layout: list[list[int]]) -> None:
    """A layout that misses a rank, repeats one or names one that is not there is refused with what was received."""
    with pytest.raises(InvalidValueError, match="Received"):
        DistributedContext().new_groups(layout)
    with pytest.raises(InvalidTypeError, match="list of lists of ranks"):
        DistributedContext().new_groups([0])  # type: ignore[list-item]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_time(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit that is none is refused, given in the call or in the environment."""
    with pytest.raises(InvalidValueError, match="timeout is a number of seconds above 0"):
        DistributedContext(timeout=limit)
    with pytest.raises(InvalidTypeError, match="heartbeat_timeout is a number"):
        DistributedContext(heartbeat_timeout="1")  # type: ignore[arg-type]
    monkeypatch.setenv("TRAINLAB_TIMEOUT", str(limit))
    with pytest.raises(InvalidValueError, match="TRAINLAB_TIMEOUT"):
        DistributedContext()
    monkeypatch.setenv("TRAINLAB_TIMEOUT", "soon")
    with pytest.raises(InvalidValueError, match="TRAINLAB_TIMEOUT.*'soon'"):
        DistributedContext()


class WithLock(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


def raising(error: BaseException) -> Any:
    def function() -> None:
        raise error

    return function


def outcome(call: Any) -> tuple[type[BaseException], str, bool] | Any:
    try:
        return call()
    except BaseException as error:
        kind = type(error)
        return (TrainlabError if kind is WithLock else kind, str(error), isinstance(error.__cause__, DistributedError))


def four_ranks() -> dict[str, Any]:
    context = DistributedContext.from_torch_distributed()
    rank = context.rank
    found: dict[str, Any] = {
        "numbers": (context.rank, context.size, context.local_rank, context.local_size),
        "nodes": (context.cross_rank, context.cross_size, context.data_rank, context.data_size),
        "getters": (context.get_rank(), context.get_size(), context.get_local_rank(), context.get_num_agents()),
        "chief": context.is_chief,
        "broadcast": context.broadcast(rank),
        "broadcast_local": context.broadcast_local(rank),
        "gather": context.gather(rank),
        "gather_local": context.gather_local(rank),
        "allgather": context.allgather(rank),
        "allgather_local": context.allgather_local(rank),
        "group of all": torch.distributed.get_process_group_ranks(context.new_groups([])),
        "no group": context.new_groups(None),
        "groups": torch.distributed.get_process_group_ranks(context.new_groups([[0, 3], [2, 1]])),
    }
    group = context.new_groups([[0, 2], [1, 3]])
    total = torch.tensor([rank])
    torch.distributed.all_reduce(total, group=group)
    found["sum in group"] = total.item()
    found["layouts differ"] = outcome(lambda: context.new_groups([[0, 1], [2, 3]] if rank == 2 else []))
    calls: list[int] = []

    def counted() -> dict[str, Any]:
        calls.append(rank)
        return {"t": torch.ones(2), "pid": os.getpid()}

    told = context.on_chief(counted)
    found["on_chief"] = (told["t"].tolist(), told["pid"], calls)
    found["chief's error"] = outcome(lambda: context.on_chief(raising(CheckpointNotFoundError("no such"))))
    found["odd error"] = outcome(lambda: context.on_chief(raising(WithLock())))
    found["exit"] = outcome(lambda: context.on_chief(raising(SystemExit(143))))
    found["odd result"] = outcome(lambda: context.on_chief(threading.Lock))
    channel = context.channel("of bytes")
    found["channel"] = channel.allgather(b"%d" % rank)
    found["same name"] = outcome(lambda: context.channel("of bytes"))
    with DistributedContext.from_torch_distributed() as second:
        found["shared"] = second.exchange is context.exchange
    found["after the second"] = context.allgather(rank)
    context.close()
    context.close()
    found["closed"] = [
        outcome(lambda: context.allgather(1)),
        outcome(lambda: context.on_chief(int)),
        outcome(context.side_exchange),
    ]
    found["group is closed"] = not torch.distributed.is_initialized()
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Any]]:
    return run_ranks(four_ranks, 4, nodes=2)


def of(by_rank: list[dict[str, Any]], name: str) -> list[Any]:
    return [found[name] for found in by_rank]


def test_each_rank_knows_its_numbers(by_rank: list[dict[str, Any]]) -> None:
    """Attributes and getters say who a process is among all, on its node and among the data."""
    assert of(by_rank, "numbers") == [(0, 4, 0, 2), (1, 4, 1, 2), (2, 4, 0, 2), (3, 4, 1, 2)]
    assert of(by_rank, "nodes") == [(0, 2, 0, 4), (0, 2, 1, 4), (1, 2, 2, 4), (1, 2, 3, 4)]
    assert of(by_rank, "getters") == [(0, 4, 0, 2), (1, 4, 1, 2), (2, 4, 0, 2), (3, 4, 1, 2)]
    assert of(by_rank, "chief") == [True, False, False, False]


def test_exchanges_among_all(by_rank: list[dict[str, Any]]) -> None:
    """broadcast, gather and allgather reach all ranks, in the order of the ranks."""
    assert of(by_rank, "broadcast") == [0, 0, 0, 0]
    assert of(by_rank, "gather") == [[0, 1, 2, 3], None, None, None]
    assert of(by_rank, "allgather") == [[0, 1, 2, 3]] * 4


def test_exchanges_on_a_node(by_rank: list[dict[str, Any]]) -> None:
    """The _local calls stay on the node, whose first rank gathers and broadcasts."""
    assert of(by_rank, "broadcast_local") == [0, 0, 2, 2]
    assert of(by_rank, "gather_local") == [[0, 1], None, [2, 3], None]
    assert of(by_rank, "allgather_local") == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_groups_by_layout(by_rank: list[dict[str, Any]]) -> None:
    """A layout makes one group of torch for each of its lists, an empty one a group of all, and None none."""
    assert of(by_rank, "groups") == [[0, 3], [1, 2], [1, 2], [0, 3]]
    assert of(by_rank, "sum in group") == [2, 4, 2, 4]
    assert of(by_rank, "group of all") == [[0, 1, 2, 3]] * 4
    assert of(by_rank, "no group") == [None] * 4


def test_layouts_that_differ_are_told(by_rank: list[dict[str, Any]]) -> None:
    """Ranks that ask for different groups get an error that shows what each gave, and do not hang."""
    for kind, text, _ in of(by_rank, "layouts differ"):
        assert kind.__name__ == "DisagreementError"
        assert "[[0, 1, 2, 3]], [[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 1, 2, 3]]" in text


def test_the_chief_alone_works_and_all_get_the_result(by_rank: list[dict[str, Any]]) -> None:
    """on_chief() calls the function on rank 0 only, and its result comes out everywhere."""
    assert {(tuple(tensor), pid) for tensor, pid, _ in of(by_rank, "on_chief")} == {((1.0, 1.0), told(by_rank))}
    assert [calls for _, _, calls in of(by_rank, "on_chief")] == [[0], [], [], []]


def told(by_rank: list[dict[str, Any]]) -> int:
    pid: int = by_rank[0]["on_chief"][1]
    return pid


def test_the_chiefs_error_comes_out_on_all(by_rank: list[dict[str, Any]]) -> None:
    """What the chief raises is raised on every rank with type and message, and there as a consequence of rank 0's."""
    assert of(by_rank, "chief's error") == [(CheckpointNotFoundError, "no such", rank > 0) for rank in range(4)]
    assert of(by_rank, "exit") == [(SystemExit, "143", rank > 0) for rank in range(4)]


def test_a_chiefs_error_or_result_that_cannot_be_pickled_comes_out_on_all(by_rank: list[dict[str, Any]]) -> None:
    """An error that cannot travel is told by its message, and a result that cannot is an error on every rank."""
    own, *others = of(by_rank, "odd error")
    assert own == (TrainlabError, "held", False)
    assert others == [(DistributedError, "WithLock: held", True)] * 3
    for kind, text, _ in of(by_rank, "odd result"):
        assert kind is InvalidTypeError
        assert "lock" in text


def test_channels_have_names(by_rank: list[dict[str, Any]]) -> None:
    """A channel carries bytes among all ranks, and a name that is used twice is refused."""
    assert of(by_rank, "channel") == [[b"0", b"1", b"2", b"3"]] * 4
    assert {kind for kind, _, _ in of(by_rank, "same name")} == {InvalidValueError}


def test_a_second_context_shares_the_first_ones_connections(by_rank: list[dict[str, Any]]) -> None:
    """A context made while one is open costs no further connection, and closing it leaves the first one's whole."""
    assert all(of(by_rank, "shared"))
    assert of(by_rank, "after the second") == [[0, 1, 2, 3]] * 4


def test_a_closed_context_says_so(by_rank: list[dict[str, Any]]) -> None:
    """After close(), which may be called twice, the group is gone and every exchange is an error at once."""
    assert all(of(by_rank, "group is closed"))
    for outcomes in of(by_rank, "closed"):
        assert [kind.__name__ for kind, _, _ in outcomes] == ["InvalidStateError"] * 3
