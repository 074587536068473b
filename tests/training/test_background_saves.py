"""Checkpoints written while training goes on, those that fail, and those that are kept."""

import contextlib
import enum
import json
import logging
import multiprocessing
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainlab
from tests.training.trials import LineTrial, weights
from trainlab import Batch
from trainlab.checkpoint import Checkpoint, Retention, register_class
from trainlab.errors import CheckpointError, InvalidTypeError, InvalidValueError, RunFolderError, TrainlabError
from trainlab.storage import faults


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what is called at the named instants of a write."""
    return lambda function: monkeypatch.setattr(faults, "hook", function)


def names(folder: str | Path = "here/checkpoints") -> list[str]:
    """The checkpoints in a folder."""
    return sorted(entry.name for entry in Path(folder).iterdir() if entry.is_dir())


class Noting(LineTrial):
    """Keeps the weights after each batch, and does something before some."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        self.after: dict[int, dict[str, bytes]] = {}
        self.before: dict[int, Any] = {}
        super().__init__(context)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        self.before.get(batch_idx, lambda: None)()
        metrics = super().train_batch(batch, epoch_idx, batch_idx)
        self.after[batch_idx + 1] = weights(self)
        return metrics


def written(trainer: trainlab.Trainer) -> None:
    """Wait until nothing is being written any more."""
    write = trainer._checkpointing._writer._in_flight
    if write is not None:
        write.wait()


def fill(trainer: trainlab.Trainer, file: Path) -> None:
    """Leave no room on a file's disk, once nothing is being written."""
    written(trainer)
    with file.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while True:
            opened.write(b"x" * 4096)


def in_checkpoint(path: Path) -> dict[str, bytes]:
    """The bytes of every entry of the model in a checkpoint."""
    with Checkpoint.open(path) as checkpoint:
        return {key: value.numpy().tobytes() for key, value in checkpoint.weights()["0"].items()}


@pytest.mark.parametrize("mode", ["async", "fork"])
def test_training_goes_on_while_a_checkpoint_is_written(open_run: Any, hook: Any, mode: str) -> None:
    """A checkpoint holds the weights of its batch, though ten more were trained before its first byte was written."""
    arrived, go_on, seen = threading.Event(), threading.Event(), []

    def block(point: str) -> None:
        if point == ("data durable" if mode == "fork" else "file begun") and not go_on.is_set():
            seen.append(threading.current_thread().name)
            arrived.set()
            assert go_on.wait(60)

    hook(block)
    context = open_run(run_dir="here")
    trial = Noting(context)
    trial.before[20] = lambda: (arrived.wait(60), go_on.set())
    fit = trainlab.Trainer(trial, context).fit
    fit(max_length=Batch(25), checkpoint_period=Batch([10]), checkpoint_mode=mode)
    assert seen == ["trainlab-checkpoint"]
    assert names() == ["batch-0000010", "batch-0000025"]
    assert in_checkpoint(Path("here/checkpoints/batch-0000010")) == trial.after[10] != trial.after[20]


@pytest.mark.parametrize("mode", ["async", "fork", "sync"])
def test_every_mode_saves_the_same(open_run: Any, mode: str) -> None:
    """Whatever the mode, the checkpoints hold the same weights and the same state, to the bit."""
    paths = []
    for name, chosen in (("first", "sync"), ("second", mode)):
        context = open_run(run_dir=name)
        fit = trainlab.Trainer(LineTrial(context), context).fit
        fit(max_length=Batch(9), checkpoint_period=Batch(4), checkpoint_mode=chosen)
        context.close()
        paths.append(Path(name, "checkpoints", "batch-0000008"))
    for file in ("model.safetensors", "state.safetensors"):
        assert len({(path / file).read_bytes() for path in paths}) == 1


def test_fit_returns_when_the_last_one_is_durable(open_run: Any, hook: Any) -> None:
    """When fit returns nothing is being written, and every checkpoint that was begun is whole."""
    passed: list[str] = []
    hook(passed.append)
    context = open_run(run_dir="here")
    trial = LineTrial(context)
    fit = trainlab.Trainer(trial, context).fit
    result = fit(max_length=Batch(12), checkpoint_period=Batch(2), retention=Retention(keep_last=None))
    passed_by_then = list(passed)
    for thread in threading.enumerate():
        if thread.name.startswith("trainlab-"):  # it may still be on its way out, and has nothing more to write
            thread.join()
    assert passed == passed_by_then
    assert passed.count("folder made") == passed.count("retention done") == 6 == len(names())
    for name in names():
        Checkpoint.open(Path("here/checkpoints", name)).close()
    assert result.last_checkpoint == context.latest_checkpoint == context.run_dir / "checkpoints" / "batch-0000012"


def test_an_error_in_training_waits_for_the_checkpoint(open_run: Any, hook: Any) -> None:
    """A fit that ends with the user's error has finished what it was writing, and the next one goes on from there."""
    raising = threading.Event()
    hook(lambda point: raising.wait(60) if point == "file begun" else None)
    context = open_run(run_dir="here")
    trial = Noting(context)

    def fail() -> None:
        raising.set()
        raise ZeroDivisionError

    trial.before[6] = fail
    with pytest.raises(ZeroDivisionError):
        trainlab.Trainer(trial, context).fit(max_length=Batch(9), checkpoint_period=Batch(5))
    assert context.latest_checkpoint == context.run_dir / "checkpoints" / "batch-0000005"
    assert in_checkpoint(context.latest_checkpoint) == trial.after[5]


class Uploads(trainlab.Callback):
    def __init__(self, trial: LineTrial) -> None:
        self.trial = trial
        self.told: list[tuple[str, int]] = []

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert Path(uuid, "manifest.json").is_file()
        self.told.append((Path(uuid).name, len(self.trial.seen)))


def test_the_hook_after_a_checkpoint_comes_at_a_boundary(open_run: Any, hook: Any) -> None:
    """on_checkpoint_upload_end runs on the training thread at the first boundary after the checkpoint is durable."""
    go_on = threading.Event()
    hook(lambda point: go_on.wait(60) if point == "file begun" else None)
    context = open_run(run_dir="here")
    trial = Noting(context)
    uploads = Uploads(trial)
    trial.callbacks = {"uploads": uploads}
    trainer = trainlab.Trainer(trial, context)
    trial.before[9] = lambda: (go_on.set(), written(trainer))
    trainer.fit(max_length=Batch(14), checkpoint_period=Batch([4]), reporting_period=Batch(6))
    assert uploads.told == [("batch-0000004", 12), ("batch-0000014", 14)]


# -- what cannot be saved ------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


@register_class
class Shape(enum.Enum):
    ROUND = 1


@dataclass
class Level:
    number: int
    of: Shape


class Keeping(trainlab.Callback):
    """Has a state that it makes when it is asked; of its class nothing is known but by an attribute."""

    def __init__(self, make: Any, known: Any = None) -> None:
        self.make, self.known, self.loaded = make, known, None

    def state_dict(self) -> dict[str, Any]:
        return {"state": {"history": [0, 1, 2, self.make()]}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict["state"]["history"][3]


@pytest.mark.parametrize(
    ("make", "steps", "told"),
    [
        (object, 1, ["callbacks/ema/state/history[3]", "builtins.object", "Allowed"]),
        (lambda: lambda: 0, 4, ["callbacks/ema/state/history[3]", "function"]),
        (lambda: Colour.RED, 1, ["callbacks/ema/state/history[3]", "Colour", "register_class"]),
    ],
    ids=["object", "function, accumulating", "unregistered enum"],
)
def test_what_cannot_be_saved_is_told_after_the_first_step(
    open_run: Any, make: Any, steps: int, told: list[str]
) -> None:
    """A state that no checkpoint can hold ends the run right after the first optimizer step, with the path to it."""
    context = open_run(run_dir="here", aggregation_frequency=steps)
    trial = LineTrial(context)
    trial.callbacks = {"ema": Keeping(make)}
    with pytest.raises(CheckpointError) as caught:
        trainlab.Trainer(trial, context).fit(max_length=Batch(50))
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert len(trial.seen) == steps
    assert not Path("here/checkpoints").exists()


@pytest.mark.parametrize("state", [Shape.ROUND, Level(3, Shape.ROUND)], ids=["registered", "of the live object"])
def test_values_of_known_classes_come_back(open_run: Any, state: Any) -> None:
    """Enums and dataclasses come back as what they were, if registered or an attribute of the object restored."""
    for batches in (3, 6):
        context = open_run(run_dir="here")
        trial = LineTrial(context)
        keeping = Keeping(lambda: state, known=Level(0, Shape.ROUND))
        trial.callbacks = {"ema": keeping}
        fit = trainlab.Trainer(trial, context).fit
        fit(max_length=Batch(batches), latest_checkpoint=context.latest_checkpoint)
        context.close()
    assert keeping.loaded == state and type(keeping.loaded) is type(state)


def test_trying_leaves_no_trace(open_run: Any) -> None:
    """The state is asked for once more after the first step, and nothing that the run computes changes by that."""

    class Drawing(Keeping):
        def state_dict(self) -> dict[str, Any]:
            self.known = torch.rand(3)
            return {"state": {"history": [0, 1, 2, None]}}

    ends = []
    for drawing in (False, True):
        context = open_run()
        trial = LineTrial(context)
        trial.callbacks = {"c": Drawing(None)} if drawing else {}
        trainlab.Trainer(trial, context).fit(max_length=Batch(20))
        ends.append(weights(trial))
    assert ends[0] == ends[1]


# -- when it fails -------------------------------------------------------------------------------


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("mode", ["async", "fork", "sync"])
def test_a_full_disk_does_not_end_training(
    open_run: Any, small_disk: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """A periodic checkpoint that finds the disk full is a loud error; the last good one stays, the next is tried."""
    context = open_run(run_dir="here", checkpoint_storage=small_disk / "checkpoints")
    trial = Noting(context)
    filler, trainer = small_disk / "filler", trainlab.Trainer(trial, context)
    trial.before[5] = lambda: fill(trainer, filler)
    left: list[list[str]] = []
    trial.before[15] = lambda: (written(trainer), left.append(names(small_disk / "checkpoints")), filler.unlink())
    trainer.fit(max_length=Batch(24), checkpoint_period=Batch(4), checkpoint_mode=mode)
    told = errors(caplog)
    assert len(told) == 2 and all("No space left" in line and "batch-0000004" in line for line in told), told
    assert "batch 8" in told[0] and "batch 12" in told[1]
    assert left == [["batch-0000004"]]
    assert names(small_disk / "checkpoints") == ["batch-0000020", "batch-0000024"]
    assert in_checkpoint(small_disk / "checkpoints" / "batch-0000020") == trial.after[20]


def test_a_last_checkpoint_that_fails_is_an_error(open_run: Any, small_disk: Path) -> None:
    """If the last checkpoint cannot be written, fit raises; the one before is kept, and a later fit can go on."""
    context = open_run(run_dir="here", checkpoint_storage=small_disk / "checkpoints")
    trial = Noting(context)
    filler, trainer = small_disk / "filler", trainlab.Trainer(trial, context)
    trial.before[5] = lambda: fill(trainer, filler)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit(max_length=Batch(6), checkpoint_period=Batch(4))
    assert names(small_disk / "checkpoints") == ["batch-0000004"]
    filler.unlink()
    trial.before.clear()
    result = trainer.fit(max_length=Batch(6), latest_checkpoint=context.latest_checkpoint)
    assert result.last_checkpoint is not None and Path(result.last_checkpoint).name == "batch-0000006"
    assert [batch for _, batch in trial.seen] == [0, 1, 2, 3, 4, 5, 4, 5]


def test_a_disk_that_turns_read_only_does_not_end_training(
    open_run: Any, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same holds for a file system that turns read-only meanwhile, and is writable again later."""
    context = open_run(run_dir="here")
    trial = Noting(context)
    trainer = trainlab.Trainer(trial, context)
    Path("here/checkpoints").mkdir()
    subprocess.run(["mount", "--bind", small_disk, "here/checkpoints"], check=True)

    def remount(how: str) -> None:
        written(trainer)
        subprocess.run(["mount", "-o", f"remount,bind,{how}", "here/checkpoints"], check=True)

    trial.before[5] = lambda: remount("ro")
    trial.before[10] = lambda: remount("rw")
    try:
        trainer.fit(max_length=Batch(12), checkpoint_period=Batch(4))
    finally:
        subprocess.run(["umount", "-l", "here/checkpoints"], check=True)
    assert len(errors(caplog)) == 1 and "Read-only file system" in errors(caplog)[0]
    assert names(small_disk) == ["batch-0000004", "batch-0000012"]


def test_a_folder_that_is_removed_is_made_again(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever removes the folder of the checkpoints under a running training loses those in it, and none to come."""
    context = open_run(run_dir="here")
    trial = Noting(context)
    trial.before[9] = lambda: (written(trainer), shutil.rmtree("here/checkpoints"))
    trainer = trainlab.Trainer(trial, context)
    result = trainer.fit(max_length=Batch(14), checkpoint_period=Batch(4))
    assert names() == ["batch-0000012", "batch-0000014"]
    assert result.last_checkpoint is not None and result.last_checkpoint.name == "batch-0000014"


# -- what is kept --------------------------------------------------------------------------------


class Scored(LineTrial):
    """Its validations score what it is told."""

    scores: tuple[float, ...] = ()

    def evaluate_full_dataset(self, data_loader: Any) -> dict[str, Any]:
        return {"score": self.scores[min(len(self.seen), len(self.scores) - 1)]}

    evaluate_batch = trainlab.Trial.evaluate_batch


def scored(open_run: Any, batches: int, **arguments: Any) -> trainlab.FitResult:
    """Train the run on, with a validation and a checkpoint after each batch."""

    class Further(Scored):
        scores = (9, 5, 3, 8, 4, 7, 6, 2, 9)

        def __init__(self, context: trainlab.TrialContext) -> None:
            super().__init__(context)
            self.seen += [(0, -1)] * (
                context.latest_checkpoint is not None and int(context.latest_checkpoint.name[-7:])
            )

    context = open_run(run_dir="here")
    result = trainlab.Trainer(Further(context), context).fit(
        max_length=Batch(batches),
        validation_period=Batch(1),
        checkpoint_policy="all",
        metric="score",
        latest_checkpoint=context.latest_checkpoint,
        **arguments,
    )
    context.close()
    return result


def test_the_last_two_and_the_best_are_kept(open_run: Any) -> None:
    """By default the last two checkpoints and the best one are left, the best also after a resume."""
    result = scored(open_run, 5)
    assert names() == ["batch-0000002", "batch-0000004", "batch-0000005"]
    assert result.best_checkpoint == Path("here/checkpoints/batch-0000002").resolve()
    result = scored(open_run, 6)
    assert names() == ["batch-0000002", "batch-0000005", "batch-0000006"]
    assert result.best_metric == 3 and result.best_checkpoint == Path("here/checkpoints/batch-0000002").resolve()
    result = scored(open_run, 8)
    assert names() == ["batch-0000007", "batch-0000008"]
    assert result.best_metric == 2 and result.best_checkpoint == Path("here/checkpoints/batch-0000007").resolve()


def test_retention_is_told_to_fit(open_run: Any) -> None:
    """keep_last, keep_best and keep_every each keep what they say."""
    scored(open_run, 8, retention=Retention(keep_last=1, keep_best=2, keep_every=Batch(3)))
    assert [int(name[-1]) for name in names()] == [2, 3, 6, 7, 8]


def test_a_checkpoint_that_is_read_is_kept(open_run: Any) -> None:
    """An evaluation that has a checkpoint open finds it whole, though training would have removed it long since."""
    scored(open_run, 1)
    with Checkpoint.open(Path("here/checkpoints/batch-0000001")) as checkpoint:
        scored(open_run, 6)
        assert "batch-0000001" in names()
        assert checkpoint.state()["progress"]["batches_trained"] == 1
    scored(open_run, 7)
    assert "batch-0000001" not in names()


def test_arguments_are_checked_before_training(open_run: Any) -> None:
    """A retention or a mode that cannot be used is refused with what is allowed."""
    context = open_run()
    fit = trainlab.Trainer(LineTrial(context), context).fit
    with pytest.raises(InvalidTypeError, match="retention must be a trainlab.Retention"):
        fit(max_length=Batch(1), retention=3)
    with pytest.raises(InvalidValueError, match="'async', 'sync', 'fork'.*'later'"):
        fit(max_length=Batch(1), checkpoint_mode="later")
    with pytest.raises(InvalidValueError, match="keep_last must be at least 1"):
        Retention(keep_last=0)
    with pytest.raises(InvalidValueError, match="storage_options are for URLs"):
        trainlab.init(storage_options={"key": "x"})
    assert json.loads((context.run_dir / "run.json").read_text())["status"] == "running"


def test_a_disk_that_is_full_for_all_of_the_run(
    open_run: Any, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the whole run on the full disk training goes on: what is lost until there is room is told."""
    context = open_run(run_dir=small_disk / "run")
    trial = Noting(context)
    filler, trainer = small_disk / "filler", trainlab.Trainer(trial, context)
    trial.before[5] = lambda: fill(trainer, filler)
    trial.before[31] = filler.unlink
    trainer.fit(max_length=Batch(40), checkpoint_period=Batch(4), reporting_period=Batch(1))
    told = errors(caplog)
    assert any("cannot be written by JsonlBackend" in line for line in told)
    assert any("checkpoint at batch 12 was lost" in line for line in told)
    assert names(small_disk / "run" / "checkpoints") == ["batch-0000036", "batch-0000040"]
    context.close()
    resumed = open_run(run_dir=small_disk / "run")
    assert resumed.latest_checkpoint is not None and resumed.latest_checkpoint.name == "batch-0000040"
    resumed.close()


def test_a_run_that_ends_on_a_full_disk_lets_its_folder_go(open_run: Any, small_disk: Path) -> None:
    """If the last checkpoint finds the run's disk full, fit says so, and the run can be opened again."""
    context = open_run(run_dir=small_disk / "run")
    trial = Noting(context)
    filler, trainer = small_disk / "filler", trainlab.Trainer(trial, context)
    trial.before[5] = lambda: fill(trainer, filler)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit(max_length=Batch(8), checkpoint_period=Batch(4), reporting_period=Batch(1))
    with contextlib.suppress(OSError, TrainlabError):
        context.close()
    filler.unlink()
    context = open_run(run_dir=small_disk / "run")
    fit = trainlab.Trainer(Noting(context), context).fit
    fit(max_length=Batch(8), latest_checkpoint=context.latest_checkpoint)
    assert names(small_disk / "run" / "checkpoints") == ["batch-0000004", "batch-0000008"]
    context.close()


@pytest.mark.skipif(sys.platform != "linux", reason="checkpoints are forked on Linux only")
def test_memory_that_is_shared_is_not_left_to_a_fork(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A state in memory that other processes share, by whatever means, is copied: a fork would see it change."""
    shared = np.frombuffer(multiprocessing.RawArray("d", 1000))
    context = open_run(run_dir="here")
    trial = Noting(context)
    context.register_stateful("shared", StatefulArray(shared))
    trainlab.Trainer(trial, context).fit(max_length=Batch(8), checkpoint_period=Batch(4), checkpoint_mode="fork")
    assert "a tensor is in shared memory" in caplog.text
    for name in names():
        Checkpoint.open(Path("here/checkpoints", name)).close()


class StatefulArray:
    def __init__(self, array: Any) -> None:
        self.array = array

    def state_dict(self) -> dict[str, Any]:
        return {"array": torch.from_numpy(self.array)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.array[:] = state["array"]


@pytest.mark.skipif(sys.platform != "linux", reason="checkpoints are forked on Linux only")
def test_a_program_that_ignores_its_children_can_fork(open_run: Any) -> None:
    """With SIGCHLD ignored, as some programs have it, checkpoints by fork are written all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        context = open_run(run_dir="here")
        fit = trainlab.Trainer(LineTrial(context), context).fit
        fit(max_length=Batch(8), checkpoint_period=Batch(4), checkpoint_mode="fork")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert names() == ["batch-0000004", "batch-0000008"]


def test_two_runs_cannot_share_a_folder_of_checkpoints(open_run: Any) -> None:
    """A folder of checkpoints that a run holds is refused to another, and free again when the run is closed."""
    first = open_run(run_dir="first", checkpoint_storage="shared")
    with pytest.raises(RunFolderError, match="folder of checkpoints already.*checkpoint_storage"):
        trainlab.init(run_dir="second", checkpoint_storage="shared", progress=False)
    first.close()
    open_run(run_dir="second", checkpoint_storage="shared")
    Path("file").touch()
    with pytest.raises(RunFolderError, match="cannot be made.*file"):
        trainlab.init(run_dir="third", checkpoint_storage="file/x", progress=False)
    open_run(run_dir="third")
