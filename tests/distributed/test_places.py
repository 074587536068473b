"""Where a process finds out that it stands, from what launchers put into its environment."""

import os
from pathlib import Path

import pytest

from trainlab.distributed import DistributedContext, open_ranks
from trainlab.distributed.places import Place, place_of_deepspeed, place_of_environment, place_of_torchrun
from trainlab.errors import DistributedError, InvalidValueError, MissingDependencyError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "3",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "1234",
}
SLURM_STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1,3,2",
    "SLURM_STEP_NODELIST": "node[4-6]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.1.1.1",
}
BY_HAND = {
    "TRAINLAB_RANK": "1",
    "TRAINLAB_WORLD_SIZE": "4",
    "TRAINLAB_LOCAL_RANK": "1",
    "TRAINLAB_LOCAL_WORLD_SIZE": "2",
    "TRAINLAB_NODE_RANK": "0",
    "TRAINLAB_NODES": "2",
    "TRAINLAB_MASTER_ADDR": "10.2.2.2",
    "TRAINLAB_MASTER_PORT": "4321",
}
BATCH_SCRIPT = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2"}


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TRAINLAB_")) or name in {
            *TORCHRUN,
            "ENVIRONMENT",
            "TORCHELASTIC_RUN_ID",
            "LOCAL_SIZE",
            "CROSS_RANK",
            "CROSS_SIZE",
        }:
            monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], *left_out: str) -> None:
    for name, value in variables.items():
        if name not in left_out:
            monkeypatch.setenv(name, value)


def test_without_a_launcher_a_process_is_alone() -> None:
    """A program that nobody launched with others opens nothing and is the only process."""
    assert place_of_environment() is None
    assert open_ranks().process_group is None


def test_torchruns_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """All eight numbers that torchrun tells are taken as they are."""
    put(monkeypatch, TORCHRUN)
    assert place_of_environment() == Place(3, 6, 1, 2, 1, 3, "10.0.0.1", 1234)


@pytest.mark.parametrize("left_out", ["LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"])
def test_nodes_that_are_not_told_are_left_open(monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """A launcher that tells only the rank is enough; half of what it says about nodes is not trusted."""
    put(monkeypatch, TORCHRUN, left_out)
    assert place_of_environment() == Place(3, 6, chief_ip="10.0.0.1", port=1234)


def test_one_process_without_an_address_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK=0 and WORLD_SIZE=1 that stand around in an environment ask for no group."""
    put(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1"})
    assert place_of_environment() is None


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("RANK", "6"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "0")])
def test_variables_that_make_no_sense_are_errors(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A broken environment is told at once, with what was received."""
    put(monkeypatch, {**TORCHRUN, name: value})
    with pytest.raises(InvalidValueError, match=f"Received: .*{value}"):
        place_of_environment()


def test_without_its_variables_torchrun_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """from_torch_distributed() in a program that torchrun did not start says how to start it."""
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InvalidValueError, match="no WORLD_SIZE.*with torchrun"):
        DistributedContext.from_torch_distributed()


def test_a_slurm_step_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A task that srun started is a rank, on the node that the step tells, with the first node as the chief's."""
    put(monkeypatch, SLURM_STEP)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[4-6]" ] && printf "node4\\nnode5\\nnode6\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    place = place_of_environment()
    assert place is not None
    assert place == Place(5, 6, 1, 2, 2, 3, "node4", place.port)


def test_a_steps_port_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tasks of a step derive the same port, and steps of other jobs another one, outside of the clients' range."""
    put(monkeypatch, SLURM_STEP)
    ports = []
    for job, rank in (("77", "5"), ("77", "0"), ("78", "5")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_PROCID", rank)
        place = place_of_environment()
        assert place is not None
        assert place.port is not None
        ports.append(place.port)
    assert ports[0] == ports[1] != ports[2]
    assert all(20000 <= port < 30000 for port in ports)


def test_without_scontrol_the_launching_node_is_the_chiefs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container without SLURM's programs the address that srun gives is used, and a lack of both is told."""
    put(monkeypatch, SLURM_STEP)
    monkeypatch.setenv("PATH", str(tmp_path))
    place = place_of_environment()
    assert place is not None
    assert place.chief_ip == "10.1.1.1"
    monkeypatch.delenv("SLURM_LAUNCH_NODE_IPADDR")
    with pytest.raises(DistributedError, match="3 nodes.*Set MASTER_ADDR"):
        place_of_environment()
    monkeypatch.setenv("MASTER_ADDR", "10.9.9.9")
    assert place_of_environment() == Place(5, 6, 1, 2, 2, 3, "10.9.9.9", place.port)


def test_a_step_on_one_node_needs_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of one node find each other on it."""
    one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "6", "SLURM_LOCALID": "5"}
    put(monkeypatch, {**SLURM_STEP, **one})
    place = place_of_environment()
    assert place is not None
    assert (place.chief_ip, place.local_rank, place.local_size) == ("127.0.0.1", 5, 6)


def test_equal_nodes_are_read_in_their_short_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's "2(x3)" means two tasks on each of three nodes."""
    put(monkeypatch, {**SLURM_STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x3)", "MASTER_ADDR": "a"})
    place = place_of_environment()
    assert place is not None
    assert (place.local_size, place.cross_size) == (2, 3)


@pytest.mark.parametrize("variables", [BATCH_SCRIPT, {**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}])
def test_an_allocation_alone_makes_no_ranks(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """A batch script and a shell in a step of one task are alone, however large their allocation is."""
    put(monkeypatch, variables)
    assert place_of_environment() is None


def test_torchrun_inside_of_a_step_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """When srun starts torchrun on each node, its workers are torchrun's."""
    put(monkeypatch, {**SLURM_STEP, **TORCHRUN})
    assert place_of_environment() == place_of_torchrun() == Place(3, 6, 1, 2, 1, 3, "10.0.0.1", 1234)


def test_what_a_person_sets_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAINLAB_RANK and its like are taken before torchrun's variables and those of a SLURM step."""
    put(monkeypatch, {**SLURM_STEP, **TORCHRUN, **BY_HAND})
    assert place_of_environment() == Place(1, 4, 1, 2, 0, 2, "10.2.2.2", 4321)


def test_the_chiefs_address_can_be_set_by_hand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAINLAB_MASTER_ADDR and TRAINLAB_MASTER_PORT win over MASTER_ADDR and MASTER_PORT, whoever told the rank."""
    put(monkeypatch, TORCHRUN | {name: BY_HAND[name] for name in ("TRAINLAB_MASTER_ADDR", "TRAINLAB_MASTER_PORT")})
    assert place_of_environment() == Place(3, 6, 1, 2, 1, 3, "10.2.2.2", 4321)


@pytest.mark.parametrize("left_out", [name for name in BY_HAND if "MASTER" not in name])
def test_half_of_what_a_person_sets_is_an_error(monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """A variable that was forgotten is named, with those that are there."""
    put(monkeypatch, BY_HAND, left_out)
    shown = "TRAINLAB_WORLD_SIZE='4'" if left_out == "TRAINLAB_RANK" else "TRAINLAB_RANK='1'"
    with pytest.raises(InvalidValueError, match=f"Received: .*{shown}.* no {left_out}\\b"):
        place_of_environment()


@pytest.mark.parametrize(("name", "value"), [("RANK", "0"), ("WORLD_SIZE", "2")])
def test_half_of_torchruns_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """RANK without WORLD_SIZE, or the other way round, is no place of a process alone."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidValueError, match=f"{name}='{value}', and no"):
        place_of_environment()


@pytest.mark.parametrize("wrong", [{"WORLD_SIZE": "8"}, {"RANK": "0", "WORLD_SIZE": "6"}, {"RANK": "0"}])
def test_a_rank_that_contradicts_the_step_is_an_error(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]) -> None:
    """RANK or WORLD_SIZE exported to all tasks of a step is shown beside what srun says."""
    put(monkeypatch, {**SLURM_STEP, **wrong, "MASTER_ADDR": "a"})
    with pytest.raises(InvalidValueError, match=r"SLURM_PROCID='5', SLURM_STEP_NUM_TASKS='6'.*srun"):
        place_of_environment()


def test_a_rank_that_repeats_the_step_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS` changes nothing."""
    put(monkeypatch, {**SLURM_STEP, "RANK": "5", "WORLD_SIZE": "6", "MASTER_ADDR": "a"})
    place = place_of_environment()
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size, place.cross_size) == (5, 6, 1, 2, 3)


def test_a_step_that_contradicts_itself_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM_STEP_NUM_TASKS that was exported by hand does not fit the tasks of the nodes, and is told."""
    put(monkeypatch, {**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(InvalidValueError, match="SLURM_STEP_NUM_TASKS='8'.*'1,3,2'"):
        place_of_environment()


def test_without_deepspeed_its_package_is_named() -> None:
    """from_deepspeed() without the package says what to install and what to use instead."""
    with pytest.raises(MissingDependencyError, match="pip install deepspeed.*from_torch_distributed"):
        DistributedContext.from_deepspeed()


def test_deepspeeds_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's launcher has names of its own for the nodes."""
    own = {"LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "3"}
    put(monkeypatch, {**TORCHRUN, **own}, "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
    assert place_of_deepspeed() == Place(3, 6, 1, 2, 1, 3, "10.0.0.1", 1234)


def test_a_size_exported_to_a_step_of_one_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone task that is told of four ranks, and not where they are, hears both; with an address it joins them."""
    put(monkeypatch, {**SLURM_STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "RANK": "0", "WORLD_SIZE": "4"})
    with pytest.raises(InvalidValueError, match="RANK='0', WORLD_SIZE='4', while srun started it as task 0 of 1 "):
        place_of_environment()
    for variables in ({"MASTER_ADDR": "a"}, {"TRAINLAB_MASTER_ADDR": "a"}, {"LOCAL_RANK": "0"}):
        with monkeypatch.context() as patch:
            put(patch, variables)
            place = place_of_environment()
            assert place is not None
            assert (place.rank, place.size) == (0, 4)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place_of_environment() is None
