"""Signals that announce the end of a SLURM job while no fit trains; tests/slurm has the same in real jobs."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.training import jobs
from trainlab import Batch
from trainlab.training.signals import EarlySignals

ANNOUNCING = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _in_a_batch_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a batch job that is not to be requeued."""
    for name, value in (("SLURM_JOB_ID", "1"), ("ENVIRONMENT", "BATCH"), ("TRAINLAB_REQUEUE", "0")):
        monkeypatch.setenv(name, value)
    before = {number: signal.getsignal(number) for number in ANNOUNCING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    EarlySignals.take()


def _signal_itself(told: Connection) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    told.send("alive")
    signal.pause()


@pytest.mark.parametrize("number", ANNOUNCING)
def test_a_signal_before_fit_ends_it_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    """A signal that comes while models are built ends the next fit after its first batch, with a checkpoint."""
    with pytest.raises(SystemExit) as ended, trainlab.init(run_dir=tmp_path, progress=False) as context:
        os.kill(os.getpid(), number)
        trainlab.Trainer(jobs.Noted(context, {}), context).fit(max_length=Batch(5))
    assert ended.value.code == 128 + number
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["batch-0000001"]


def test_a_signal_between_two_fits_ends_the_second(tmp_path: Path) -> None:
    """What comes between two fits ends the second, which would be killed otherwise."""
    with pytest.raises(SystemExit), trainlab.init(run_dir=tmp_path, progress=False) as context:
        trainer = trainlab.Trainer(jobs.Noted(context, {}), context)
        trainer.fit(max_length=Batch(3))
        os.kill(os.getpid(), signal.SIGUSR1)
        trainer.fit(max_length=Batch(9))
    assert context.progress.batches_trained == 4


def test_a_signal_at_the_very_end_of_a_fit_ends_the_next(tmp_path: Path) -> None:
    """What comes after the last batch, for which a fit has no use any more, ends the fit after it."""

    class Late(trainlab.Callback):
        def on_trial_shutdown(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(SystemExit), trainlab.init(run_dir=tmp_path, progress=False) as context:
        trial = jobs.Noted(context, {})
        trial.build_callbacks = lambda: {"late": Late()}  # type: ignore[method-assign]
        trainer = trainlab.Trainer(trial, context)
        trainer.fit(max_length=Batch(3))
        trial.build_callbacks = lambda: {}  # type: ignore[method-assign]
        trainer.fit(max_length=Batch(9))
    assert context.progress.batches_trained == 4


def test_a_signal_after_the_last_fit_changes_nothing(tmp_path: Path) -> None:
    """A run that was trained to its end finishes, and afterwards the signals do what they did before."""
    with trainlab.init(run_dir=tmp_path, progress=False) as context:
        trainlab.Trainer(jobs.Noted(context, {}), context).fit(max_length=Batch(3))
        for number in ANNOUNCING:
            os.kill(os.getpid(), number)
    assert '"status": "finished"' in (tmp_path / "run.json").read_text()
    assert [signal.getsignal(number) for number in ANNOUNCING] == [signal.SIG_DFL] * 3


def test_handlers_of_the_users_are_left_alone(tmp_path: Path) -> None:
    """A handler that was there before init, or was set after it, is called as ever, also once the run is closed."""
    heard: list[int] = []

    def mine(number: int, frame: Any) -> None:
        heard.append(number)

    signal.signal(signal.SIGUSR1, mine)
    with trainlab.init(run_dir=tmp_path, progress=False):
        signal.signal(signal.SIGUSR2, mine)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
    assert heard == [signal.SIGUSR1, signal.SIGUSR2]
    assert [signal.getsignal(number) for number in ANNOUNCING] == [mine, mine, signal.SIG_DFL]


def test_forked_children_can_be_ended(tmp_path: Path) -> None:
    """A process forked while a run is open ends at SIGTERM, and not at what else SLURM sends to all processes."""
    processes = multiprocessing.get_context("fork")
    here, there = processes.Pipe()
    with trainlab.init(run_dir=tmp_path, progress=False):
        child = processes.Process(target=_signal_itself, args=(there,))
        child.start()
        assert here.poll(120) and here.recv() == "alive"
        child.terminate()
        child.join(120)
    assert child.exitcode == -signal.SIGTERM


def test_outside_of_a_job_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SLURM requeues nothing, no handler is set but by fit."""
    monkeypatch.delenv("ENVIRONMENT")
    with trainlab.init(run_dir=tmp_path, progress=False):
        assert [signal.getsignal(number) for number in ANNOUNCING] == [signal.SIG_DFL] * 3
