"""Platform: what it takes, and what it refuses with which words."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.launch import Platform, launch


def test_an_unknown_option_is_refused_with_those_that_there_are() -> None:
    """A misspelt option is named, with all that there are."""
    with pytest.raises(InvalidTypeError, match=r"no option 'process'\. It has: device, processes, nodes, .*wait\.$"):
        Platform(process=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "gpu"}, r"device should be 'auto', 'cpu', 'cuda', 'mps' or 'slurm'\. Received: 'gpu'"),
        ({"processes": 0}, r"processes should be greater than or equal to 1\. Received: 0"),
        ({"processes": "2"}, r"processes should be a valid integer\. Received: '2'"),
        ({"processes": 2.0}, r"processes should be a valid integer\. Received: 2\.0"),
        ({"timeout": 0}, r"timeout should be greater than 0\. Received: 0"),
        ({"timeout": float("inf")}, r"timeout should be a finite number\. Received: inf"),
        ({"max_restarts": -1}, r"max_restarts should be greater than or equal to 0\. Received: -1"),
        ({"seed": 2**63}, r"seed should be less than 9223372036854775808\."),
        ({"master_port": 65536}, r"master_port should be less than or equal to 65535\. Received: 65536"),
        ({"run_id": "a/b"}, r"run_id.*Received: 'a/b'"),
        ({"processes": 0, "seed": -1}, r"processes should be .*seed should be "),
    ],
)
def test_a_value_that_cannot_be_used_is_told(options: dict[str, Any], told: str) -> None:
    """Each wrong value is named with what it should be and what it is."""
    with pytest.raises(InvalidValueError, match=told):
        Platform(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "cpu", "partition": "a"}, r"Received: \['partition'\] with device='cpu'"),
        ({"time": 5, "mem": "1GB"}, r"Received: \['mem', 'time'\] with device='auto'"),
        ({"device": "slurm", "max_restarts": 1}, r"Received: \['max_restarts'\] with device='slurm'"),
        ({"device": "slurm", "nodes": "1:2"}, r"fixed number of nodes"),
        ({"device": "slurm", "executor": "local", "nodes": 2}, r"executors have one"),
        ({"device": "slurm", "time": "tomorrow"}, r"SLURM's forms .*Received: 'tomorrow'"),
        ({"device": "slurm", "gpus_per_node": 1, "processes": 2}, r"processes=2, gpus_per_node=1"),
        ({"device": "mps", "processes": 2}, r"one process\. Received: processes=2"),
        ({"nodes": 2}, r"no master_addr\. Make the same call on each node"),
        ({"nodes": "2:1", "master_addr": "a"}, r"from the least to the most\. Received: nodes='2:1'"),
        ({"nodes": "some", "master_addr": "a"}, r"a range such as '1:4'\. Received: 'some'"),
        ({"nodes": "0:2", "master_addr": "a"}, r"a range such as '1:4'\. Received: '0:2'"),
        ({"nodes": 2, "node_rank": 2, "master_addr": "a"}, r"between 0 and nodes - 1\. Received: node_rank=2"),
        ({"node_rank": 1}, r"node_rank is between 0 and nodes - 1\. Received: node_rank=1"),
        ({"ipc_groups": [[0, 1], [1]]}, r"each rank from 0 on in exactly one\. Received: \[\[0, 1\], \[1\]\]"),
        ({"ipc_groups": [[0], []]}, r"each rank from 0 on in exactly one"),
        ({"ipc_groups": []}, r"each rank from 0 on in exactly one"),
        ({"ipc_groups": [[1, 2]]}, r"each rank from 0 on in exactly one"),
        ({"ipc_groups": [[0], [1]], "processes": 3}, r"each of the 3 ranks once\. Received: 2 ranks"),
    ],
)
def test_options_that_contradict_each_other_are_told(options: dict[str, Any], told: str) -> None:
    """Options that do not go together are named, with why."""
    with pytest.raises(InvalidValueError, match=told):
        Platform(**options)


@pytest.mark.parametrize(
    ("nodes", "expected"), [(1, (1, 1)), (4, (4, 4)), ("3", (3, 3)), ("1:4", (1, 4)), ("2:2", (2, 2))]
)
def test_nodes_are_a_number_or_a_range(nodes: Any, expected: tuple[int, int]) -> None:
    """``nodes`` reads as people write it."""
    assert Platform(nodes=nodes, master_addr="a").node_range == expected


def test_a_platform_does_not_change() -> None:
    """A platform is a value: frozen, equal to its like, and the same in another process."""
    platform = Platform(
        device="slurm", partition="a", time="1-12", setup=["module load cuda"], extra={"reservation": "b"}
    )
    with pytest.raises(ValidationError, match="frozen"):
        platform.partition = "b"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(platform)) == platform != Platform(device="slurm", partition="b")
    assert Platform(log_dir="logs").log_dir == Path("logs")  # type: ignore[arg-type]


def test_groups_must_fit_what_is_there() -> None:
    """Groups of more ranks than there will be are refused before anything starts."""
    with pytest.raises(InvalidValueError, match=r"name each of the 1 ranks once\. Received: 2 ranks"):
        launch(print, platform=Platform(device="cpu", ipc_groups=[[0], [1]]))
