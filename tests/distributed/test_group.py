"""How the ranks find each other, and how all of it ends: real processes and real interpreters."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from tests.distributed.ranks import free_port, run_ranks, start_ranks
from trainlab.distributed import DistributedContext, init_distributed, open_ranks
from trainlab.errors import DisagreementError, DistributedError, InvalidValueError

NODES = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
CPU = torch.device("cpu")
ALL = ("RANK", "WORLD_SIZE", *NODES)


def numbers(context: DistributedContext) -> tuple[int, ...]:
    return (context.rank, context.size, context.local_rank, context.local_size, context.cross_rank, context.cross_size)


def forget(*names: str) -> None:
    for name in names:
        del os.environ[name]


def users_own_group(file: str) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    forget(*ALL, "MASTER_ADDR", "MASTER_PORT")
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=3)
    found: dict[str, Any] = {}
    for name, make in (("torch", DistributedContext.from_torch_distributed), ("open", lambda: open_ranks(CPU))):
        with make() as context:
            found[name] = numbers(context)
            found[f"{name} sum"] = context.exchange.maximum([context.rank])
        found[f"{name} left open"] = torch.distributed.is_initialized()
    os.environ.update(RANK=str(rank), WORLD_SIZE="5", MASTER_ADDR="nowhere")
    with open_ranks(CPU) as context:
        found["stale environment"] = numbers(context)[:2]
    try:
        DistributedContext(rank=rank, size=4, local_rank=rank, local_size=4, cross_rank=0, cross_size=1)
    except InvalidValueError as error:
        found["other numbers"] = str(error)
    found["alone"] = DistributedContext().size
    torch.distributed.destroy_process_group()
    return found


def test_an_open_group_is_used_and_left_open(tmp_path: Path) -> None:
    """A group that the script opened itself, by whatever means, is used as it is and never closed by trainlab."""
    for rank, found in enumerate(run_ranks(users_own_group, 3, str(tmp_path / "store"))):
        assert found["torch"] == found["open"] == (rank, 3, rank, 3, 0, 1)
        assert found["torch sum"] == found["open sum"] == [2]
        assert found["torch left open"]
        assert found["open left open"]
        assert found["stale environment"] == (rank, 3)
        assert f"rank {rank} of 4, while torch.distributed is open as rank {rank} of 3" in found["other numbers"]
        assert found["alone"] == 1


def opens_again_and_again() -> list[Any]:
    found = []
    for number in range(3):
        with open_ranks(CPU) as context:
            found.append(context.allgather((number, context.rank)))
    return found


def test_a_group_can_be_opened_again() -> None:
    """A program may train twice: each time the group is opened anew, however far ahead a rank is."""
    expected = [[(number, rank) for rank in range(3)] for number in range(3)]
    assert run_ranks(opens_again_and_again, 3) == [expected] * 3


def test_a_group_can_be_opened_again_under_torchruns_agent() -> None:
    """The same where torchrun's agent keeps the store, with what an earlier group wrote still in it."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_PORT": str(store.port)}
    expected = [[(number, rank) for rank in range(2)] for number in range(3)]
    assert run_ranks(opens_again_and_again, 2, env=agent) == [expected] * 2


def by_constructor() -> Any:
    own = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    with DistributedContext(
        **{name: int(os.environ[variable]) for name, variable in own.items()},
        cross_rank=int(os.environ["GROUP_RANK"]),
        cross_size=int(os.environ["GROUP_WORLD_SIZE"]),
        chief_ip="127.0.0.1",
    ) as context:
        return numbers(context), context.allgather(context.rank)


def in_a_slurm_step() -> Any:
    rank, size, port = os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]
    forget(*ALL, "MASTER_ADDR", "MASTER_PORT")
    # Two tests at once on one machine are one job to SLURM's numbers: the port of the environment tells them apart.
    os.environ.update(SLURM_JOB_ID="1", SLURM_STEP_ID="0", SLURM_PROCID=rank, SLURM_LOCALID=rank, MASTER_PORT=port)
    os.environ.update(SLURM_STEP_NUM_TASKS=size, SLURM_STEP_NUM_NODES="1", SLURM_STEP_TASKS_PER_NODE=size)
    with open_ranks(CPU) as context:
        return numbers(context), context.allgather(context.rank)


@pytest.mark.parametrize("start", [by_constructor, in_a_slurm_step])
def test_ranks_find_each_other(start: Any) -> None:
    """Six numbers and an address are enough, and so is what srun tells."""
    assert run_ranks(start, 2) == [((rank, 2, rank, 2, 0, 1), [0, 1]) for rank in range(2)]


def one_rank() -> Any:
    with open_ranks(CPU) as context:
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        group = context.new_groups([]) is not None and context.process_group is not None
        return context.size, total.item(), group, context.allgather(threading.Lock)


def test_torchrun_of_one_process_opens_a_group_of_one() -> None:
    """Code written for a process group runs under `torchrun --nproc-per-node=1`."""
    [(size, total, group, _)] = run_ranks(one_rank, 1)
    assert (size, total, group) == (1, 1.0, True)


def disagrees() -> str:
    try:
        open_ranks(CPU)
    except DisagreementError as error:
        return f"{error} {torch.distributed.is_initialized()}"
    return ""


def test_ranks_of_different_launchers_are_told() -> None:
    """Ranks that were told different numbers of nodes say so instead of waiting for each other."""
    env = {"GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for text in run_ranks(disagrees, 2, env=lambda rank: env if rank else {}):
        assert "different numbers of nodes. Received: [(0, 1), (0, 2)]" in text
        assert text.endswith("False")


def comes_alone() -> str:
    try:
        open_ranks(CPU)
    except DistributedError as error:
        return str(error)
    return ""


def test_a_rank_that_never_comes_is_an_error() -> None:
    """A rank that waits for others in vain tells where it waited, how long, and what to look at."""
    env = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TRAINLAB_TIMEOUT": "1"}
    [text] = run_ranks(comes_alone, 1, env=env)
    assert "Rank 0 of 2 did not find the others at 127.0.0.1" in text
    assert "within 1 s" in text
    assert "MASTER_PORT" in text


def stays_away() -> str:
    context = init_distributed(timeout=10)  # in which the ranks have to find each other, too
    context.phase("train", 7)
    if context.rank == 1:
        signal.pause()
    try:
        context.allgather(1)
    except DistributedError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_an_exchange_that_one_rank_leaves_out_is_told() -> None:
    """A rank that waits for another in an exchange ends with an error that names the line and what each was doing."""
    with start_ranks(stays_away, 2) as ranks:
        assert ranks[0].wait() == 0
        text = ranks[0].result()
    assert "waiting in allgather (test_group.py:" in text
    assert "in train at batch 7" in text


def run_program(body: str, size: int = 2) -> tuple[list[int], list[str]]:
    program = "import sys, torch\nfrom trainlab.distributed import *\n" + body
    with start_ranks(["-W", "error", "-c", program], size) as ranks:
        return ranks.wait(), [rank.output() for rank in ranks]


@pytest.mark.slow
def test_a_program_that_closes_nothing_ends_in_silence() -> None:
    """A script of init_distributed() and no close() ends by itself, without a word, and is no failure to the others."""
    body = (
        "context = init_distributed()\n"
        "print(context.broadcast('all'), is_master())\n"
        "while is_master() and not (context.watchdog.failure or context.watchdog.left_ranks): pass\n"
        "print(context.watchdog.failure)\n"
    )
    statuses, outputs = run_program(body)
    assert statuses == [0, 0]
    assert outputs == ["all True\nNone\n", "all False\nNone\n"]


@pytest.mark.slow
def test_a_program_that_fails_with_exchanges_under_way_ends() -> None:
    """An error on one rank, outside of any block, ends both interpreters, and both tell the first cause."""
    body = (
        "context = init_distributed()\n"
        "if context.rank == 1:\n"
        "    work = torch.distributed.all_reduce(torch.ones(1), async_op=True)\n"
        "    raise ValueError('boom')\n"
        "context.allgather(0)\n"
    )
    statuses, outputs = run_program(body)
    assert statuses == [1, 1]
    assert "ValueError: boom" in outputs[1].splitlines()[-1]
    assert "Rank 1 of 2 failed in start: ValueError: boom" in outputs[0]
    assert "destroy_process_group" not in "".join(outputs)


def ends_without_closing() -> None:
    context = init_distributed()
    context.allgather(context.rank)
    if context.rank == 1 and os.environ.get("FAIL"):
        raise ValueError("boom")
    if os.environ.get("FAIL"):
        context.allgather(0)


def test_a_child_of_multiprocessing_that_closes_nothing_ends_well() -> None:
    """A process of torch.multiprocessing, in which no exit handler runs, is closed at its end all the same."""
    assert run_ranks(ends_without_closing, 2) == [None, None]


def test_a_child_of_multiprocessing_tells_its_error() -> None:
    """An error that ends such a process is told to the others with its rank."""
    with start_ranks(ends_without_closing, 2, env={"FAIL": "1"}) as ranks:
        assert ranks.wait() == [1, 1]
        assert "PeerFailedError: Rank 1 of 2 failed in start: ValueError: boom" in ranks[0].output()


def fails_beside_a_frozen_one() -> None:
    with init_distributed():
        told: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: told.append(number))
        print("ready")
        while not told:  # no pause(): the signal may come right before it
            threading.Event().wait(0.01)
        work = torch.distributed.all_reduce(torch.ones(1), async_op=True)
        raise ValueError(f"boom {work.is_completed()}")


@pytest.mark.slow
def test_a_failing_rank_does_not_wait_for_a_frozen_one() -> None:
    """A rank that fails while it exchanges something with a rank that stands still ends nevertheless, at once."""
    with start_ranks(fails_beside_a_frozen_one, 2) as ranks:
        for rank in ranks:
            rank.wait_for("ready")
        ranks[1].send_signal(signal.SIGSTOP)
        ranks[0].send_signal(signal.SIGUSR1)
        assert ranks[0].wait(60) == 1
        assert ranks[1].returncode is None
        assert "ValueError: boom False" in ranks[0].output()


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    """Two trainings after each other in a script that torchrun starts."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from trainlab.distributed import open_ranks\n"
        "for number in range(2):\n"
        "    with open_ranks() as context:\n"
        "        line = f'{context.allgather((number, context.rank))} {context.local_size}'\n"
        "        os.write(1, f'{line}\\n'.encode())\n"  # in one piece: both ranks write into one pipe
    )
    port = str(free_port())
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", port, str(script)]
    with start_ranks(command, 1) as ranks:
        assert ranks.wait() == [0], ranks.outputs()
        lines = ranks[0].output().splitlines()
    assert sorted(line for line in lines if line.startswith("[(")) == [
        "[(0, 0), (0, 1)] 2",
        "[(0, 0), (0, 1)] 2",
        "[(1, 0), (1, 1)] 2",
        "[(1, 0), (1, 1)] 2",
    ]
