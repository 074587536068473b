"""The functions that ask for ranks, without a process group and on three real ranks."""

import os
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from tests.distributed.ranks import run_ranks
from trainlab import distributed
from trainlab.errors import InvalidTypeError, InvalidValueError

VALUES: list[Any] = [3, 2.5, True, [1, 2], np.arange(3), torch.ones(2, 2)]


def asked() -> tuple[bool, bool, int, int]:
    return (
        distributed.is_distributed(),
        distributed.is_master(),
        distributed.get_num_processes(),
        distributed.get_rank(),
    )


def three_ranks() -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {"before": asked()}
    context = distributed.init_distributed()
    found["asked"] = asked()
    found["again"] = distributed.init_distributed().exchange is context.exchange
    found["values"] = [distributed.broadcast_from_master(value) for value in VALUES]
    # What another rank holds, be it of another shape or no number at all, does not matter.
    found["own"] = distributed.broadcast_from_master(torch.tensor([1.5, 2.5]) if rank == 0 else "nothing")
    try:
        distributed.broadcast_from_master("text")
    except InvalidTypeError as error:
        found["text"] = str(error)
    found["barrier"] = distributed.distributed_barrier()
    context.close()
    found["after"] = asked()
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Any]]:
    return run_ranks(three_ranks, 3)


def test_without_a_group_they_answer_for_one_process() -> None:
    """A script of one process asks the same functions, which open nothing."""
    assert asked() == (False, True, 1, 0)
    assert distributed.init_distributed().size == 1
    assert asked() == (False, True, 1, 0)
    distributed.distributed_barrier()


@pytest.mark.parametrize("value", VALUES)
def test_without_a_group_a_broadcast_gives_a_tensor_too(value: Any) -> None:
    """broadcast_from_master() gives a tensor in one process as in several."""
    assert torch.equal(distributed.broadcast_from_master(value), torch.as_tensor(value))


def test_what_is_no_number_is_refused() -> None:
    """Text cannot be broadcast from the master, and the error says what can."""
    with pytest.raises(InvalidTypeError, match="Numbers, arrays and tensors.*Received: str"):
        distributed.broadcast_from_master("text")


def test_an_unknown_backend_is_refused() -> None:
    """A backend that is misspelt is an error that lists those that are there."""
    with pytest.raises(InvalidValueError, match=r"Received: 'glue'\. Pass one of \['.*gloo"):
        distributed.init_distributed("glue")


def test_they_answer_for_all_ranks(by_rank: list[dict[str, Any]]) -> None:
    """Between opening and closing, each rank is told its number and that of all; before and after it is alone."""
    for rank, found in enumerate(by_rank):
        assert found["before"] == found["after"] == (False, True, 1, 0)
        assert found["asked"] == (True, rank == 0, 3, rank)


def test_opening_twice_is_fine(by_rank: list[dict[str, Any]]) -> None:
    """A second init_distributed() opens nothing further."""
    assert all(found["again"] for found in by_rank)


def test_the_masters_numbers_come_to_all(by_rank: list[dict[str, Any]]) -> None:
    """Every rank gets rank 0's numbers as a tensor, whatever it gave itself."""
    for found in by_rank:
        for value, tensor in zip(VALUES, found["values"], strict=True):
            assert torch.equal(tensor, torch.as_tensor(value))
            assert tensor.dtype == torch.as_tensor(value).dtype
        assert found["own"].tolist() == [1.5, 2.5]


def test_the_masters_text_is_refused_on_all(by_rank: list[dict[str, Any]]) -> None:
    """What cannot become a tensor is an error on every rank, and the barrier after it is passed by all."""
    assert all("Received: str" in found["text"] for found in by_rank)
    assert all(found["barrier"] is None for found in by_rank)


def own_group(file: str) -> Any:
    rank = int(os.environ["RANK"])
    found = []
    for number in range(2):
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}{number}", rank=rank, world_size=2)
        found.append((asked(), distributed.broadcast_from_master(rank + 5).item(), distributed.distributed_barrier()))
        torch.distributed.destroy_process_group()
    return found


def test_they_work_with_a_group_that_the_script_opened(tmp_path: Any) -> None:
    """A script may open and close torch's group itself, more than once, and use these functions at once."""
    expected = [[((True, rank == 0, 2, rank), 5, None)] * 2 for rank in range(2)]
    assert run_ranks(own_group, 2, str(tmp_path / "store")) == expected


def takes_gpu() -> Any:
    try:
        with distributed.open_ranks(torch.device("cuda")) as context:
            total = torch.ones(1, device="cuda")
            torch.distributed.all_reduce(total)
            values = context.allgather({"t": total})
            return total.item(), str(values[0]["t"].device), torch.distributed.get_backend()
    except InvalidValueError as error:
        return str(error)


@pytest.mark.cuda
def test_a_rank_takes_its_gpu() -> None:
    """Each rank computes on a GPU of its own with NCCL, and control data goes beside it."""
    count = torch.cuda.device_count()
    for rank, (total, device, backend) in enumerate(run_ranks(takes_gpu, count)):
        assert (total, device) == (count, f"cuda:{rank}")
        assert "nccl" in backend


@pytest.mark.cuda
def test_more_ranks_than_gpus_are_refused() -> None:
    """Two ranks on one GPU are an error on both, which names the numbers, and no hang in NCCL."""
    size = torch.cuda.device_count() + 1
    for text in run_ranks(takes_gpu, size):
        assert "Each rank has a GPU of its own" in text
        assert "start one rank for each GPU" in text
