"""Ctrl-C and SIGTERM: a run and all that it has started come to an end, and its record says how."""

import json
import os
import pty
import signal
from pathlib import Path

import pytest

from tests.experiments.programs import Program, program, record_of, run_of
from tests.experiments.test_children import HEAD, TAIL

HELPS = f"""{HEAD}
@trainlab.experiment
def train(params):
    number = local_rank()
    if number == 0:
        trainlab.launch_subprocess()
    if number and "stubborn" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        tell(f"ready-{{number}}", os.getpid())
        while True:
            time.sleep(0.01)
    finally:
        tell(f"ended-{{number}}", True)
{TAIL}"""

NESTS = f"""{HEAD}
@trainlab.experiment
def inner(params):
    try:
        tell("ready-1", os.getpid())
        while True:
            time.sleep(0.01)
    finally:
        tell("ended-1", True)

@trainlab.experiment
def train(params):
    try:
        tell("ready-0", os.getpid())
        trainlab.run_experiment(inner)
    finally:
        tell("ended-0", True)
{TAIL}"""


def ready(started: Program) -> Program:
    """It, once its run and what that has started are in the middle of their work."""
    started.wait_for("ready-0")
    started.wait_for("ready-1")
    return started


@pytest.mark.parametrize("script", [HELPS, NESTS], ids=["launch_subprocess", "run_experiment"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_and_what_it_has_started(tmp_path: Path, script: str, number: signal.Signals) -> None:
    """After Ctrl-C the exit status is 130, after SIGTERM 143; the record says interrupted, and no process is left."""
    with program(tmp_path, script) as started:
        ready(started).send(number)
        assert started.wait() == 128 + number, started.said()
        assert not started.left()
    assert (tmp_path / "ended-0").exists()
    assert (tmp_path / "ended-1").exists()
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("run.json")]
    assert [record["status"] for record in records] == ["interrupted"] * (2 if script is NESTS else 1)
    assert "Traceback" not in started.said()


def test_ctrl_c_at_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C typed at a terminal ends a run and its helper in good order: each cleans up once, and none is left."""
    ours, theirs = pty.openpty()
    try:
        with program(tmp_path, HELPS, terminal=theirs) as started:
            ready(started)
            os.write(ours, b"\x03")
            assert started.wait() == 130
            assert not started.left()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (tmp_path / "ended-0").exists()
    assert (tmp_path / "ended-1").exists()
    assert record_of(tmp_path)["status"] == "interrupted"


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    """A second Ctrl-C does not wait for a helper that takes its time; the record still says interrupted."""
    with program(tmp_path, HELPS, stubborn="1") as started:
        ready(started).send(signal.SIGINT)
        started.wait_for("ended-0")
        started.send(signal.SIGINT)
        assert started.wait() == 130, started.said()
        assert not started.left()
    assert not (tmp_path / "ended-1").exists()  # it was killed
    assert record_of(tmp_path)["status"] == "interrupted"


@pytest.mark.slow
def test_a_second_sigterm_does_not_cut_the_end_short(tmp_path: Path) -> None:
    """Batch systems send SIGTERM more than once: what the main function does at its end is still done."""
    cleans = """tell(f"ends-{number}", True)
        while not Path("sent").exists():
            time.sleep(0.01)
        tell(f"ended-{number}", True)"""
    slow = HELPS.replace('tell(f"ended-{number}", True)', cleans)
    with program(tmp_path, slow) as started:
        ready(started).send(signal.SIGTERM)
        started.wait_for("ends-0")
        started.send(signal.SIGTERM)
        (tmp_path / "sent").touch()
        assert started.wait() == 143, started.said()
        assert not started.left()
    assert (tmp_path / "ended-0").exists()
    assert record_of(tmp_path)["status"] == "interrupted"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """Under nohup a run goes on when its terminal is closed."""
    script = f"""{HEAD}
signal.signal(signal.SIGHUP, signal.SIG_IGN)

@trainlab.experiment
def train(params):
    os.kill(os.getpid(), signal.SIGHUP)
    tell("told", signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)

if __name__ == "__main__":
    train.run()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""
    with program(tmp_path, script) as started:
        assert started.wait() == 0, started.said()
        assert json.loads(started.wait_for("told"))
    assert record_of(tmp_path)["status"] == "finished"


FITS = f"""{HEAD}
import torch
from torch import nn
from torch.utils.data import TensorDataset
from trainlab import Batch

DATA = TensorDataset(torch.ones(64, 2), torch.ones(64, 1))

class Waits(trainlab.SupervisedTrial):
    def train_batch(self, batch, epoch_idx, batch_idx):
        if batch_idx == 3:
            tell(f"ready-{{local_rank()}}", os.getpid())
            while not self.context.signalled:
                time.sleep(0.01)
        return super().train_batch(batch, epoch_idx, batch_idx)

@trainlab.experiment
def train(params):
    if not trainlab.is_subprocess():
        trainlab.launch_subprocess()
    with trainlab.init(progress=False) as ctx:
        trial = Waits(ctx, model=nn.Linear(2, 1), training_set=DATA, loss=nn.functional.mse_loss,
                      optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), batch_size=8)
        trainlab.Trainer(trial, ctx).fit(max_length=Batch(1000))
{TAIL}"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fit_makes_its_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    """With a Trainer in the run, and in its helper, each finishes its batch and makes a checkpoint before it ends."""
    with program(tmp_path, FITS) as started:
        ready(started).send(number)
        assert started.wait() == 128 + number, started.said()
        assert not started.left()
    record = record_of(tmp_path)
    assert record["status"] == "interrupted"
    run = run_of(tmp_path)
    helpers = [path.parent for path in (run / "runs").rglob("checkpoints")]
    assert len(helpers) == 1
    for folder in (run, *helpers):
        assert [path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()] == ["batch-0000004"]
