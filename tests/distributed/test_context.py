import pytest

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError

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


def test_the_getters_say_what_the_attributes_say() -> None:
    """Code written with get_rank() and code written with .rank agree."""
    context = DistributedContext(**NUMBERS, chief_ip="10.0.0.1")
    assert (context.get_rank(), context.get_size()) == (context.rank, context.size) == (1, 4)
    assert context.get_local_rank() == context.local_rank == 1
    assert context.get_num_agents() == context.cross_size == 2
    assert (context.data_rank, context.data_size) == (1, 4)


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


@pytest.mark.parametrize("call", CALLS)
def test_several_processes_are_said_to_be_unsupported(call: str) -> None:
    """Rather than giving one process's values for those of all, an exchange among several says that it cannot."""
    with pytest.raises(InvalidStateError, match="not supported yet"):
        getattr(DistributedContext(**NUMBERS, chief_ip="10.0.0.1"), call)(1)


def test_closing_twice_is_fine() -> None:
    """A context that was closed by hand and again at the end of its block is no error."""
    with DistributedContext() as context:
        context.close()
    context.close()
