"""An exception on one of several ranks, in each place where a user's code runs: all end, and are told why."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.training import faults
from tests.training.outcomes import outcome

CHIEF, OTHER = 0, 1

# The place, the time at which it is passed there (after the first checkpoint, where that can be), the phase, and the
# checkpoints that there are.
PLACES: dict[str, tuple[int, str, list[int]]] = {
    "after init": (1, "open", []),
    "build_model": (1, "open", []),
    "build_optimizer": (1, "open", []),
    "build_lr_scheduler": (1, "open", []),
    "before fit": (1, "open", []),
    "build_callbacks": (1, "start", []),
    "build_training_data_loader": (1, "start", []),
    "build_validation_data_loader": (1, "start", []),
    "on_trial_startup": (1, "start", []),
    "on_training_start": (1, "start", []),
    "on_training_epoch_start": (2, "train at batch 8", [4, 8]),
    "on_training_epoch_end": (1, "train at batch 8", [4]),
    "data[i]": (25, "train at batch 6", [4]),
    "train_batch": (6, "train at batch 5", [4]),
    "forward": (6, "train at batch 4", [4]),
    "optimizer.step": (6, "train at batch 5", [4]),
    "scheduler.step": (2, "train at batch 8", [4]),
    "on_training_workload_end": (2, "train at batch 5", [4]),
    "evaluate_batch": (2, "validate at batch 5", [4]),
    "validation_data[i]": (10, "validate at batch 5", [4]),
    "get_batch_length": (7, "validate at batch 5", [4]),
    "evaluation_reducer": (2, "validate at batch 5", [4]),
    "on_validation_start": (1, "validate at batch 5", [4]),
    "on_validation_epoch_start": (1, "validate at batch 5", [4]),
    "on_validation_epoch_end": (1, "validate at batch 5", [4]),
    "on_validation_end": (1, "validate at batch 5", [4]),
    "on_checkpoint_save_start": (2, "checkpoint at batch 8", [4]),
    "on_checkpoint_write_end": (2, "checkpoint at batch 8", [4]),
    "on_checkpoint_upload_end": (2, "checkpoint at batch 8", [4, 8]),
    "state_dict": (3, "checkpoint at batch 8", [4]),
    "stateful.state_dict": (3, "checkpoint at batch 8", [4]),
    "on_trial_shutdown": (1, "train at batch 20", [16, 20]),
    "after fit": (1, "train at batch 20", [16, 20]),
}
ON_CHIEF_ALONE = {"on_checkpoint_save_start", "on_checkpoint_write_end"}
# A reducer's error is told with its name, and is the cause of that.
REDUCER = {"reset": 5, "per_slot_reduce": 4, "cross_slot_reduce": 4}
ON_RESUME = ("on_checkpoint_load_start", "load_state_dict", "stateful.load_state_dict")


def in_turn(places: Any) -> list[Any]:
    """Each place on the chief or on another rank in a plain run, and on the other one beside it in a long run."""
    chosen = []
    for number, place in enumerate(places):
        for rank in (CHIEF, OTHER):
            if rank == OTHER and place in ON_CHIEF_ALONE:
                continue
            is_plain = rank == number % 2 or place in ON_CHIEF_ALONE
            name = f"{place} on {'the chief' if rank == CHIEF else 'another'}"
            chosen.append(pytest.param(place, rank, id=name, marks=() if is_plain else pytest.mark.slow))
    return chosen


@pytest.mark.parametrize(("place", "rank"), in_turn(PLACES))
def test_an_error_in_a_hook(tmp_path: Path, place: str, rank: int) -> None:
    """An exception of the user's on one rank ends all, is shown once with its rank, and spares the last checkpoint."""
    time, phase, checkpoints = PLACES[place]
    found = outcome(tmp_path / "run", (place, rank, time, "raise"))
    found.check_failed(rank, f"ValueError: boom in {place}", phase)
    assert found.checkpoints() == checkpoints


@pytest.mark.parametrize(("place", "rank"), in_turn(REDUCER))
def test_an_error_in_a_reducer(tmp_path: Path, place: str, rank: int) -> None:
    """An exception in a reducer on one rank ends all, and is told with the reducer's name as that rank's."""
    found = outcome(tmp_path / "run", (place, rank, REDUCER[place], "raise"))
    found.check_failed(rank, f"ValueError: boom in {place}", "validate at batch 5")
    assert found.log().count(f"{place} of the custom reducer Counted (name: 'counted') failed") == 2
    assert found.checkpoints() == [4]


def test_an_error_in_a_reducer_of_training(tmp_path: Path) -> None:
    """An exception in a reducer while training is reported is told with its batch."""
    found = outcome(tmp_path / "run", ("per_slot_reduce", OTHER, 2, "raise"))
    found.check_failed(OTHER, "ValueError: boom in per_slot_reduce", "train at batch 4")


def test_an_error_in_a_full_evaluation(tmp_path: Path) -> None:
    """An exception in evaluate_full_dataset, which the chief calls alone, ends the ranks that wait for it."""
    how = {"options": {"at once": True}}
    found = outcome(tmp_path / "run", how, ("evaluate_full_dataset", CHIEF, 2, "raise"), function=faults.train_with)
    found.check_failed(CHIEF, "ValueError: boom in evaluate_full_dataset", "validate at batch 5")
    assert found.checkpoints() == [4]


@pytest.mark.parametrize("rank", [CHIEF, OTHER])
def test_an_error_in_a_worker_of_the_loader(tmp_path: Path, rank: int) -> None:
    """An exception of the data set in a worker process of one rank ends all ranks, and no worker is left."""
    how = {"options": {"workers": 1}}
    found = outcome(tmp_path / "run", how, ("data[i]", rank, 25, "raise"), function=faults.train_with)
    found.check_failed(rank, "ValueError: boom in data[i]", "train at batch 6")
    assert found.checkpoints() == [4]


@pytest.mark.parametrize("mode", ["async", pytest.param("fork", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [CHIEF, OTHER])
def test_an_error_while_a_checkpoint_is_written(tmp_path: Path, rank: int, mode: str) -> None:
    """An exception while a checkpoint is written beside the training leaves that whole, or only those before."""
    how = {"checkpoint_mode": mode}
    found = outcome(tmp_path / "run", how, ("train_batch", rank, 9, "raise"), function=faults.train_with)
    found.check_failed(rank, "ValueError: boom in train_batch", "train at batch 8")
    assert found.checkpoints() in ([4], [4, 8])
    resumed = outcome(tmp_path / "run", how, function=faults.train_with)
    assert resumed.statuses == [0, 0] and resumed.stopped_at() == [20, 20], resumed.outputs


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that has come to batch 8."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    run_ranks(faults.train_with, 2, str(run_dir), {"max_length": faults.Batch(8)})
    return run_dir


@pytest.mark.parametrize(("place", "rank"), in_turn(ON_RESUME))
def test_an_error_on_a_resume(tmp_path: Path, begun: Path, place: str, rank: int) -> None:
    """An exception in a hook that gets the state back ends all ranks, and the checkpoint can be resumed after that."""
    shutil.copytree(begun, tmp_path / "run")
    found = outcome(tmp_path / "run", (place, rank, 1, "raise"))
    found.check_failed(rank, f"ValueError: boom in {place}", "start")
    resumed = outcome(tmp_path / "run")
    assert resumed.statuses == [0, 0] and resumed.stopped_at() == [20, 20], resumed.outputs


def test_an_error_among_three(tmp_path: Path) -> None:
    """Of three ranks two wait for one that fails; only that shows its traceback, and the chief who it was."""
    found = outcome(tmp_path / "run", ("train_batch", 2, 6, "raise"), size=3)
    found.check_failed(2, "ValueError: boom in train_batch", "train at batch 5")


def test_two_errors_at_once(tmp_path: Path) -> None:
    """Where two ranks fail in the same batch each shows its own error, and the log of the run has the first one."""
    found = outcome(tmp_path / "run", ("train_batch", 0, 6, "raise"), ("train_batch", 1, 6, "raise"), size=3)
    assert all(found.statuses) and found.status() == "failed"
    assert [output.count("\nValueError: boom in train_batch") for output in found.outputs] == [1, 1, 0]
    assert found.log().count("\nValueError: boom in train_batch") == 1
