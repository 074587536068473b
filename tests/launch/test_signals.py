"""Signals to a launch: its ranks come to an end in good order, at once, or not at all any more."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch import programs
from tests.launch.launchers import Launcher, handled, record_of, until
from tests.training.exactness import saved
from trainlab.launch import Platform, launch

PAIR: dict[str, Any] = {"device": "cpu", "processes": 2}
NOTHING: dict[str, list[str]] = {"temporary files": [], "shared memory": []}
# The ranks agree on a stop at one of the next batches; without a signal the next checkpoint is that of batch 12.
SOON = {10, 11}
WAITS = {0: ("wait", 0, "train:9")}


def training(folder: Path, **platform: Any) -> Launcher:
    """A launch that trains, and waits in batch 9 for a stop."""
    return Launcher.of_call(folder, {**PAIR, **platform}, "train", str(folder), WAITS)


def run_of(folder: Path) -> Path:
    (run_dir,) = (folder / "runs" / "night").iterdir()
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_training_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    """After SIGTERM, or when the terminal is closed, each rank ends its batch, and a checkpoint of it is there."""
    with training(tmp_path) as launcher:
        launcher.wait_for_marks("waits-0", 2)
        launcher.send(number)
        assert launcher.wait() == 128 + number, launcher.said()
        assert launcher.left() == NOTHING
    assert saved(run_of(tmp_path))[-1] in SOON
    assert record_of(run_of(tmp_path))[-1] == (0, "interrupted")


@pytest.mark.slow
def test_ctrl_c_ends_training_in_good_order(tmp_path: Path) -> None:
    """Ctrl-C, which goes to all that run at the terminal, ends training after a checkpoint, with KeyboardInterrupt."""
    with training(tmp_path) as launcher:
        launcher.wait_for_marks("waits-0", 2)
        launcher.send(signal.SIGINT, group=True)
        assert launcher.wait() in {128 + signal.SIGINT, -signal.SIGINT}, launcher.said()
        assert launcher.said().rstrip().endswith("KeyboardInterrupt")
        assert launcher.left() == NOTHING
    assert saved(run_of(tmp_path))[-1] in SOON


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """Where a rank takes its time after Ctrl-C, a second one ends it then and there."""
    with Launcher.of_call(tmp_path, {**PAIR, "grace": 1000.0}, "take_time", str(tmp_path)) as launcher:
        launcher.wait_for_marks("waits", 2)
        launcher.send(signal.SIGINT, group=True)
        launcher.wait_for_marks("heard", 2)
        launcher.send(signal.SIGINT, group=True)
        assert launcher.wait() in {128 + signal.SIGINT, -signal.SIGINT}, launcher.said()
        assert launcher.left() == NOTHING


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_cut_the_first_short(tmp_path: Path, second: signal.Signals) -> None:
    """Asked twice to end, as batch systems do, a launch still gives its ranks the time to save what they have."""
    with Launcher.of_call(tmp_path, {**PAIR, "grace": 1000.0}, "take_time", str(tmp_path)) as launcher:
        launcher.wait_for_marks("waits", 2)
        launcher.send(signal.SIGTERM)
        launcher.wait_for_marks("heard", 2)
        launcher.send(second)
        (tmp_path / "go").touch()
        assert launcher.wait() == 128 + signal.SIGTERM, launcher.said()
        assert len(launcher.wait_for_marks("saved", 2)) == 2
        assert launcher.left() == NOTHING


@pytest.mark.slow
def test_a_rank_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """A rank that does not hear SIGTERM is killed after the platform's grace."""
    with Launcher.of_call(tmp_path, {**PAIR, "grace": 2.0}, "wait_for_ever", str(tmp_path), True) as launcher:
        launcher.wait_for_marks("waits", 2)
        launcher.send(signal.SIGTERM)
        assert launcher.wait() == 128 + signal.SIGTERM, launcher.said()
        assert launcher.left() == NOTHING


@pytest.mark.slow
def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    """Of a launcher that was killed no rank is left, and the next launch removes the folder that it left."""
    with Launcher.of_call(tmp_path, PAIR, "wait_for_ever", str(tmp_path)) as launcher:
        launcher.wait_for_marks("waits", 2)
        launcher.send(signal.SIGKILL)
        assert launcher.wait() == -signal.SIGKILL
        assert any(name.startswith(str(launcher.temporary)) for name in launcher.left()["temporary files"])
    with Launcher.of_call(tmp_path, PAIR, "given") as launcher:
        assert [rank for rank, _, _ in launcher.result()] == [0, 1]
        assert launcher.left() == NOTHING


@pytest.mark.slow
def test_a_signal_is_no_reason_to_start_again(tmp_path: Path) -> None:
    """A rank that somebody ends with SIGTERM ends the training of all in good order, which is not started again."""
    with training(tmp_path, grace=20.0) as launcher:
        for pid in launcher.wait_for_marks("waits-0", 2):
            psutil.Process(pid).terminate()
        assert launcher.wait() == 128 + signal.SIGTERM, launcher.said()
    assert record_of(run_of(tmp_path)) == [(0, "interrupted")]


@pytest.mark.slow
def test_the_callers_handlers_come_back_after_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended by a signal, a launch raises SystemExit, without calling the caller's handler, which is there again."""
    monkeypatch.chdir(tmp_path)

    def mine(number: int, frame: Any) -> None:
        raise AssertionError("the launch had to handle it")

    def stop() -> None:
        until(lambda: all((tmp_path / f"waits-{rank}").exists() for rank in (0, 1)), lambda: "the ranks do not wait")
        os.kill(os.getpid(), signal.SIGTERM)

    with handled(signal.SIGTERM, mine):
        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(SystemExit) as caught:
            launch(programs.wait_for_ever, str(tmp_path), platform=Platform(**PAIR))
        stopper.join()
        assert caught.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is mine


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_line_ends_with_the_signals_status(tmp_path: Path, number: signal.Signals) -> None:
    """``trainlab launch`` that a signal ended has the status that a shell gives: 143, or 130, without a traceback."""
    (tmp_path / "program.py").write_text('import time\nprint("waits", flush=True)\nwhile True:\n    time.sleep(0.01)\n')
    command = ["-m", "trainlab", "launch", "--device", "cpu", "--processes", "2", "program.py"]
    with Launcher(command, tmp_path) as launcher:
        launcher.wait_for("waits")
        launcher.send(number, group=number == signal.SIGINT)
        assert launcher.wait() == 128 + number, launcher.said()
        assert launcher.left() == NOTHING


def test_ctrl_c_while_a_rank_is_loading_is_no_error(tmp_path: Path) -> None:
    """A rank that Ctrl-C reaches before it has begun its function ends with 130, and shows no traceback."""
    (tmp_path / "task-0").write_bytes(b"")
    os.mkfifo(tmp_path / "variables")
    command = [sys.executable, "-m", "trainlab.launch.rank", str(tmp_path)]
    environment = {**os.environ, "LOCAL_RANK": "0", "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as rank:
        writer = os.open(tmp_path / "variables", os.O_RDWR)
        until(lambda: not (tmp_path / "task-0").exists(), lambda: "it has not begun")
        # It waits for its variables: a signal that comes right before a process waits is seen only after that.
        until(lambda: psutil.Process(rank.pid).status() == psutil.STATUS_SLEEPING, lambda: "it does not wait")
        rank.send_signal(signal.SIGINT)
        assert rank.communicate(timeout=120)[1] == ""
        os.close(writer)
    assert rank.returncode == 130
