"""Mistakes, signals and ends that a user meets: each is told of at once, by its name, and nothing is lost."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainlab
from tests.training.checkpoint_runs import newest, run
from tests.training.trials import LineTrial, line, weights
from trainlab import Batch
from trainlab.errors import InvalidTypeError, InvalidValueError, RunFolderError, TrainlabError, TrialDefinitionError

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 120


def fit(open_run: Any, trial_class: type[LineTrial], batches: int = 3, **arguments: Any) -> Any:
    """Train from the beginning; return the Trial and the result."""
    context = open_run()
    trial = trial_class(context)
    return trial, trainlab.Trainer(trial, context).fit(max_length=Batch(batches), **arguments)


# -- hooks ---------------------------------------------------------------------------------------


class NumpyLength(LineTrial):
    def get_batch_length(self, batch: Any) -> Any:
        return np.int64(len(batch[0]))


def test_a_length_that_is_numpys_int_is_an_int(open_run: Any) -> None:
    """A batch length counted by NumPy trains, is saved and resumed as if it were Python's int."""
    whole = run(open_run, NumpyLength, 8, run_dir="whole")
    run(open_run, NumpyLength, 4)
    resumed = run(open_run, NumpyLength, 8)
    assert weights(resumed) == weights(whole)
    assert type(resumed.context.progress.records_trained) is int and resumed.context.progress.records_trained == 32


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("length", [2.5, 4.0, None, -4, "4"], ids=repr)
def test_a_length_that_is_no_count_is_told_of(open_run: Any, length: Any, validates: bool) -> None:
    """Whoever returns something else from get_batch_length reads its name, not an error from within trainlab."""

    class WrongLength(LineTrial):
        def get_batch_length(self, batch: Any) -> Any:
            return length

        def build_validation_data_loader(self) -> Any:
            return super().build_validation_data_loader() if validates else None

    with pytest.raises(TrainlabError, match="get_batch_length"):
        fit(open_run, WrongLength)


def hook_without_argument(self: Any) -> Any:
    raise AssertionError


def hook_with_argument(self: Any, x: Any) -> Any:
    raise AssertionError


def hook_with_two(self: Any, x: Any, y: Any) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("get_batch_length", hook_without_argument),
        ("get_batch_length", hook_with_two),
        ("build_callbacks", hook_with_argument),
        ("evaluation_reducer", hook_with_argument),
        ("build_training_data_loader", hook_with_argument),
        ("build_validation_data_loader", hook_with_argument),
        ("build_model", hook_with_argument),
        ("build_optimizer", hook_without_argument),
        ("build_optimizer", hook_with_two),
        ("build_lr_scheduler", hook_without_argument),
    ],
)
def test_a_hook_with_a_wrong_signature_is_named_before_training(open_run: Any, name: str, hook: Any) -> None:
    """A hook that cannot be called as trainlab calls it is named, with how to write it, before it is called."""
    trial_class: Any = type("Wrong", (LineTrial,), {name: hook})
    with pytest.raises(TrialDefinitionError, match=rf"Wrong\.{name} cannot be called.*Write it as {name}\(self"):
        fit(open_run, trial_class)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("state_dicts", "state_dict"),
        ("load_statedict", "load_state_dict"),
        ("training_start", "on_training_start"),
        ("validation_end", "on_validation_end"),
        ("on_train_start", "on_training_start"),
    ],
)
def test_a_misspelt_hook_of_a_callback_is_an_error(open_run: Any, name: str, meant: str) -> None:
    """A callback's method that looks like a hook and would never be called is refused, with what was meant."""
    callback_class: Any = type("Mine", (trainlab.Callback,), {name: hook_without_argument})

    class WithCallback(LineTrial):
        def build_callbacks(self) -> Any:
            return {"mine": callback_class()}

    with pytest.raises(TrialDefinitionError, match=rf"Mine\.{name} is no hook.*{meant}"):
        fit(open_run, WithCallback)


def test_a_callback_may_change_what_it_is_given(open_run: Any) -> None:
    """What on_validation_end does to its dict is seen neither by other callbacks nor in FitResult.metrics."""
    seen: list[set[str]] = []

    class Changing(trainlab.Callback):
        def on_validation_end(self, metrics: dict[str, Any]) -> None:
            seen.append(set(metrics))
            metrics.clear()
            metrics["mine"] = 1.0

    class WithCallbacks(LineTrial):
        def build_callbacks(self) -> Any:
            return {"a": Changing(), "b": Changing()}

    _, result = fit(open_run, WithCallbacks, metric="loss")
    assert seen == [{"loss"}, {"loss"}]
    assert set(result.metrics) == {"loss"} and result.metrics["loss"] == result.best_metric


# -- numbers that are none -----------------------------------------------------------------------


class NanTrial(LineTrial):
    """Its validation, or its reducer, or both give NaN from the third batch on."""

    validation_is_nan = reducer_is_nan = False

    def __init__(self, context: trainlab.TrialContext) -> None:
        super().__init__(context)
        self.reducer = context.wrap_reducer(self._reduce, "reduced")

    def _reduce(self, values: list[Any]) -> float:
        return float("nan") if self.reducer_is_nan else float(len(values))

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"value": float("nan") if self.validation_is_nan else 1.0, "fine": 1.0}


def test_nan_of_a_validation_is_warned_of(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """NaN in a validation metric is warned of with the batch and the metric's name, and is never the best."""
    trial_class: Any = type("T", (NanTrial,), {"validation_is_nan": True})
    _, result = fit(open_run, trial_class, metric="value")
    warned = [r.message for r in caplog.records if "NaN or infinity" in r.message]
    assert warned == ["NaN or infinity in the validation metrics after batch 3: ['value']."]
    assert result.best_metric is None and result.best_checkpoint is None


def test_nan_of_a_reducer_is_warned_of(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """NaN in what a reducer gives is warned of, for training with its batches and for validation."""
    trial_class: Any = type("T", (NanTrial,), {"reducer_is_nan": True})
    fit(open_run, trial_class, metric="value")
    warned = [r for r in caplog.records if "NaN or infinity" in r.message]
    assert [r.levelno for r in warned] == [logging.WARNING] * 2
    assert "batches 0 to 2" in warned[0].message and "'reduced'" in warned[0].message
    assert "validation" in warned[1].message and "'reduced'" in warned[1].message


def test_numbers_are_not_warned_of(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose metrics are numbers gives no such warning."""
    fit(open_run, NanTrial, metric="value")
    assert not [r for r in caplog.records if "NaN" in r.message]


# -- ends ----------------------------------------------------------------------------------------


class SignalledTrial(LineTrial):
    """Sends its own process a SIGTERM in its third batch, and takes back every stop."""

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        self.context.set_stop_requested(False)
        return super().train_batch(batch, epoch_idx, batch_idx)


def test_a_signal_is_not_taken_back(open_run: Any) -> None:
    """A Trial that resets the stop in each batch still ends at a SIGTERM, with a checkpoint; the next fit goes on."""
    context = open_run()
    trial = SignalledTrial(context)
    trainer = trainlab.Trainer(trial, context)
    with pytest.raises(SystemExit) as ended:
        trainer.fit(max_length=Batch(8))
    assert ended.value.code == 128 + signal.SIGTERM
    assert [batch for _, batch in trial.seen] == [0, 1, 2]
    assert context.latest_checkpoint is not None and context.latest_checkpoint.name == "batch-0000003"
    result = trainer.fit(max_length=Batch(6), latest_checkpoint=context.latest_checkpoint)
    assert result.progress.batches_trained == 6


def test_a_stop_that_is_no_signals_can_be_taken_back(open_run: Any) -> None:
    """set_stop_requested(False) undoes a stop that the Trial asked for itself."""

    class Undecided(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            self.context.set_stop_requested(True)
            self.context.set_stop_requested(False)
            return super().train_batch(batch, epoch_idx, batch_idx)

    _, result = fit(open_run, Undecided, 5)
    assert result.stop_reason == "max_length" and result.progress.batches_trained == 5


def test_an_error_is_not_replaced_when_closing_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Where the run's record cannot be written at the end, the user still sees what ended the run; so does the log."""

    class Breaking(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            Path("here/run.json").rename("kept.json")
            Path("here/run.json").mkdir()
            raise KeyError("mine")

    with (
        pytest.raises(KeyError, match="mine"),
        trainlab.init(run_dir="here", device="cpu", progress=False) as context,
    ):
        trainlab.Trainer(Breaking(context), context).fit(max_length=Batch(3))
    assert any("could not be closed" in r.message for r in caplog.records if r.levelno == logging.ERROR)
    Path("here/run.json").rmdir()
    Path("kept.json").rename("here/run.json")
    trainlab.init(run_dir="here", device="cpu", progress=False).close()  # nobody holds the folder


def test_closing_that_fails_is_told_of_where_nothing_else_failed() -> None:
    """A run that went well, but whose record cannot be written, does not end as if it were recorded."""
    context = trainlab.init(run_dir="here", device="cpu", progress=False)
    Path("here/run.json").unlink()
    Path("here/run.json").mkdir()
    with pytest.raises(RunFolderError, match="run.json"):
        context.close()


# -- init ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"hparams": [1]},
        {"exp_conf": 3},
        {"aggregation_frequency": 0},
        {"aggregation_frequency": 1.5},
        {"seed": -1},
        {"precision": "fp8"},
        {"device": "abacus"},
        {"uneven": "some"},
        {"progress": 1},
        {"enable_tensorboard_logging": None},
        {"distributed": 2},
    ],
    ids=str,
)
def test_an_init_that_fails_leaves_nothing(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """An argument that cannot be used is an error, and no folder, lock or log is left of the attempt."""
    with pytest.raises((InvalidTypeError, InvalidValueError)):
        trainlab.init(**{"run_dir": "here", "device": "cpu", "progress": False, **arguments})
    assert list(tmp_path.iterdir()) == []
    trainlab.init(run_dir="here", device="cpu", progress=False).close()


def test_a_bad_seed_in_the_environment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TRAINLAB_SEED that is no number is an error that names it, and no folder is left."""
    monkeypatch.setenv("TRAINLAB_SEED", "many")
    with pytest.raises(InvalidValueError, match="TRAINLAB_SEED.*'many'"):
        trainlab.init(run_dir="here", device="cpu", progress=False)
    assert list(tmp_path.iterdir()) == []


def ended(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """A process after its end, well or not, with what it wrote."""
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=DEADLINE, check=False)


def environment(**more: str) -> dict[str, str]:
    """The environment of a process: this one's, without what steers runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def test_a_plain_init_ends_by_itself(open_run: Any) -> None:
    """A program without a `with` block ends with its run finished and its folder free, begun with TRAINLAB_SEED."""
    program = "import trainlab; c = trainlab.init(run_dir='here', device='cpu', progress=False); c.get_trial_seed()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(TRAINLAB_SEED="5"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(Path("here/run.json").read_text())
    assert record["status"] == "finished" and record["seed"] == 5
    assert open_run(run_dir="here").get_trial_seed() == 5


def test_a_continued_run_keeps_its_seed(open_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without seed=, a run goes on with the seed that it was begun with, also if TRAINLAB_SEED is another."""
    open_run(run_dir="here", seed=7).close()
    again = open_run(run_dir="here")
    assert again.get_trial_seed() == 7
    again.close()
    monkeypatch.setenv("TRAINLAB_SEED", "5")
    once_more = open_run(run_dir="here")
    assert once_more.get_trial_seed() == 7
    once_more.close()
    assert open_run(run_dir="here", seed=9).get_trial_seed() == 9
    assert open_run(run_dir="new").get_trial_seed() == 5


# -- the line that tells how to go on ------------------------------------------------------------

PROGRAM = """
import os, signal, sys
import trainlab
from tests.training.trials import LineTrial

class Stopped(LineTrial):
    def train_batch(self, batch, epoch_idx, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train_batch(batch, epoch_idx, batch_idx)

with trainlab.init(device="cpu", progress=sys.argv[1] == "shown", hparams={"text": sys.argv[2]}) as context:
    trial = Stopped(context)
    try:
        trainlab.Trainer(trial, context).fit(
            max_length=trainlab.Batch(6), latest_checkpoint=context.latest_checkpoint
        )
    finally:
        print("trained", *(batch for _, batch in trial.seen))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "shown"),
    [
        pytest.param(["my run.py"], "shown", id="file-shown"),
        pytest.param(["my run.py"], "hidden", id="file-hidden"),
        pytest.param(["-m", "package.module"], "shown", id="module-shown"),
        pytest.param(["-m", "package.module"], "hidden", id="module-hidden"),
    ],
)
def test_the_line_that_is_told_resumes(tmp_path: Path, program: list[str], shown: str) -> None:
    """The line that a stopped run ends with, pasted into a shell, goes on with it, also where nothing else is shown."""
    (tmp_path / "my run.py").write_text(PROGRAM)
    (tmp_path / "package").mkdir()
    (tmp_path / "package/module.py").write_text(PROGRAM)
    command = [sys.executable, *program, shown, "it's $HOME"]
    stopped = ended(command)
    assert (stopped.returncode, stopped.stdout) == (128 + signal.SIGTERM, "trained 0 1 2\n"), stopped.stderr
    told = re.findall(r"^(?:.*To go on from it: )(.*)$", stopped.stderr, re.MULTILINE)
    assert len(told) == 1
    resumed = ended(["bash", "-c", told[0]])
    assert (resumed.returncode, resumed.stdout) == (0, "trained 3 4 5\n"), resumed.stderr
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1
    assert ("To go on from it" in resumed.stderr) == (shown == "shown")


# -- single calls --------------------------------------------------------------------------------


class WritingTrial(LineTrial):
    """Takes the writer in its __init__, and writes with it at once."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        self.writer = context.get_tensorboard_writer()
        self.writer.add_scalar("mine", 1.0, 0)
        super().__init__(context)


def test_a_trial_that_takes_the_writer_can_be_loaded(open_run: Any, tmp_path: Path) -> None:
    """A Trial that writes to TensorBoard while it is built loads from a checkpoint, and then writes nothing."""
    trained = run(open_run, WritingTrial)
    before = sorted(tmp_path.rglob("*"))
    loaded: Any = trainlab.load_trial_from_checkpoint_path(newest(), WritingTrial)
    loaded.writer.add_scalar("mine", 2.0, 1)
    loaded.writer.flush()
    assert weights(loaded) == weights(trained) and sorted(tmp_path.rglob("*")) == before


def test_supervised_trial_refuses_a_scheduler_that_it_cannot_step(open_run: Any) -> None:
    """A ReduceLROnPlateau given to SupervisedTrial is refused, instead of never being stepped."""
    with pytest.raises(InvalidValueError, match="ReduceLROnPlateau"):
        trainlab.SupervisedTrial(
            open_run(),
            model=nn.Linear(1, 1),
            training_set=line(),
            loss=nn.functional.mse_loss,
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
            lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau,
            batch_size=4,
        )


def test_configure_profiler_is_there(open_run: Any) -> None:
    """A script that calls configure_profiler with the seed project's arguments runs and trains."""
    context = open_run()
    trainer = trainlab.Trainer(LineTrial(context), context)
    trainer.configure_profiler(sync_timings=True, enabled=True, begin_on_batch=1, end_after_batch=3)
    trainer.configure_profiler(True, True, 0, None)
    assert trainer.fit(max_length=Batch(2)).progress.batches_trained == 2


def test_import_takes_under_fifty_milliseconds() -> None:
    """`import trainlab` takes under 50 ms in a fresh process: the best of ten, as other programs may be busy."""
    program = (
        "import time; began = time.perf_counter(); import trainlab; print(time.perf_counter() - began); "
        "assert trainlab.__file__"
    )
    seconds = (
        float(
            subprocess.run(
                [sys.executable, "-c", program],
                env=environment(),
                check=True,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
            ).stdout
        )
        for _ in range(10)
    )
    assert any(one < 0.05 for one in seconds)
