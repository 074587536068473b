"""One of several ranks is killed, frozen, stopped, or does what the others do not: all end, and are told why."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import Ranks, start_ranks
from tests.training import faults
from tests.training.outcomes import LIMIT, PATIENT, Outcome, outcome

CHIEF, OTHER = 0, 1
NAMES = ["the chief", "another"]
# So short that the test is, and longer than a busy machine lets a rank stand still that is not frozen.
FREEZING = {"TRAINLAB_HEARTBEAT_TIMEOUT": "6"}

# Where a rank is lost, the phase that it was last seen in, and the checkpoints that are whole then.
LOST = {
    "train_batch": (6, "train", [4]),
    "evaluate_batch": (2, "validate at batch 5", [4]),
    "state_dict": (3, "checkpoint at batch 8", [4]),
    "on_checkpoint_upload_end": (2, "checkpoint at batch 8", [4, 8]),
}
PLAIN = [("train_batch", CHIEF), ("evaluate_batch", OTHER), ("state_dict", CHIEF), ("state_dict", OTHER)]
LOSSES = [
    pytest.param(place, rank, marks=() if (place, rank) in PLAIN else pytest.mark.slow)
    for place in LOST
    for rank in (CHIEF, OTHER)
]


def stopped(run_dir: Path, fault: faults.Fault, *, env: dict[str, str], size: int = 2) -> Outcome:
    """Let a rank stop by SIGSTOP, wait for the end of the others, and let it go on."""

    def others_end(ranks: Ranks) -> None:
        for rank in ranks:
            if rank.rank != fault[1]:
                rank.wait(LIMIT)
        ranks[fault[1]].send_signal(signal.SIGCONT)

    return after(run_dir, others_end, fault, env=env, size=size)


def after(
    run_dir: Path, act: Callable[[Ranks], Any], *args: Any, size: int = 2, env: dict[str, str] | None = None
) -> Outcome:
    """Run a job to its end, and do something meanwhile."""
    with start_ranks(faults.train, size, str(run_dir), *args, env={**PATIENT, **(env or {})}) as ranks:
        act(ranks)
        return Outcome(ranks, run_dir)


@pytest.mark.parametrize(("place", "rank"), LOSSES)
def test_a_killed_rank(tmp_path: Path, place: str, rank: int) -> None:
    """A SIGKILL of one rank ends the other, which names it and its phase; the run goes on from what was whole."""
    time, phase, checkpoints = LOST[place]
    found = outcome(tmp_path / "run", (place, rank, time, "die"))
    assert found.statuses == [-signal.SIGKILL if one == rank else 1 for one in (CHIEF, OTHER)], found.outputs
    survivor = found.outputs[1 - rank]
    assert survivor.count(f"Rank {rank} of 2 died in {phase}") == 1, survivor
    assert "Traceback" not in survivor
    if rank == OTHER:
        assert found.status() == "failed" and f"Rank {rank} of 2 died in {phase}" in found.log()
    resumed = outcome(tmp_path / "run")
    assert resumed.statuses == [0, 0] and resumed.stopped_at() == [20, 20], resumed.outputs
    assert resumed.results[0]["trained"][0] == checkpoints[-1]
    assert resumed.checkpoints() == [16, 20] and len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [CHIEF, OTHER], ids=NAMES)
def test_a_frozen_rank(tmp_path: Path, rank: int) -> None:
    """A SIGSTOP of one rank for longer than the limit ends the other, which names it and its phase, and then it."""
    fault = ("evaluate_batch", rank, 2, "freeze")
    found = stopped(tmp_path / "run", fault, env=FREEZING)
    assert all(found.statuses), found.outputs
    assert f"Rank {rank} of 2 froze in validate at batch 5: it gave no" in found.outputs[1 - rank], found.outputs
    resumed = outcome(tmp_path / "run")
    assert resumed.statuses == [0, 0] and resumed.stopped_at() == [20, 20], resumed.outputs


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(
    ("how", "place"), [*(("die", place) for place in LOST), ("freeze", "train_batch"), ("freeze", "state_dict")]
)
def test_a_lost_rank_of_three(tmp_path: Path, place: str, rank: int, how: str) -> None:
    """Of three ranks two survive the loss of any in any phase for seconds only, and one of them tells of it."""
    time, phase, _ = LOST[place]
    env = FREEZING if how == "freeze" else {}
    found = stopped(tmp_path / "run", (place, rank, time, how), env=env, size=3)
    assert all(found.statuses), found.outputs
    verb = {"die": "died", "freeze": "froze"}[how]
    others = [output for one, output in enumerate(found.outputs) if one != rank]
    assert any(f"Rank {rank} of 3 {verb} in {phase}" in output for output in others), found.outputs
    assert found.checkpoints()


@pytest.mark.parametrize(
    ("rank", "place", "size"),
    [
        (OTHER, "train_batch", 3),
        pytest.param(CHIEF, "train_batch", 2, marks=pytest.mark.slow),
        pytest.param(OTHER, "evaluate_batch", 2, marks=pytest.mark.slow),
        pytest.param(2, "state_dict", 3, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_rank(tmp_path: Path, rank: int, place: str, size: int) -> None:
    """SIGTERM to any one rank stops all at the same batch with one checkpoint, and the run ends as an unstopped one."""
    found = outcome(tmp_path / "run", (place, rank, 3, "terminate"), size=size)
    assert found.statuses == [128 + signal.SIGTERM] * size, found.outputs
    (batch,) = set(found.stopped_at())
    assert batch < faults.LENGTH and found.checkpoints()[-1] == batch
    assert found.status() == "interrupted"
    told = [output.count("To go on from it: start it again, on any number of ranks") for output in found.outputs]
    assert told == [1] + [0] * (size - 1), found.outputs
    assert not any("Traceback" in output for output in found.outputs)
    resumed, whole = outcome(tmp_path / "run", size=size), outcome(tmp_path / "whole", size=size)
    assert [result["trained"][0] for result in resumed.results] == [batch] * size
    assert [result["weights"] for result in resumed.results] == [whole.results[0]["weights"]] * size


def test_a_signal_to_all_ranks(tmp_path: Path) -> None:
    """Ctrl-C in a terminal, which reaches all ranks, stops all at the same batch, with one checkpoint."""
    found = outcome(tmp_path / "run", *[("train_batch", rank, 6, "interrupt") for rank in range(3)], size=3)
    assert found.statuses == [128 + signal.SIGINT] * 3, found.outputs
    (batch,) = set(found.stopped_at())
    assert found.checkpoints()[-1] == batch < faults.LENGTH and found.status() == "interrupted"


@pytest.mark.parametrize("rank", [CHIEF, OTHER], ids=NAMES)
def test_a_second_ctrl_c_on_one_rank(tmp_path: Path, rank: int) -> None:
    """A second Ctrl-C on one rank ends it at once, and with it the others; the last checkpoint is whole."""
    found = outcome(tmp_path / "run", ("train_batch", rank, 6, "interrupt twice"))
    assert all(found.statuses), found.outputs
    assert [output.count("\nKeyboardInterrupt") for output in found.outputs] == [int(r == rank) for r in (0, 1)]
    assert found.checkpoints() == [4]


@pytest.mark.slow
def test_a_call_that_one_rank_makes(tmp_path: Path) -> None:
    """A collective that one rank calls alone ends in an error that says what each rank was doing, and where."""
    env = {"TRAINLAB_TIMEOUT": "10"}
    found = outcome(tmp_path / "run", ("train_batch", OTHER, 6, "gather alone"), env=env)
    assert all(found.statuses), found.outputs
    told = re.findall(r"Rank [01] of 2 waited in vain in train at batch 5: .*", found.log())[0]
    assert re.search(r"rank 0: in train at batch [45] for \d+ s", told), told
    assert re.search(r"rank 1: in train at batch [45] for \d+ s, waiting in allgather \(faults.py:\d+\)", told), told
    assert found.status() == "failed" and found.checkpoints() == [4]


@pytest.mark.parametrize("rank", [CHIEF, OTHER], ids=NAMES)
def test_a_rank_that_exits(tmp_path: Path, rank: int) -> None:
    """sys.exit(3) in a hook ends that rank with 3, and the others, which are told of it."""
    found = outcome(tmp_path / "run", ("on_training_workload_end", rank, 1, "exit"))
    assert found.statuses == [3 if one == rank else 1 for one in (CHIEF, OTHER)], found.outputs
    assert f"Rank {rank} of 2 failed in train at batch 4: SystemExit: 3" in found.log()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [CHIEF, OTHER], ids=NAMES)
def test_a_rank_that_exits_as_if_all_were_well(tmp_path: Path, rank: int) -> None:
    """sys.exit() on one rank does not leave the others waiting: they end with an error that names it."""
    found = outcome(tmp_path / "run", ("train_batch", rank, 6, "exit well"))
    assert found.statuses == [0 if one == rank else 1 for one in (CHIEF, OTHER)], found.outputs
    assert f"Rank {rank} of 2 ended in train at batch 5" in found.outputs[1 - rank]


def test_a_rank_that_ends_first_when_all_is_done(tmp_path: Path) -> None:
    """After fit a rank may leave before the others."""
    found = outcome(tmp_path / "run", ("after fit", OTHER, 1, "exit well"))
    assert found.statuses == [0, 0] and found.status() == "finished"


def test_two_runs_in_one_job(tmp_path: Path) -> None:
    """Processes that have found each other can train one run after the other."""
    found = outcome(tmp_path / "run", function=faults.train_twice)
    assert found.statuses == [0, 0], found.outputs
    assert all(one["weights"] == other["weights"] for one, other in found.results)


def test_a_later_run_that_fails(tmp_path: Path) -> None:
    """What goes wrong in a later run of the same processes is not written into the run before."""
    found = outcome(tmp_path / "run", ("train_batch", OTHER, 26, "raise"), function=faults.train_twice)
    assert all(found.statuses), found.outputs
    assert found.status() == "finished" and "boom" not in found.log()
    found.run_dir = tmp_path / "run-2"
    found.check_failed(OTHER, "ValueError: boom in train_batch", "train at batch 5")
