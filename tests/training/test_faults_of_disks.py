"""Several ranks on a disk that is full, that one of them may not write to, or does not see."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.training import faults
from tests.training.outcomes import Outcome, outcome
from trainlab.checkpoint import Checkpoint, list_checkpoints
from trainlab.storage import open_store

CHIEF, OTHER = 0, 1
BOTH = pytest.mark.parametrize("rank", [CHIEF, OTHER], ids=["the chief", "another"])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its rights up and take them back")

# The batches of the checkpoints are 4, 8, 12, 16, 20, and before the first of them the state is asked for once, as a
# try: at its third time it is that of batch 8.
EIGHTH, TWELFTH, LAST = 3, 4, 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The weights of a run that nothing happened to."""
    found = outcome(tmp_path_factory.mktemp("whole") / "run")
    return [result["weights"] for result in found.results]


def check_went_on(found: Outcome, whole: list[Any]) -> None:
    """Whether one checkpoint was lost, and training went on as if nothing had happened."""
    assert found.statuses == [0, 0], found.outputs
    assert [result["weights"] for result in found.results] == whole
    assert found.log().count("A checkpoint at batch 8 was lost, and training goes on") == 1
    assert found.outputs[0].count("A checkpoint at batch 8 was lost") == 1, found.outputs
    assert "lost" not in found.outputs[1] and found.status() == "finished"


@needs_root
@BOTH
def test_a_checkpoint_that_one_rank_cannot_write(tmp_path: Path, whole: list[Any], rank: int) -> None:
    """A checkpoint that one rank may not write is lost on all and leaves nothing behind, and training goes on."""
    loss = ("state_dict", rank, EIGHTH, "lose permission"), ("on_validation_start", rank, 2, "gain permission")
    found = outcome(tmp_path / "run", {"retention": faults.KEEP_ALL}, *loss, function=faults.train_with)
    check_went_on(found, whole)
    assert found.checkpoints() == [4, 12, 16, 20]


@needs_root
@BOTH
def test_a_last_checkpoint_that_one_rank_cannot_write(tmp_path: Path, rank: int) -> None:
    """A last checkpoint that one rank may not write is an error on all ranks, and the one before is whole."""
    found = outcome(tmp_path / "run", ("state_dict", rank, LAST, "lose permission"))
    assert all(found.statuses), found.outputs
    assert found.checkpoints() == [12, 16]
    cause = "\ntrainlab.errors.CheckpointError: A checkpoint cannot be written: Permission denied"
    assert [output.count(cause) for output in found.outputs] == [int(one == rank) for one in (CHIEF, OTHER)]
    assert found.log().count(cause) == 1
    if rank == OTHER:  # the chief may not write how it ended either
        assert found.status() == "failed"


def test_a_full_disk(small_disk: Path, tmp_path: Path, whole: list[Any]) -> None:
    """A checkpoint for which there is no room is lost, and the next one, for which there is again, is made."""
    how = {"init": {"checkpoint_storage": str(small_disk / "checkpoints")}}
    full = ("state_dict", CHIEF, EIGHTH, "fill disk"), ("state_dict", CHIEF, TWELFTH, "empty disk")
    found = outcome(tmp_path / "run", how, *full, function=faults.train_with)
    check_went_on(found, whole)
    assert batches(small_disk / "checkpoints") == [16, 20]


def test_a_disk_that_is_full_at_the_end(small_disk: Path, tmp_path: Path) -> None:
    """If there is no room for the last checkpoint all ranks end with an error that says so; the one before is whole."""
    how = {"init": {"checkpoint_storage": str(small_disk / "checkpoints")}}
    found = outcome(tmp_path / "run", how, ("state_dict", CHIEF, LAST, "fill disk"), function=faults.train_with)
    assert all(found.statuses), found.outputs
    assert "No space left on device" in found.log() and found.status() == "failed"
    assert batches(small_disk / "checkpoints") == [12, 16]
    (small_disk / "filler").unlink()
    resumed = outcome(tmp_path / "run")
    assert resumed.statuses == [0, 0] and resumed.results[0]["trained"] == [16, 17, 18, 19]


@needs_root
@BOTH
def test_a_folder_that_a_rank_does_not_see(tmp_path: Path, rank: int) -> None:
    """A run's folder that only some ranks see, as on hosts without a shared one, is refused before anything is made."""
    found = outcome(tmp_path / "run", rank, function=faults.train_unseen)
    assert all(found.statuses), found.outputs
    assert any("Rank 1" in output and "does not see the run's folder" in output for output in found.outputs)


def batches(folder: Path) -> list[int]:
    """The batches of the checkpoints in a folder, all of them whole."""
    store = open_store(folder)
    for name in list_checkpoints(store):
        with Checkpoint.open(store.location(name)) as checkpoint:
            checkpoint.verify()
    return sorted(int(name.removeprefix("batch-")) for name in list_checkpoints(store))
