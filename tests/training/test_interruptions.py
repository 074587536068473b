"""What signals, crashes and a second process do to a run."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import trainlab
from tests.training.exactness import saved
from tests.training.processes import Process, Server, serving
from trainlab.errors import RunFolderError

BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where the processes come from."""
    with serving("tests.training.exact_program", tmp_path_factory.mktemp("processes")) as started:
        yield started


def reported(run_dir: Path) -> list[int]:
    """The batches at which training was reported."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [record["batch"] for record in records if record["kind"] == "training"]


def status_of(run_dir: Path) -> str:
    """How run.json says that the last start ended."""
    return str(json.loads((run_dir / "run.json").read_text())["starts"][-1]["status"])


def check_stopped(process: Process, run_dir: Path, number: int, batch: int) -> None:
    """Whether a signal let the batch finish, and left a report, a checkpoint and word of how to go on."""
    assert process.gone()
    assert process.wait() == 128 + number, process.stderr
    assert process.trained()[-1]["batch"] == batch - 1
    assert reported(run_dir)[-1] == batch and saved(run_dir)[-1] == batch
    assert f"TRAINLAB_RUN_DIR={run_dir}" in process.stderr and "Traceback" not in process.stderr
    assert f"batch-{batch:07d}" in process.stderr
    assert (process.out / "handlers").read_text() == "True"
    assert status_of(run_dir) == "interrupted"


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", BOTH)
def test_a_signal_ends_the_run_after_the_batch(server: Server, tmp_path: Path, number: int, group: bool) -> None:
    """SIGTERM or Ctrl-C, also to workers: the batch is finished, reported and saved, the exit status is 128 + n."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--features", "shuffle,workers2,best", "--progress", pause_at="train:6")
    assert process.told() == "train 6 False"
    process.signal(number, group=group)
    process.go("again")
    assert process.told() == "train 6 True"
    process.go()
    check_stopped(process, run_dir, number, batch=7)
    assert "finishing the batch" in process.stderr


def test_a_stopped_run_ends_as_an_uninterrupted_one(server: Server, tmp_path: Path) -> None:
    """A run stopped by a signal at a batch where nothing was due is resumed to the same weights."""
    features = ("--features", "shuffle,augment,dropout,accumulate,workers2,quiet")
    whole, _ = server.run(tmp_path / "whole", *features)
    process = server.start(tmp_path / "run", *features, pause_at="train:6")
    assert process.told() == "train 6 False"
    process.signal(signal.SIGTERM)
    process.go()
    assert process.wait() == 128 + signal.SIGTERM
    resumed, status = server.run(tmp_path / "run", *features)
    assert status == 0 and resumed.trained()[0]["batch"] == 7
    for part in ("models", "optimizers", "generators", "metrics"):
        assert resumed.result[part] == whole.result[part]


@pytest.mark.parametrize(
    ("group", "place", "trained", "checkpoint"),
    [
        (False, "train 6", 6, 5),
        pytest.param(True, "train 6", 6, 5, marks=pytest.mark.slow),
        (True, "evaluate 10", 10, 8),
        pytest.param(True, "save 8", 8, 5, marks=pytest.mark.slow),
        (True, "write 8", 8, 5),
        (True, "committed 8", 8, 8),
    ],
)
def test_a_second_ctrl_c_aborts_at_once(
    server: Server, tmp_path: Path, group: bool, place: str, trained: int, checkpoint: int
) -> None:
    """A second Ctrl-C ends the run wherever it is; checkpoints are whole or not there, and no worker is left."""
    run_dir = tmp_path / "run"
    features = ("--features", "shuffle,workers2,best,write_end")
    process = server.start(run_dir, *features, pause_at=place.replace(" ", ":"))
    assert process.told() == f"{place} False"
    process.signal(signal.SIGINT, group=group)
    process.go("again")
    assert process.told() == f"{place} True"
    process.signal(signal.SIGINT, group=group)
    assert process.gone()
    assert process.wait() == -signal.SIGINT
    assert len(process.trained()) == trained and saved(run_dir)[-1] == checkpoint
    assert len(list((run_dir / "checkpoints").iterdir())) == len(saved(run_dir))
    assert process.stderr.rstrip().endswith("KeyboardInterrupt")
    assert status_of(run_dir) == "interrupted"
    resumed, status = server.run(run_dir, *features, "--leave-at-once")
    assert status == 0 and resumed.trained()[0]["batch"] == checkpoint


@pytest.mark.parametrize("mode", ["async", "fork"])
def test_a_second_ctrl_c_gives_up_what_is_written_beside_the_training(
    server: Server, tmp_path: Path, mode: str
) -> None:
    """A second Ctrl-C also ends a write beside the training, in a thread or a child, and leaves nothing half done."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--features", f"shuffle,{mode}", pause_at="point:file begun:6")
    assert process.told() == "point:file begun 6 False"
    process.signal(signal.SIGINT)
    while "finishing the batch" not in process.stderr:
        assert not process.gone(seconds=0.01)
    process.signal(signal.SIGINT)
    if mode == "async":
        process.go()  # a thread has to end itself; a child is ended, wherever it is
    assert process.gone() and process.wait() == -signal.SIGINT
    assert saved(run_dir) == [4] or (mode == "async" and saved(run_dir) == [4, 8])
    assert len(list((run_dir / "checkpoints").iterdir())) == len(saved(run_dir))
    assert status_of(run_dir) == "interrupted"


def test_ctrl_c_after_sigterm_stops_once(server: Server, tmp_path: Path) -> None:
    """A Ctrl-C that comes after a SIGTERM does not abort: it is the first one."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--progress", pause_at="train:6")
    assert process.told() == "train 6 False"
    process.signal(signal.SIGTERM)
    process.go("again")
    assert process.told() == "train 6 True"
    process.signal(signal.SIGINT)
    process.go()
    check_stopped(process, run_dir, signal.SIGINT, batch=7)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_during_a_validation(server: Server, tmp_path: Path, number: int) -> None:
    """A signal during a validation lets it finish; its metrics are recorded, and a checkpoint holds it."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--features", "workers2,best", "--progress", pause_at="evaluate:10")
    assert process.told() == "evaluate 10 False"
    process.signal(number, group=True)
    process.go()
    check_stopped(process, run_dir, number, batch=10)
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    assert [r["batch"] for r in records if r["kind"] == "validation"] == [5, 10]
    resumed, status = server.run(run_dir, "--features", "workers2,best")
    assert status == 0 and resumed.trained()[0]["batch"] == 10
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    assert [r["batch"] for r in records if r["kind"] == "validation"] == [5, 10, 15, 20, 24]


def test_a_signal_while_a_checkpoint_is_written(server: Server, tmp_path: Path) -> None:
    """A signal while a checkpoint is written lets it be committed, and no second one is made of the same batch."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--features", "write_end", "--progress", pause_at="write:8")
    assert process.told() == "write 8 False"
    process.signal(signal.SIGTERM)
    process.go()
    check_stopped(process, run_dir, signal.SIGTERM, batch=8)
    assert saved(run_dir).count(8) == 1 and len(list((run_dir / "checkpoints").iterdir())) == len(saved(run_dir))


@pytest.mark.parametrize("mode", ["async", "fork"])
def test_a_signal_while_a_checkpoint_is_written_beside_the_training(server: Server, tmp_path: Path, mode: str) -> None:
    """A signal lets the batch be finished and the checkpoint being written be committed, and makes one of the end."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--features", f"shuffle,{mode}", pause_at="point:data durable:2")
    assert process.told() == "point:data durable 2 False"
    process.signal(signal.SIGTERM)
    while "finishing the batch" not in process.stderr:
        assert not process.gone(seconds=0.01)
    process.go()
    assert process.gone() and process.wait() == 128 + signal.SIGTERM
    assert saved(run_dir)[0] == 8 - 4 * (len(process.trained()) == 8)
    assert saved(run_dir)[-1] == len(process.trained()) >= 8
    assert len(list((run_dir / "checkpoints").iterdir())) == len(saved(run_dir))


def test_ctrl_c_that_ends_the_reader_of_stderr_too(server: Server, tmp_path: Path) -> None:
    """In `python train.py 2>&1 | tee log`, where Ctrl-C ends tee first, the batch is finished and saved as ever."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--progress", pause_at="train:6", stderr_is_pipe=True)
    with (process.out / "stderr").open():
        assert process.told() == "train 6 False"
    process.signal(signal.SIGINT)
    process.go()
    assert process.gone()
    # Python itself ends with 120 where it cannot flush what others wrote to stderr.
    assert process.wait() in (128 + signal.SIGINT, 120)
    assert process.trained()[-1]["batch"] == 6 and saved(run_dir)[-1] == 7 == reported(run_dir)[-1]
    assert status_of(run_dir) == "interrupted"


def test_fit_in_another_thread(server: Server, tmp_path: Path) -> None:
    """In a thread that may install no handlers fit works as ever."""
    process, status = server.run(tmp_path / "run", "--features", "shuffle", "--in-thread")
    assert status == 0, process.stderr
    whole, _ = server.run(tmp_path / "other", "--features", "shuffle")
    assert process.result == whole.result


@pytest.mark.parametrize(
    ("place", "checkpoints"),
    [("train:6", [4, 5]), ("evaluate:5", [4]), ("report:6", [4, 5]), ("save:5", [4]), ("write:5", [4])],
)
def test_an_error_in_the_users_code(server: Server, tmp_path: Path, place: str, checkpoints: list[int]) -> None:
    """An error of the user's ends the run as it is, its line the last one; earlier checkpoints are whole."""
    run_dir = tmp_path / "run"
    features = "shuffle,workers2,best,write_end" if place.startswith("write") else "shuffle,workers2,best"
    process, status = server.run(run_dir, "--features", features, "--raise-at", place)
    assert status == 1
    assert process.stderr.rstrip().splitlines()[-1] == "ZeroDivisionError: in the user's code"
    assert "During handling" not in process.stderr and "direct cause" not in process.stderr
    assert saved(run_dir) == checkpoints
    assert len(list((run_dir / "checkpoints").iterdir())) == len(checkpoints)
    assert status_of(run_dir) == "failed"
    assert (process.out / "handlers").read_text() == "True"
    resumed, status = server.run(run_dir, "--features", features)
    assert status == 0 and resumed.trained()[0]["batch"] == checkpoints[-1]


def test_an_error_in_a_worker(server: Server, tmp_path: Path) -> None:
    """An error of the data set in a worker names itself; no worker is left, and the checkpoints are whole."""
    run_dir = tmp_path / "run"
    process, status = server.run(run_dir, "--features", "workers2,best", "--raise-at", "read:14")
    assert status == 1 and "ZeroDivisionError: in the user's code" in process.stderr
    assert saved(run_dir) and status_of(run_dir) == "failed"


def test_a_worker_that_is_killed(server: Server, tmp_path: Path) -> None:
    """A worker that is killed, as when memory runs out, ends the run with an error, and nothing is left."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--features", "shuffle,workers2,best", pause_at="train:8")
    assert process.told() == "train 8 False"
    worker = psutil.Process(process.pid).children()[0]
    worker.kill()
    process.go()
    assert process.gone() and process.wait() == 1
    assert "Traceback" in process.stderr
    assert 8 in saved(run_dir) and status_of(run_dir) == "failed"


def test_no_worker_is_left_after_an_error(server: Server, tmp_path: Path) -> None:
    """After an error in train_batch nothing of the run is alive, workers included."""
    process = server.start(
        tmp_path / "run", "--features", "shuffle,workers2,best", "--raise-at", "train:6", pause_at="train:2"
    )
    assert process.told() == "train 2 False"
    process.go()
    assert process.gone()
    assert process.wait() == 1


def test_a_second_process_is_told_who_holds_the_run(server: Server, tmp_path: Path) -> None:
    """While a run is alive its folder is refused, by number of its process; once it is killed the folder is free."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, "--features", "shuffle,workers2,best", pause_at="train:6")
    assert process.told() == "train 6 False"
    while not (run_dir / "checkpoints" / "batch-0000005" / "manifest.json").exists():  # it is written beside
        assert not process.gone(seconds=0.01)
    second, status = server.run(run_dir, "--features", "shuffle,workers2,best")
    assert status == 1 and "RunFolderError" in second.stderr and str(process.pid) in second.stderr
    with pytest.raises(RunFolderError, match=str(process.pid)):
        trainlab.init(run_dir=run_dir, device="cpu", progress=False)
    assert not (second.out / "result.json").exists() and second.trained() == []
    process.signal(signal.SIGKILL)
    assert process.gone() and process.wait() == -signal.SIGKILL
    with trainlab.init(run_dir=run_dir, device="cpu", progress=False) as context:
        assert context.latest_checkpoint is not None and context.latest_checkpoint.name == "batch-0000005"


@pytest.mark.slow
def test_a_run_can_be_stopped_again_and_again(server: Server, tmp_path: Path) -> None:
    """Stopped at each batch in turn, a run still gets to its end, each step recorded once."""
    run_dir = tmp_path / "run"
    for batch in (2, 5, 6, 11):
        process = server.start(run_dir, "--features", "shuffle", pause_at=f"train:{batch}")
        assert process.told() == f"train {batch} False"
        process.signal(signal.SIGINT)
        process.go()
        assert process.wait() == 128 + signal.SIGINT
        assert process.trained()[-1]["batch"] == batch
    _, status = server.run(run_dir, "--features", "shuffle")
    assert status == 0
    assert reported(run_dir) == sorted(set(reported(run_dir)))
