import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recording.reports import batches_in, report, steps_in
from trainlab.recording import CsvBackend, JsonlBackend, Series, TensorBoardBackend


def open_series(folder: Path) -> Series:
    return Series(folder, [JsonlBackend(folder / "metrics.jsonl"), CsvBackend(folder / "metrics.csv")])


def train(series: Series, first: int, last: int) -> None:
    for batch in range(first, last + 1):
        series.record(report(batch))


def run_program(folder: Path, killed_at: int, length: int) -> int:
    program = [sys.executable, "-m", "tests.recording.training_program", str(folder), str(killed_at), str(length)]
    return subprocess.run(program, check=False, cwd=Path(__file__).parents[2], timeout=120).returncode


@pytest.mark.slow
def test_each_step_is_there_once_after_processes_were_killed(tmp_path: Path) -> None:
    """After two real kills, with torn writes, every series holds each step once: the user's own ones too."""
    for killed_at in (8, 13):
        assert run_program(tmp_path, killed_at, length=15) == -signal.SIGKILL
        newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path, torn in ((tmp_path / "metrics.jsonl", b'{"kind": "trai'), (newest, b"\x99\0\0\0\0\0\0\0torn")):
            with path.open("ab") as file:
                file.write(torn)
    assert run_program(tmp_path, killed_at=0, length=15) == 0

    steps = list(range(1, 16))
    assert batches_in(tmp_path / "metrics.jsonl") == steps
    for tag in ("train/loss", "optim/lr", "perf/batches_per_second", "mine"):
        assert sorted(steps_in(tmp_path / "tensorboard", tag)) == steps
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for tag in ("train/loss", "mine"):
        assert sorted(event.step for event in board.Scalars(tag)) == steps


@given(
    processes=st.lists(
        st.tuples(
            st.integers(0, 6),  # batches trained
            st.sets(st.integers(1, 6)),  # after which of them a checkpoint was made
            st.integers(0, 400),  # bytes of the end that never reached the disk
            st.binary(max_size=20).map(lambda torn: torn.replace(b"\n", b"")),
        ),
        max_size=6,
    )
)
def test_any_crashes_and_resumes_leave_each_step_once(
    processes: list[tuple[int, set[int], int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However often a run dies, wherever it goes on, with however torn an end: each step is there once, in order."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "metrics.jsonl"
    batch, state, kept = 0, None, 0
    for trained, checkpoints, lost, torn in processes:
        series = open_series(folder)
        series.restore(state)
        live = batch
        for index in range(1, trained + 1):
            live += 1
            series.record(report(live))
            if index in checkpoints:
                batch, state = live, series.state_dict()
                kept = state["files"]["metrics.jsonl"]
        series.close()
        if path.exists():
            content = path.read_bytes()
            path.write_bytes(content[: max(len(content) - lost, kept)] + torn)
    series = open_series(folder)
    series.restore(state)
    train(series, batch + 1, batch + 3)
    series.close()
    steps = list(range(1, batch + 4))
    assert batches_in(path) == steps
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,tag,value"
    assert [row.split(",")[0] for row in rows if "train/loss" in row] == [str(step) for step in steps]


def test_what_is_cut_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is thrown away silently: the log names each file that was cut or removed, with sizes."""
    caplog.set_level(logging.INFO, "trainlab.recording")
    with_state = Series(tmp_path, [JsonlBackend(tmp_path / "metrics.jsonl")])
    train(with_state, 1, 2)
    state = with_state.state_dict()
    train(with_state, 3, 4)
    with_state.close()
    table = CsvBackend(tmp_path / "metrics.csv")
    table.write(report(3))
    table.close()
    open_series(tmp_path).restore(state)
    assert f"Cut {tmp_path / 'metrics.jsonl'} from" in caplog.text
    assert f"Removed {tmp_path / 'metrics.csv'}" in caplog.text


def test_a_run_from_the_beginning_starts_with_empty_series(tmp_path: Path) -> None:
    """A run that died before its first checkpoint begins anew, and what the dead process wrote is not kept."""
    dead = open_series(tmp_path)
    train(dead, 1, 3)
    dead.close()
    anew = open_series(tmp_path)
    anew.restore(None)
    train(anew, 1, 2)
    anew.close()
    assert batches_in(tmp_path / "metrics.jsonl") == [1, 2]


def test_a_checkpoint_of_another_run_touches_nothing_in_a_new_folder(tmp_path: Path) -> None:
    """A new run may go on from another folder's checkpoint; its series begin there."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = open_series(tmp_path / "a")
    train(first, 1, 5)
    state = first.state_dict()
    first.close()
    second = open_series(tmp_path / "b")
    second.restore(state)
    train(second, 6, 8)
    second.close()
    assert batches_in(tmp_path / "a/metrics.jsonl") == [1, 2, 3, 4, 5]
    assert batches_in(tmp_path / "b/metrics.jsonl") == [6, 7, 8]


def test_a_run_begun_twice_from_another_runs_checkpoint_repeats_no_step(tmp_path: Path) -> None:
    """A file of the same name in another run's folder is not taken for the one that the checkpoint means."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = open_series(tmp_path / "a")
    train(first, 1, 5)
    state = first.state_dict()
    first.close()
    for _ in range(2):
        again = open_series(tmp_path / "b")
        again.restore(state)
        train(again, 6, 8)
        again.close()
    assert batches_in(tmp_path / "b/metrics.jsonl") == [6, 7, 8]


def test_going_back_within_one_process_repeats_no_step(tmp_path: Path) -> None:
    """A notebook that resumes from an earlier checkpoint with the same context has each step once as well."""
    tensorboard = TensorBoardBackend(tmp_path / "tensorboard")
    series = Series(tmp_path, [JsonlBackend(tmp_path / "metrics.jsonl"), tensorboard])
    series.restore(None)
    train(series, 1, 3)
    state = series.state_dict()
    train(series, 4, 6)
    tensorboard.writer.add_scalar("mine", 1.0, 6)
    series.restore(state)
    train(series, 4, 5)
    tensorboard.writer.add_scalar("mine", 1.0, 5)
    series.close()
    assert batches_in(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert sorted(steps_in(tmp_path / "tensorboard", "train/loss")) == [1, 2, 3, 4, 5]
    assert steps_in(tmp_path / "tensorboard", "mine") == [5]


def test_what_a_trial_writes_while_it_is_built_survives_the_restore(tmp_path: Path) -> None:
    """A graph or text written through the writer before training is kept when the run then resumes."""
    dead = Series(tmp_path, [TensorBoardBackend(tmp_path / "tensorboard")])
    train(dead, 1, 2)
    dead.close()
    tensorboard = TensorBoardBackend(tmp_path / "tensorboard")
    series = Series(tmp_path, [tensorboard])
    tensorboard.writer.add_scalar("built", 1.0, 0)
    series.restore(None)
    train(series, 1, 1)
    series.close()
    assert steps_in(tmp_path / "tensorboard", "built") == [0]
    assert steps_in(tmp_path / "tensorboard", "train/loss") == [1]


def test_lost_lines_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file shorter than at the checkpoint, as after a power cut, is kept, and a warning says what is missing."""
    series = Series(tmp_path, [JsonlBackend(tmp_path / "metrics.jsonl")])
    train(series, 1, 4)
    state = series.state_dict()
    series.close()
    content = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(content[:-30])
    again = Series(tmp_path, [JsonlBackend(tmp_path / "metrics.jsonl")])
    again.restore(state)
    train(again, 5, 5)
    again.close()
    assert f"had {len(content)} at the checkpoint" in caplog.text
    assert batches_in(tmp_path / "metrics.jsonl") == [1, 2, 3, 5]


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    """A series may be closed by the run and again at exit."""
    series = open_series(tmp_path)
    series.close()
    train(series, 1, 1)
    series.close()
    series.close()
    assert batches_in(tmp_path / "metrics.jsonl") == [1]
