import math
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tests.recording.reports import events_in, report, steps_in
from trainlab.errors import MissingDependencyError
from trainlab.recording import Series, TensorBoardBackend, TorchWriter


def test_the_tags_of_a_run(tmp_path: Path) -> None:
    """TensorBoard shows train, validation, optim and perf, at the batch and the time of the record."""
    backend = TensorBoardBackend(tmp_path)
    backend.write(report(100, optim={"lr/0": 1e-3, "lr/1": 1e-4}, metrics={"loss": 0.25, "empty": None}))
    backend.write(report(100, kind="validation", metrics={"accuracy": 0.5}, optim={}, perf={}))
    backend.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(board.Tags()["scalars"]) == [
        "optim/lr/0",
        "optim/lr/1",
        "perf/batches_per_second",
        "perf/records_per_second",
        "train/loss",
        "validation/accuracy",
    ]
    (event,) = board.Scalars("train/loss")
    assert (event.step, event.value, event.wall_time) == (100, 0.25, 1_700_000_100.25)


def test_a_record_is_one_event(tmp_path: Path) -> None:
    """All values of a record are written at once, which keeps a report cheap."""
    backend = TensorBoardBackend(tmp_path)
    backend.write(report(1))
    backend.close()
    (path,) = backend.files()
    assert [len(event.summary.value) for event in events_in(path)] == [0, 4]


def test_nan_reaches_tensorboard(tmp_path: Path) -> None:
    """A loss that became NaN is shown as such, and not left out."""
    backend = TensorBoardBackend(tmp_path)
    backend.write(report(1, metrics={"loss": math.nan}))
    backend.close()
    assert math.isnan(EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")[0].value)


def test_switched_off_only_the_users_own_are_written(tmp_path: Path) -> None:
    """With logging off, records write nothing and make no file, and the writer works; it can be switched on later."""
    backend = TensorBoardBackend(tmp_path)
    backend.enabled = False
    backend.write(report(1))
    assert backend.files() == []
    backend.writer.add_scalar("mine", 1.0, 1)
    backend.enabled = True
    backend.write(report(2))
    backend.close()
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"][0] == "mine"
    assert steps_in(tmp_path, "train/loss") == [2]


def test_one_writer_for_the_user_and_the_run(tmp_path: Path) -> None:
    """The writer is torch's own, the same at each call, and shares the run's event file."""
    backend = TensorBoardBackend(tmp_path)
    backend.write(report(1))
    assert isinstance(backend.writer, SummaryWriter)
    assert backend.writer is backend.writer
    backend.writer.add_scalar("mine", 1.0, 1)
    backend.close()
    assert len(backend.files()) == 1


def test_after_a_flush_everything_is_on_disk(tmp_path: Path) -> None:
    """What a checkpoint's position counts is complete: all events, of subfolders and other writers there too."""
    backend, other = TensorBoardBackend(tmp_path), TorchWriter(tmp_path)
    for step in range(500):
        backend.write(report(step))
        other.add_scalar("other", step, step)
    backend.writer.add_scalars("both", {"a": 1.0, "b": 2.0}, 7)
    for step in range(10):
        other.writer.add_text("long", "x" * 100_000, step)
    backend.flush()
    try:
        assert steps_in(tmp_path, "train/loss") == list(range(500))
        assert steps_in(tmp_path, "other") == list(range(500))
        assert steps_in(tmp_path, "both") == [7, 7]
        assert steps_in(tmp_path, "long/text_summary") == list(range(10))
        assert len(Series(tmp_path, [backend]).state_dict()["files"]) == 4
    finally:
        backend.close()


def test_two_resets_and_two_writes_make_two_files(tmp_path: Path) -> None:
    """`reset` ends a file, and the next write begins another one, even within the same second."""
    writer = TorchWriter(tmp_path)
    assert isinstance(writer.writer, SummaryWriter)
    for step in range(2):
        writer.add_scalar("foo", 7, step)
        writer.reset()
    writer.reset()
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted(steps_in(tmp_path, "foo")) == [0, 1]


def test_a_writer_without_a_folder_uses_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a run, events go to `tensorboard` in the current folder, not among the runs."""
    monkeypatch.chdir(tmp_path)
    writer = TorchWriter()
    writer.add_scalar("foo", 1.0, 0)
    writer.reset()
    assert steps_in(tmp_path / "tensorboard", "foo") == [0]


def test_without_tensorboard_the_error_says_what_to_install(tmp_path: Path) -> None:
    """Where TensorBoard is missing, the first write says how to get it, and a run without it works."""
    program = (
        "import sys; from pathlib import Path; sys.modules['tensorboard'] = None\n"
        "from trainlab.recording import Record, TensorBoardBackend\n"
        f"backend = TensorBoardBackend(Path({str(tmp_path)!r})); record = Record('training', 1, 0, 64, 0.0)\n"
        "backend.enabled = False; backend.write(record); backend.flush(); backend.close(); backend.enabled = True\n"
        "backend.write(record)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{MissingDependencyError.__module__}.{MissingDependencyError.__name__}: ")
    assert "pip install tensorboard" in last
