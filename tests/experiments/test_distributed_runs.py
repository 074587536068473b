"""``--distributed``: an experiment on several processes, started by itself."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.distributed.ranks import free_port, start_ranks
from tests.examples.scripts import run_script_alone
from tests.experiments.programs import program, record_of, run_of
from tests.experiments.test_children import HEAD, TAIL
from trainlab.errors import InvalidValueError
from trainlab.experiments import experiment
from trainlab.experiments.distributed_run import _platform, wants_launch

GATHERS = f"""{HEAD}
import torch
from trainlab import distributed

@trainlab.experiment
def train(params):
    rank = distributed.get_rank()
    print(f"rank {{rank}} speaks")
    total = torch.tensor(float(rank + 1))
    torch.distributed.all_reduce(total)
    tell(f"told-{{rank}}", [distributed.get_num_processes(), float(total), str(trainlab.output_dir),
                            [trainlab.new_seed() for _ in range(3)], params["random_seed"], torch.rand(1).item(),
                            distributed.get_context().cross_rank])
    return f"result of {{rank}}"

if __name__ == "__main__":
    tell("result", train.run({{"distributed": True, "cuda": False, "nproc_per_node": int(sys.argv[1])}}))
"""
LINE = GATHERS[: GATHERS.index("\nif __name__")] + TAIL


@pytest.mark.slow
def test_an_experiment_runs_on_several_processes(tmp_path: Path) -> None:
    """distributed=True runs the main function on each rank, with one folder and one seed; run gives rank 0's result."""
    with program(tmp_path, GATHERS, "2") as started:
        assert started.wait() == 0, started.said()
        told = [json.loads(started.wait_for(f"told-{rank}")) for rank in range(2)]
        assert json.loads(started.wait_for("result")) == "result of 0"
        assert not started.left()
    assert told[0] == told[1]
    assert told[0][:3] == [2, 3.0, str(run_of(tmp_path))]
    record = record_of(tmp_path)
    assert record["status"] == "finished"
    assert len(record["starts"]) == 1
    assert record["random_seed"] == told[0][4]
    assert "rank 1 speaks" in (run_of(tmp_path) / "log.rank-1.txt").read_text()
    assert "rank 1 speaks" not in started.said()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["train"]


def test_a_single_process_has_a_process_group(tmp_path: Path) -> None:
    """With one process on one node there is a process group, so that the same code of a user's runs; and no other."""
    script = tmp_path / "program.py"
    script.write_text(GATHERS)
    with start_ranks(run_script_alone, 1, str(script), str(tmp_path), "1") as (rank,):
        assert rank.wait() == 0, rank.output()
    assert json.loads((tmp_path / "told-0").read_text())[:2] == [1, 1.0]
    assert json.loads((tmp_path / "result").read_text()) == "result of 0"
    assert record_of(tmp_path)["pid"] == rank.pid


@experiment
def nothing(params: dict[str, object]) -> None:
    """Do nothing."""


def test_where_it_runs_is_read_from_the_environment() -> None:
    """NPROC_PER_NODE and its like say where a distributed run runs, and the command line says otherwise."""
    environ = {
        "NPROC_PER_NODE": "3",
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "4000",
    }
    platform = _platform(nothing.read(argv=["--distributed", "--nproc-per-node", "4", "--no-cuda"], environ=environ))
    assert (platform.processes, platform.nodes, platform.node_rank) == (4, 2, 1)
    assert (platform.master_addr, platform.master_port, platform.device) == ("10.0.0.1", 4000, "cpu")


def test_one_node_needs_no_address() -> None:
    """On one node the ranks find each other at a free port, unless one is named; node_rank is found out."""
    platform = _platform(nothing.read({"distributed": True}, environ={}))
    assert (platform.processes, platform.nodes, platform.device) == (1, 1, "auto")
    assert (platform.node_rank, platform.master_addr, platform.master_port) == (None, None, None)
    assert _platform(nothing.read({"distributed": True, "master_port": 4000}, environ={})).master_port == 4000


def test_several_nodes_without_an_address_are_refused() -> None:
    """Several nodes that are not told where to meet would each wait for the others at home: that is an error."""
    with pytest.raises(InvalidValueError, match=r"nnodes=2, and no master_addr.*--master-addr"):
        _platform(nothing.read({"distributed": True, "nnodes": 2}, environ={}))


def test_debug_starts_no_processes(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugged run stays in its process, distributed or not, and says so; a rank of torchrun's starts none either."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    values = nothing.read({"distributed": True}, environ={})
    assert wants_launch(values)
    assert not wants_launch(nothing.read({}, environ={}))
    assert not wants_launch(nothing.read({"distributed": True, "debug": True}, environ={}))
    assert "in this process alone" in caplog.text
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not wants_launch(values)


FAILS = f"""{HEAD}
from trainlab import distributed

@trainlab.parameter("failing", type=int, default=0)
@trainlab.parameter("status", type=int, default=0)
@trainlab.experiment
def train(params):
    if distributed.get_rank() == params["failing"]:
        if params["status"]:
            sys.exit(params["status"])
        raise ValueError("rank " + str(params["failing"]) + " has enough")
    distributed.distributed_barrier()
{TAIL}"""
PAIR = ("--distributed", "--nproc-per-node", "2", "--no-cuda")


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "status"), [(0, 0), (1, 7)])
def test_the_failure_of_a_rank_is_told_once(tmp_path: Path, failing: int, status: int) -> None:
    """When a rank fails, the command line ends with its status and shows its traceback, once, whichever rank it is."""
    with program(tmp_path, FAILS, *PAIR, "--failing", str(failing), "--status", str(status)) as started:
        assert started.wait() == (status or 1), started.said()
        assert not started.left()
    said = started.said()
    assert said.count("in train\n") == 1, said
    assert f"Rank {failing} of 2 failed" in said
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    assert ("SystemExit: 7" if status else "rank 0 has enough") in record["error"]


@pytest.mark.slow
def test_two_nodes_make_one_run(tmp_path: Path) -> None:
    """The same command on two nodes, with node_rank, master_addr and master_port, makes one run of all their ranks."""
    port = str(free_port())
    where = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line = ("--distributed", "--no-cuda")
    with program(tmp_path, LINE, *line, "--node-rank", "0", **where) as first:
        with program(tmp_path, LINE, *line, NODE_RANK="1", **where) as second:
            assert second.wait() == 0, second.said()
        assert first.wait() == 0, first.said()
        told = [json.loads(first.wait_for(f"told-{rank}")) for rank in range(2)]
    assert [one[:3] for one in told] == [[2, 3.0, str(run_of(tmp_path))]] * 2
    assert [one[-1] for one in told] == [0, 1]
    assert told[0][3:6] == told[1][3:6]


RESTARTS = f"""{HEAD}
from trainlab import distributed

@trainlab.experiment
def train(params):
    rank, attempt = distributed.get_rank(), distributed.launched().attempt
    told = [str(trainlab.output_dir), params["random_seed"], trainlab.new_seed(), os.getpid()]
    tell(f"told-{{attempt}}-{{rank}}", told)
    while attempt == 0:
        time.sleep(0.01)
    distributed.distributed_barrier()
{TAIL}"""


@pytest.mark.slow
def test_a_killed_rank_comes_back_to_the_same_run(tmp_path: Path) -> None:
    """When a rank is killed, all are started again, in the same folder and with the same random seed."""
    with program(tmp_path, RESTARTS, *PAIR) as started:
        before = [json.loads(started.wait_for(f"told-0-{rank}")) for rank in range(2)]
        os.kill(before[1][3], signal.SIGKILL)
        assert started.wait() == 0, started.said()
        after = [json.loads(started.wait_for(f"told-1-{rank}")) for rank in range(2)]
        assert not started.left()
    assert before[0][:3] == before[1][:3] == after[0][:3] == after[1][:3]
    assert before[0][0] == str(run_of(tmp_path))
    assert [start["status"] for start in record_of(tmp_path)["starts"]][-1] == "finished"
    assert len(record_of(tmp_path)["starts"]) == 2


WAITS = f"""{HEAD}
from trainlab import distributed

@trainlab.experiment
def train(params):
    try:
        tell(f"ready-{{distributed.get_rank()}}", os.getpid())
        while True:
            time.sleep(0.01)
    finally:
        tell(f"ended-{{distributed.get_rank()}}", True)
{TAIL}"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM to a distributed run ends its ranks in good order, with 130 or 143, and says interrupted."""
    with program(tmp_path, WAITS, *PAIR) as started:
        started.wait_for("ready-0")
        started.wait_for("ready-1")
        started.send(number)
        assert started.wait() == 128 + number, started.said()
        assert not started.left()
    assert (tmp_path / "ended-0").exists()
    assert (tmp_path / "ended-1").exists()
    assert record_of(tmp_path)["status"] == "interrupted"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--distributed", "--nnodes", "2"], "Several nodes find each other at one of them"),
        (["--distributed", "--no-cuda", "--node-rank", "3"], "node_rank is between 0 and nodes - 1"),
        (["--deterministic"], "CUBLAS_WORKSPACE_CONFIG=:1"),
    ],
)
def test_a_line_that_cannot_be_run_is_told_in_a_line(
    line: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is found wrong with a command line before its main function is called is told without a traceback."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        nothing.cli(line)
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


def test_a_main_functions_own_error_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An InvalidValueError that the main function raises is the program's, with its traceback."""

    @experiment
    def refuses(params: dict[str, object]) -> None:
        raise InvalidValueError("mine")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match="mine"):
        refuses.cli([])
