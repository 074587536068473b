"""Several nodes, here as several launchers on this machine: losing one, taking it back, and giving up with a word."""

import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import free_port
from tests.launch import programs
from tests.launch.launchers import Launcher, record_of
from tests.launch.test_restarts import STATE
from tests.training.exactness import check_series
from tests.training.jobs import furthest
from trainlab.errors import LaunchError
from trainlab.launch import Platform, launch

NOTHING: dict[str, list[str]] = {"temporary files": [], "shared memory": []}
Plan = dict[int, tuple[str, int, str]]


def node(folder: Path, number: int, port: int, name: str, *args: Any, **platform: Any) -> Launcher:
    """A node's launcher, in a folder of its own."""
    options = {
        "device": "cpu",
        "processes": 1,
        "cpus_per_task": 1,
        "nodes": 2,
        "timeout": 100.0,
        "node_rank": number,
        **platform,
    }
    return Launcher.of_call(
        folder / f"node-{number}", {**options, "master_addr": "127.0.0.1", "master_port": port}, name, *args
    )


def train(folder: Path, plan: Plan, **options: Any) -> tuple[Any, ...]:
    """What each node's launcher is told to call."""
    return "train", str(folder), plan, options


def run_of(folder: Path) -> Path:
    (run_dir,) = (folder / "runs" / "night").iterdir()
    return run_dir


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run of two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    found = launch(programs.train, str(folder), {}, platform=Platform(device="cpu", processes=2, cpus_per_task=1))
    return run_of(folder), found  # type: ignore[return-value]


@pytest.mark.slow
def test_each_node_gets_the_results_of_all(tmp_path: Path) -> None:
    """Two nodes of two ranks: ranks go by node_rank, know their place, and each launcher gets all results."""
    port = free_port()
    with (
        node(tmp_path, 1, port, "place", processes=2) as second,
        node(tmp_path, 0, port, "place", processes=2) as first,
    ):
        found = first.result()
        assert [(rank["rank"], rank["local"], rank["node"]) for rank in found] == [
            (0, (0, 2), (0, 2)),
            (1, (1, 2), (0, 2)),
            (2, (0, 2), (1, 2)),
            (3, (1, 2), (1, 2)),
        ]
        assert [rank["parent"] for rank in found] == [first.pid, first.pid, second.pid, second.pid]
        assert second.result() == found
        assert len({rank["launch"] for rank in found}) == 1
        for launcher in (first, second):
            assert launcher.left() == NOTHING


@pytest.mark.slow
def test_a_rank_lost_on_the_second_node_comes_back(tmp_path: Path, whole: Any) -> None:
    """A rank killed on another node than the first: the ranks of both go on, and end as if nothing was."""
    port, job = free_port(), train(tmp_path, {0: ("one", 1, "train:7")})
    with node(tmp_path, 0, port, *job) as first, node(tmp_path, 1, port, *job) as second:
        found = first.result()
        second.result()
    for rank, expected in zip(found, whole[1], strict=True):
        assert [part for part in STATE if rank[part] != expected[part]] == []
    assert min(found[0]["seen"]) == 4
    assert [attempt for attempt, _ in record_of(run_of(tmp_path))] == [0, 1]
    check_series(run_of(tmp_path), whole[0])


@pytest.mark.slow
def test_a_node_that_is_lost_may_come_back(tmp_path: Path, whole: Any) -> None:
    """A fixed number of nodes waits for one that was lost; launched there again, training ends as if nothing was."""
    port, job = free_port(), train(tmp_path, {0: ("wait", 0, "train:6")})
    with node(tmp_path, 0, port, *job) as first:
        with node(tmp_path, 1, port, *job) as second:
            first.wait_for_marks("waits-0", 2, tmp_path)
            second.send(signal.SIGKILL)
            second.wait()
        with node(tmp_path, 1, port, *job) as second:
            found = first.result()
            assert second.result()[1]["weights"] == found[1]["weights"]
    for rank, expected in zip(found, whole[1], strict=True):
        assert [part for part in STATE if rank[part] != expected[part]] == []
    check_series(run_of(tmp_path), whole[0])


@pytest.mark.slow
def test_a_range_of_nodes_goes_on_without_one_and_takes_it_back(tmp_path: Path) -> None:
    """With nodes="1:2" training goes on when a node is lost, takes it back later, and trains the same batches."""
    options = {"augmented": False, "dropout": 0.0}
    (tmp_path / "whole").mkdir()
    (expected,) = launch(programs.train, str(tmp_path / "whole"), {}, options, platform=Platform(device="cpu"))  # type: ignore[misc]
    port = free_port()
    # Attempt 0 waits with both nodes, attempt 1 with the one that is left, until the other one is back.
    job = train(tmp_path, {0: ("wait", 0, "train:5"), 1: ("wait", 0, "train:9")}, **options)
    with node(tmp_path, 1, port, *job, nodes="1:2") as second:
        second.wait_for("all is imported")  # or the first node might begin without it
        with node(tmp_path, 0, port, *job, nodes="1:2") as first:
            first.wait_for_marks("waits-0", 2, tmp_path)
            second.send(signal.SIGKILL)
            second.wait()
            first.wait_for_marks("waits-1", 1, tmp_path)
            with node(tmp_path, 1, port, *job, nodes="1:2") as third:
                found = first.result()
                assert len(third.result()) == len(found) == 2
    assert furthest(found[0]["tensors"], expected["tensors"]) <= 1e-12
    assert found[0]["progress"] == expected["progress"]
    assert [attempt for attempt, _ in record_of(run_of(tmp_path))] == [0, 1, 2]
    check_batches(run_of(tmp_path))


def check_batches(run_dir: Path) -> None:
    """Whether each step was recorded once."""
    check_series(run_dir, run_dir)


@pytest.mark.slow
def test_the_loss_of_the_first_node_is_told_and_made_good(tmp_path: Path, whole: Any) -> None:
    """Without the node that hosts the rendezvous the others say what to do; launched again like that, all goes on."""
    port, job = free_port(), train(tmp_path, {0: ("wait", 0, "train:6")})
    with (
        node(tmp_path, 0, port, *job) as first,
        node(tmp_path, 1, port, *job) as second,
    ):
        first.wait_for_marks("waits-0", 2, tmp_path)
        first.send(signal.SIGKILL)
        assert second.wait() == 1, second.said()
        told = re.search(r"LaunchError: The node that hosts the rendezvous is lost.*run_id='(\w+)'", second.said())
        assert told, second.said()
        assert second.left() == NOTHING
    port, job = free_port(), train(tmp_path, {})
    with (
        node(tmp_path, 0, port, *job, run_id=told[1]) as first,
        node(tmp_path, 1, port, *job, run_id=told[1]) as second,
    ):
        found = first.result()
        second.result()
    for rank, expected in zip(found, whole[1], strict=True):
        assert [part for part in STATE if rank[part] != expected[part]] == []
    assert min(found[0]["seen"]) == 4
    check_series(run_of(tmp_path), whole[0])


@pytest.mark.slow
def test_a_node_that_gives_up_says_why(tmp_path: Path) -> None:
    """What ends the launch on one node is told on the others, also if they would go on."""
    port = free_port()
    with (
        node(tmp_path, 0, port, "fail", 1, "kill") as first,
        node(tmp_path, 1, port, "fail", 1, "kill", max_restarts=0) as second,
    ):
        assert (first.wait(), second.wait()) == (1, 1)
        assert "RankFailedError: Rank 1 of 2" in second.said() and "SIGKILL" in second.said()
        assert "LaunchError: Another node has given up: Rank 1 of 2" in first.said()


@pytest.mark.slow
def test_a_node_that_is_stopped_ends_the_others(tmp_path: Path) -> None:
    """SIGTERM to one node's launcher ends the launch on the others too, with a word."""
    port, job = free_port(), ("wait_for_ever", str(tmp_path))
    with node(tmp_path, 0, port, *job) as first, node(tmp_path, 1, port, *job) as second:
        first.wait_for_marks("waits", 2, tmp_path)
        second.send(signal.SIGTERM)
        assert second.wait() == 128 + signal.SIGTERM, second.said()
        assert first.wait() in {1, 128 + signal.SIGTERM}, first.said()
        assert first.left() == NOTHING


@pytest.mark.slow
def test_nobody_comes(tmp_path: Path) -> None:
    """A node that waits for others in vain says so after the platform's timeout, and so does one without a first."""
    several: Any = {"device": "cpu", "nodes": 2, "master_addr": "127.0.0.1", "timeout": 2.0}
    with pytest.raises(LaunchError, match=r"did not come within 2 s. Received: fewer than 2 at 127.0.0.1:\d+"):
        launch(print, platform=Platform(**several, node_rank=0, master_port=free_port()))
    with pytest.raises(LaunchError, match=r"The first node was not reached within 2 s.*master_addr='127.0.0.1'"):
        launch(print, platform=Platform(**several, node_rank=1, master_port=free_port()))


def test_a_port_that_is_taken_is_told() -> None:
    """A master_port that another program has is an error that names it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        platform = Platform(device="cpu", nodes=2, node_rank=0, master_addr="127.0.0.1", master_port=port, timeout=5.0)
        with pytest.raises(LaunchError, match=rf"cannot host the rendezvous.*master_port={port}.*another master_port"):
            launch(print, platform=platform)
