"""The Recorder of a loop of one's own: what it writes, and what is left after crashes."""

import copy
import csv
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.ranks import run_ranks, start_ranks
from trainlab import Counter, Recorder
from trainlab.distributed import init_distributed
from trainlab.errors import CheckpointMismatchError, InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.recording import series


def rows(folder: Path) -> list[str]:
    """The lines of scalars.csv below its header."""
    header, *lines = (folder / "scalars.csv").read_text().splitlines()
    assert header == "step,tag,value"
    return lines


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "events"), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def opened(path: Path) -> "np.ndarray[Any, Any]":
    with Image.open(path) as image:
        return np.asarray(image)


def record(recorder: Recorder, steps: int) -> None:
    for _ in range(steps):
        recorder.scalar("train/loss", recorder.count / 2)
        recorder.step()


def test_a_number_is_recorded_at_the_count_by_all_backends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV, JSON lines, TensorBoard and the console tell the same series; the count can be set."""
    with Recorder(tmp_path, backends=["console", "csv", "jsonl", "tensorboard"]) as recorder:
        recorder.scalar("train/loss", 0.5)
        recorder.scalar("train/loss", 0.75)  # twice at one count
        recorder.scalar("a,b", 2)
        recorder.step()
        recorder.count = 10
        recorder.scalar("train/loss", torch.tensor([[0.25]], requires_grad=True))
    assert rows(tmp_path) == ["0,train/loss,0.5", "0,train/loss,0.75", '0,"a,b",2.0', "10,train/loss,0.25"]
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [(line["step"], line["scalars"]) for line in lines] == [
        (0, {"train/loss": 0.5}),
        (0, {"train/loss": 0.75, "a,b": 2.0}),
        (10, {"train/loss": 0.25}),
    ]
    series = events(tmp_path).Scalars("train/loss")
    assert [(one.step, one.value) for one in series] == [(0, 0.5), (0, 0.75), (10, 0.25)]
    assert capsys.readouterr().err.splitlines()[-1] == "step 10 · train/loss 0.25"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        (True, 1.0),
        (float("inf"), float("inf")),
        (np.float32(0.5), 0.5),
        (np.array([[2]]), 2.0),
        (torch.tensor(4), 4.0),
        (torch.ones(1, 1, dtype=torch.bfloat16), 1.0),
    ],
    ids=str,
)
def test_a_scalar_is_whatever_holds_one_number(value: Any, number: float, tmp_path: Path) -> None:
    """Python's, numpy's and torch's numbers, and tensors of one element of any shape, are recorded."""
    with Recorder(tmp_path, tensorboard=False) as recorder:
        recorder.scalar("x", value)
    assert rows(tmp_path) == [f"0,x,{number}"]


@pytest.mark.parametrize("value", ["1", None, 1j, torch.ones(2), torch.ones(0), np.ones(3), [1.0], torch.tensor(1j)])
def test_what_is_no_number_is_an_error_at_once(value: Any, tmp_path: Path) -> None:
    """A mistake is told where it is made, with the tag, and not when the file is written."""
    with pytest.raises((InvalidTypeError, InvalidValueError), match="'loss'"):
        Recorder(tmp_path).scalar("loss", value)


def test_a_tensor_that_changes_after_it_was_recorded_changes_nothing(tmp_path: Path) -> None:
    """The value is the one at the call, though files are written later."""
    value = torch.tensor(1.0)
    with Recorder(tmp_path, tensorboard=False) as recorder:
        recorder.scalar("x", value)
        value.add_(1)
    assert rows(tmp_path) == ["0,x,1.0"]


def test_images_and_figures_are_files_named_by_tag_and_count(tmp_path: Path) -> None:
    """PIL, arrays and tensors become the same picture, in files and in TensorBoard."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([0, 1])
    with Recorder(tmp_path) as recorder:
        recorder.count = 7
        recorder.image("a/array", pixels)
        recorder.image("tensor", torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255))
        recorder.image("pil", Image.fromarray(pixels))
        recorder.image("gray", torch.tensor([[True, False]]))
        recorder.figure("curve", figure)
    for name in ("a.array-7", "tensor-7", "pil-7"):
        assert np.array_equal(opened(tmp_path / "images" / f"{name}.png"), pixels), name
    assert opened(tmp_path / "images" / "gray-7.png").tolist() == [[255, 0]]
    assert opened(tmp_path / "figures" / "curve-7.jpg").shape == (50, 100, 3)
    assert sorted(events(tmp_path).Tags()["images"]) == ["a/array", "curve", "gray", "pil", "tensor"]


@pytest.mark.parametrize(
    "image",
    [torch.ones(5, 2, 2), np.ones((2, 2, 2)), np.ones(3), np.full((2, 2), 256), np.full((2, 2), -1), torch.ones(0, 2)],
    ids=lambda image: str(tuple(image.shape)),
)
def test_what_has_not_the_shape_of_an_image_is_an_error(image: Any, tmp_path: Path) -> None:
    """Other shapes and numbers out of range are told, and not bent into a picture."""
    recorder = Recorder(tmp_path)
    with pytest.raises(InvalidValueError, match="An image has"):
        recorder.image("x", image)
    with pytest.raises(InvalidValueError, match="matplotlib"):
        recorder.figure("x", image)
    with pytest.raises(InvalidTypeError):
        recorder.image("x", [[1]])


def test_parameters_are_recorded_without_secrets(tmp_path: Path) -> None:
    """Neither the file nor TensorBoard has the value of a password or a token."""
    with Recorder(tmp_path) as recorder:
        recorder.params({"lr": 0.1, "db": {"password": "hunter2"}, "api_key": "abcdef"})
    assert (tmp_path / "recorded_params.yaml").read_text() == 'lr: 0.1\ndb:\n  password: "***"\napi_key: "***"\n'
    assert events(tmp_path).Tags()["tensors"] == ["params/text_summary"]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter2" not in written and b"abcdef" not in written


def test_an_unknown_backend_is_an_error_that_lists_the_known() -> None:
    """A misspelt backend does not record nothing."""
    with pytest.raises(InvalidValueError, match="'wandb'.*Allowed: 'console', 'csv', 'jsonl', 'tensorboard'"):
        Recorder("x", backends=["csv", "wandb"])


def test_backends_that_are_no_names_are_an_error_that_lists_the_known() -> None:
    """What is no list at all is told like a misspelt name."""
    with pytest.raises(InvalidTypeError, match="Received: 3. Allowed: 'console'"):
        Recorder("x", backends=3)  # type: ignore[arg-type]


def test_a_number_beyond_all_floats_is_an_error(tmp_path: Path) -> None:
    """An int that no float can hold is told with its tag, and not as an overflow."""
    with pytest.raises(InvalidValueError, match="greater than any.*'loss'"):
        Recorder(tmp_path).scalar("loss", 10**400)


def test_a_tag_too_long_for_a_file_is_an_error_of_pictures_alone(tmp_path: Path) -> None:
    """A picture whose file could not have its name is refused at once; a number may have such a tag."""
    with Recorder(tmp_path, tensorboard=False) as recorder:
        with pytest.raises(InvalidValueError, match="306 bytes"):
            recorder.image("x" * 300, np.zeros((2, 2)))
        recorder.scalar("x" * 300, 1)
    assert rows(tmp_path) == [f"0,{'x' * 300},1.0"] and not (tmp_path / "images").exists()


def test_a_tag_with_line_breaks_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Whoever reads scalars.csv finds one row for each number, whatever its tag."""
    tags = ["a\nb", "5,x\n7,loss", "c\rd", 'e"f']
    with Recorder(tmp_path, tensorboard=False) as recorder:
        for tag in tags:
            recorder.scalar(tag, 1)
            recorder.step()
    with (tmp_path / "scalars.csv").open(newline="") as file:
        _, *found = csv.reader(file)
    assert found == [[str(step), tag, "1.0"] for step, tag in enumerate(tags)]


def test_a_recorder_outside_of_a_run_needs_a_folder() -> None:
    """Without a run there is no folder to guess."""
    with pytest.raises(InvalidStateError, match="output_dir"):
        Recorder()


def test_two_recorders_in_one_folder_are_an_error(tmp_path: Path) -> None:
    """Two would cut each other's files; one that was closed or forgotten is in nobody's way."""
    first = Recorder(tmp_path)
    first.scalar("x", 1)
    second = Recorder(tmp_path)
    with pytest.raises(InvalidStateError, match="Another Recorder"):
        second.scalar("x", 2)
    first.close()
    second.count = 1
    second.scalar("x", 2)
    del first, second
    Recorder(tmp_path).count = 2
    assert rows(tmp_path) == ["0,x,1.0", "1,x,2.0"]


def test_another_process_cannot_record_in_the_same_folder(tmp_path: Path) -> None:
    """The second of two programs in one folder gets an error, and the first one's numbers are all there."""
    with Recorder(tmp_path, tensorboard=False) as recorder:
        record(recorder, 1)
        (told,) = run_ranks(recorded_too, 1, str(tmp_path))
        record(recorder, 1)
    assert "Another Recorder writes to this folder" in told
    assert rows(tmp_path) == ["0,train/loss,0.0", "1,train/loss,0.5"]
    assert run_ranks(recorded_too, 1, str(tmp_path)) == [""]


def recorded_too(folder: str) -> str:
    """Record in a folder; return the error, if there is one."""
    try:
        with Recorder(folder, tensorboard=False) as recorder:
            recorder.scalar("x", 1)
    except InvalidStateError as error:
        return str(error)
    return ""


def test_a_child_that_lives_on_keeps_nobody_out(tmp_path: Path) -> None:
    """A worker that was forked while the recorder was open does not hold the folder after it."""
    end, kept = os.pipe()
    recorder = Recorder(tmp_path, tensorboard=False)
    record(recorder, 1)
    child = os.fork()
    if child == 0:
        os.close(kept)
        os.read(end, 1)
        os._exit(0)
    # As if this process was killed: nothing unlocks, the descriptor is closed.
    output = recorder._made
    assert output is not None and output._exclusion is not None
    output._exclusion.leave_to_parent()
    try:
        assert run_ranks(recorded_too, 1, str(tmp_path)) == [""]
    finally:
        os.close(kept)
        os.waitpid(child, 0)
        os.close(end)
        recorder.close()


@pytest.mark.parametrize(("before", "times"), [(0, 1), (3, 1), (3, 3)])
def test_going_back_in_one_process_repeats_no_step(before: int, times: int, tmp_path: Path) -> None:
    """A loop that loads its own earlier state, as after a NaN, has each step once in all files, however often."""
    with Recorder(tmp_path, backends=["csv", "jsonl", "tensorboard"]) as recorder:
        record(recorder, before)
        state = copy.deepcopy(recorder.state_dict())
        for _ in range(times):
            record(recorder, 3)
            recorder.load_state_dict(state)
            assert recorder.count == before
        record(recorder, 7 - before)
    assert rows(tmp_path) == [f"{step},train/loss,{step / 2}" for step in range(7)]
    lines = (tmp_path / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(7))
    assert sorted(one.step for one in events(tmp_path).Scalars("train/loss")) == list(range(7))


def test_going_back_before_the_first_step_repeats_nothing(tmp_path: Path) -> None:
    """What was recorded at the count of a state, and then again after loading it, is there once."""
    with Recorder(tmp_path, tensorboard=False) as recorder:
        recorder.scalar("x", 1)
        state = copy.deepcopy(recorder.state_dict())
        recorder.scalar("y", 2)
        recorder.load_state_dict(state)
        recorder.scalar("y", 2)
    assert rows(tmp_path) == ["0,x,1.0", "0,y,2.0"]


def test_what_was_recorded_before_another_runs_state_is_loaded_stays(tmp_path: Path) -> None:
    """A new run that goes on from another one's checkpoint keeps the parameters that it recorded before it."""
    with Recorder(tmp_path / "a") as first:
        record(first, 2)
        state = first.state_dict()
    with Recorder(tmp_path / "b") as second:
        second.params({"lr": 1})
        assert second.state_dict()["series"] is not None  # as a context asks for it before it loads
        second.load_state_dict(state)
        record(second, 2)
    assert events(tmp_path / "b").Tags()["tensors"] == ["params/text_summary"]
    assert sorted(one.step for one in events(tmp_path / "b").Scalars("train/loss")) == [2, 3]


# TensorBoard's own thread dies of the full disk.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("backend", ["csv", "jsonl", "tensorboard"])
def test_a_full_disk_is_told_once_and_ends_no_loop(
    small_disk: Path, backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the disk is full what is recorded is lost, told once and without a file for each; later it is not."""
    monkeypatch.setattr(series, "_WRITE_SECONDS", 0.0)  # each step is written by itself
    monkeypatch.setattr(series, "_RETRY_SECONDS", 3600.0)  # and none is tried again before the test says so
    recorder = Recorder(small_disk / "run", backends=[backend])
    record(recorder, 1)
    recorder.flush()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    for _ in range(100):
        recorder.scalar("long", 1)
        recorder.image("x", np.random.default_rng(0).random((64, 64)))
        recorder.params({"text": "x" * 2000})
        record(recorder, 20)
    assert len([path for path in (small_disk / "run").rglob("*") if path.is_file()]) <= 3
    monkeypatch.setattr(series, "_RETRY_SECONDS", 0.0)
    record(recorder, 20)
    with pytest.raises(OSError, match="No space"):
        recorder.flush()
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(told) == (2 if backend == "tensorboard" else 3), told  # of the numbers, the parameters, the pictures
    filler.unlink()
    recorder.params({"text": "x" * 2000})
    assert (small_disk / "run" / "recorded_params.yaml").read_text() == f'text: "{"x" * 2000}"\n'
    first = recorder.count
    record(recorder, 2)
    recorder.image("y", np.zeros((2, 2)))
    recorder.close()
    if backend == "csv":
        assert rows(small_disk / "run")[-2:] == [f"{step},train/loss,{step / 2}" for step in (first, first + 1)]
        assert [path.name for path in (small_disk / "run" / "images").iterdir()] == [f"y-{first + 2}.png"]
    if backend == "tensorboard":
        assert {first, first + 1} <= {one.step for one in events(small_disk / "run").Scalars("train/loss")}


def crash(folder: str) -> None:
    """Record ten steps, with the state after the fourth in a file, and die."""
    recorder = Recorder(folder)
    recorder.image("early", np.zeros((2, 2)))
    record(recorder, 4)
    Path(folder, "state.json").write_text(json.dumps(recorder.state_dict()))
    recorder.scalar("train/loss", 9)
    recorder.image("late", np.zeros((2, 2)))
    recorder.step()
    recorder.image("late", np.zeros((2, 2)))
    record(recorder, 5)
    recorder.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def crashed(folder: Path) -> dict[str, Any]:
    with start_ranks(crash, 1, str(folder)) as ranks:
        assert ranks.wait() == [-signal.SIGKILL]
    assert len(rows(folder)) == 10
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    """What a killed process recorded after its checkpoint is gone from all files, and written by the next."""
    state = crashed(tmp_path)
    recorder = Recorder(tmp_path)
    recorder.params({"lr": 1})  # before it is known where the run goes on
    recorder.load_state_dict(state)
    assert recorder.count == 4
    record(recorder, 3)
    recorder.close()
    assert rows(tmp_path) == [f"{step},train/loss,{step / 2}" for step in range(7)]
    assert sorted(one.step for one in events(tmp_path).Scalars("train/loss")) == list(range(7))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["early-0.png", "late-4.png"]
    assert (tmp_path / "recorded_params.yaml").exists()


def test_a_run_from_the_beginning_begins_its_files_anew(tmp_path: Path) -> None:
    """The first step without a state tells that nothing is gone on with: the series of the dead process are gone."""
    crashed(tmp_path)
    recorder = Recorder(tmp_path)
    recorder.image("mine", np.zeros((2, 2)))
    record(recorder, 2)
    recorder.close()
    assert rows(tmp_path) == ["0,train/loss,0.0", "1,train/loss,0.5"]
    assert sorted(one.step for one in events(tmp_path).Scalars("train/loss")) == [0, 1]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["mine-0.png"]


def test_a_program_that_fails_before_it_loads_removes_nothing(tmp_path: Path) -> None:
    """An error between making the recorder and loading the checkpoint does not cost the series."""
    state = crashed(tmp_path)
    with pytest.raises(KeyError), Recorder(tmp_path) as recorder:
        recorder.params({"lr": 1})
        assert recorder.state_dict() == {"count": 0, "series": None}
        raise KeyError
    assert len(rows(tmp_path)) == 10
    again = Recorder(tmp_path)
    again.load_state_dict(state)
    again.close()
    assert len(rows(tmp_path)) == 4


def test_a_state_of_another_kind_is_an_error(tmp_path: Path) -> None:
    """Neither a recorder nor a counter takes what it did not give; a bare count is the seeds' own form."""
    recorder = Recorder(tmp_path)
    for state in ({}, {"count": "3"}, {"count": 1, "more": 1}, 3):
        with pytest.raises((CheckpointMismatchError, InvalidTypeError)):
            recorder.load_state_dict(state)  # type: ignore[arg-type]
    recorder.load_state_dict({"count": 3})
    assert recorder.count == 3
    counter = Counter()
    counter.step()
    counter.load_state_dict(counter.state_dict())
    assert counter.state_dict() == {"count": 1} and repr(counter) == "Counter(1)"
    with pytest.raises(CheckpointMismatchError):
        counter.load_state_dict({"n": 1})


def of_rank(folder: str) -> tuple[dict[str, Any], bool]:
    """Record on each rank, from before the ranks know each other."""
    recorder = Recorder(folder)
    record(recorder, 1)
    distributed = init_distributed()
    record(recorder, 1)
    recorder.image("x", np.zeros((2, 2)))
    state = recorder.state_dict()
    recorder.load_state_dict(distributed.broadcast(state))
    record(recorder, 1)
    recorder.close()
    return state, distributed.is_chief


def test_only_the_first_rank_records(tmp_path: Path) -> None:
    """The others count along and write nothing, before and after the ranks have found each other."""
    (first, is_chief), (second, _) = run_ranks(of_rank, 2, str(tmp_path))
    assert is_chief and first["series"]["files"] and second == {"count": 2, "series": None}
    assert rows(tmp_path) == [f"{step},train/loss,{step / 2}" for step in range(3)]


def test_a_silenced_recorder_counts_and_writes_nothing(tmp_path: Path) -> None:
    """After `silence()` no file grows, and the loop need not know."""
    recorder = Recorder(tmp_path, tensorboard=False)
    record(recorder, 1)
    recorder.silence()
    record(recorder, 3)
    recorder.close()
    assert recorder.count == 4 and rows(tmp_path) == ["0,train/loss,0.0"]


def test_what_was_recorded_is_there_though_nobody_closed(tmp_path: Path) -> None:
    """A recorder that is forgotten, or is there at the end of the process, has written everything."""
    run_ranks(never_closed, 1, str(tmp_path))
    assert rows(tmp_path) == ["0,train/loss,0.0", "1,x,5.0"]


def never_closed(folder: str) -> None:
    recorder = Recorder(folder)
    record(recorder, 1)
    recorder.scalar("x", 5)


def test_a_forked_child_does_not_write_into_its_parents_files(tmp_path: Path) -> None:
    """Two processes would tear each other's lines: the child is told so, and the parent's lines are whole."""
    recorder = Recorder(tmp_path, tensorboard=False)
    record(recorder, 1)
    child = os.fork()
    if child == 0:
        try:
            recorder.scalar("x", 1)
        except InvalidStateError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    recorder.close()
    assert rows(tmp_path) == ["0,train/loss,0.0"]


def test_a_loop_that_sets_the_count_has_each_step_once_after_a_crash(tmp_path: Path) -> None:
    """Without `step()`, and without a state, what is recorded again takes the place of what the dead process wrote."""
    backends = ["csv", "jsonl", "tensorboard"]
    for first, end in ((0, 3), (0, 4), (2, 6), (6, 8)):
        with Recorder(tmp_path, backends=backends) as recorder:
            for count in range(first, end):
                recorder.count = count
                recorder.scalar("a\n9,b", count)
                recorder.image("x", np.zeros((2, 2)))
        steps = list(range(end))
        text = (tmp_path / "scalars.csv").read_text()
        assert text == "step,tag,value\n" + "".join(f'{step},"a\n9,b",{step}.0\n' for step in steps)
        lines = (tmp_path / "scalars.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == steps
        assert sorted(one.step for one in events(tmp_path).Scalars("a\n9,b")) == steps
        assert len(list((tmp_path / "images").iterdir())) == end


def test_a_recorder_that_was_closed_goes_on_with_its_own_files(tmp_path: Path) -> None:
    """`close()` in the middle of a loop costs nothing that was recorded before."""
    recorder = Recorder(tmp_path, tensorboard=False)
    for _ in range(2):
        record(recorder, 1)
        recorder.close()
    assert rows(tmp_path) == ["0,train/loss,0.0", "1,train/loss,0.5"]


def test_a_counter_saves_only_what_it_can_load() -> None:
    """Ints of numpy and torch become Python's own; what is no int is told where it is set."""
    counter = Counter(np.int64(3))  # type: ignore[arg-type]
    counter.count += 1
    assert type(counter.state_dict()["count"]) is int
    counter.count = torch.tensor(7)  # type: ignore[assignment]
    for wrong in (1.5, "x", None, True):
        with pytest.raises(InvalidTypeError, match="A count is an int"):
            counter.count = wrong  # type: ignore[assignment]
    again = Counter()
    again.load_state_dict(counter.state_dict())
    assert again.count == 7


@pytest.mark.parametrize("count", ["x", None, True, 1.5])
def test_a_counter_takes_no_count_that_is_none(count: Any) -> None:
    """A damaged state is told when it is loaded, and the count stays what it was."""
    counter = Counter(3)
    with pytest.raises(InvalidTypeError, match="A count is an int"):
        counter.load_state_dict({"count": count})
    assert counter.count == 3
