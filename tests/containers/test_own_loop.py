"""A whole loop of one's own, killed and gone on with: real processes, real ranks."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.containers.own_loop import WAITING, train
from tests.distributed.ranks import run_ranks, start_ranks

STEPS = 18


def recorded(folder: Path) -> list[tuple[int, str, float]]:
    """What is in scalars.csv, below its header."""
    header, *lines = (folder / "scalars.csv").read_text().splitlines()
    assert header == "step,tag,value"
    return [(int(step), tag, float(value)) for step, tag, value in (line.split(",") for line in lines)]


def in_tensorboard(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    return sorted((event.step, event.value) for event in events.Scalars("train/loss"))


def alone(folder: str, steps: int, killed_after: int | None = None) -> Any:
    """The program in one process, that nobody launched with others."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"):
        os.environ.pop(name, None)
    return train(folder, steps, killed_after, dropout=0.2)


def kill_after(step: int, program: Any, ranks: int, folder: Path) -> None:
    """Run the program, and kill its ranks when each of them has made the step."""
    with start_ranks(program, ranks, str(folder), STEPS, step) as started:
        for rank in started:
            rank.wait_for(WAITING)
        for rank in started:
            rank.kill()
        assert started.wait() == [-signal.SIGKILL] * ranks


def check_same(result: Any, other: Any) -> None:
    assert result["losses"] == other["losses"]
    assert result["lr"] == other["lr"]
    assert result["model"].keys() == other["model"].keys()
    for name, tensor in result["model"].items():
        assert torch.equal(tensor, other["model"][name]), name


def check_series(folder: Path, losses: list[float]) -> None:
    assert [(step, tag) for step, tag, _ in recorded(folder)] == [(step, "train/loss") for step in range(STEPS)]
    assert [value for _, _, value in recorded(folder)] == losses
    assert [step for step, _ in in_tensorboard(folder)] == list(range(STEPS))


def test_a_loop_that_is_killed_twice_comes_to_the_same_bits_and_records_each_step_once(tmp_path: Path) -> None:
    """Weights, losses and series of a loop killed by SIGKILL at any step are those of one that ran through."""
    (whole,) = run_ranks(alone, 1, str(tmp_path / "whole"), STEPS)
    for step in (8, 14):
        kill_after(step, alone, 1, tmp_path / "killed")
    # Steps 5 to 7, and 10 to 13, were recorded by a process that died.
    assert len(recorded(tmp_path / "killed")) == 14
    (result,) = run_ranks(alone, 1, str(tmp_path / "killed"), STEPS)
    check_same(result, whole)
    check_series(tmp_path / "killed", whole["losses"])


def test_two_ranks_that_are_killed_come_to_the_same_bits_and_record_each_step_once(tmp_path: Path) -> None:
    """The same holds for a loop of two ranks, whose weights are the same on both."""
    whole = run_ranks(train, 2, str(tmp_path / "whole"), STEPS)
    kill_after(8, train, 2, tmp_path / "killed")
    result = run_ranks(train, 2, str(tmp_path / "killed"), STEPS)
    for rank in range(2):
        check_same({**result[rank], "losses": []}, {**whole[rank], "losses": []})
    assert result[0]["losses"] == whole[0]["losses"]
    trained = [name for name in result[0]["model"] if "running" not in name]
    for name in trained:
        assert torch.equal(result[0]["model"][name], result[1]["model"][name]), name
    check_series(tmp_path / "killed", whole[0]["losses"])


def test_two_ranks_go_on_before_a_damaged_checkpoint_and_save_in_its_place(tmp_path: Path) -> None:
    """The newest whole checkpoint is gone on from, and the damaged one is moved aside once it is in the way."""
    whole = run_ranks(train, 2, str(tmp_path), 10)
    file = tmp_path / "checkpoint-10" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    again = run_ranks(train, 2, str(tmp_path), 10)
    assert again[0]["losses"] == whole[0]["losses"]
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-10", "checkpoint-10.damaged-1", "checkpoint-5"]
    assert [step for step, _, _ in recorded(tmp_path)] == list(range(10))


def test_a_loop_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """A checkpoint of one process can be gone on with by two, at the same record, and each step is recorded once."""
    run_ranks(alone, 1, str(tmp_path), 10)
    result = run_ranks(train, 2, str(tmp_path), STEPS)
    assert len(result[0]["losses"]) == STEPS
    assert [step for step, _, _ in recorded(tmp_path)] == list(range(STEPS))
