"""The context of a running experiment, in real runs."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import trainlab
from trainlab import ContextObject, Counter
from trainlab.containers import run_context
from trainlab.errors import CheckpointError, CheckpointNotFoundError, InvalidStateError, InvalidTypeError

# Imported before any run, as users do.
from trainlab import context  # isort: skip


class Pair(NamedTuple):
    x: torch.Tensor
    name: str


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Runs a function as an experiment, in one folder."""

    def run(main: Callable[[Any], Any], *, resumes: bool = False, **params: Any) -> Any:
        from trainlab.experiments import running

        experiment: Any = trainlab.experiment(name="own")(main)
        return running.run(experiment, experiment.read(params), run_dir=tmp_path / "run", resumes=resumes)

    return run


def test_the_context_is_one_object_in_all_threads_of_a_run(run: Callable[..., Any]) -> None:
    """Whatever thread touches `trainlab.context` first, all have the same, which is gone with the run."""
    found: list[Any] = []

    def main(params: Any) -> None:
        threads = [threading.Thread(target=lambda: found.append(run_context())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        context.epoch = 3
        assert found[0].epoch == 3 and context.has("epoch") and "epoch" in dir(context)
        assert isinstance(context, ContextObject) and repr(context) == "ContextObject(epoch=3)"
        del context.epoch
        assert not context.has("epoch")

    run(main)
    assert len({id(one) for one in found}) == 1
    with pytest.raises(InvalidStateError, match="none is running"):
        _ = context.epoch


def test_the_context_outside_of_a_run_is_a_clear_error() -> None:
    """Touching it before a start says when it can be used; looking at it does not fail."""
    for touch in (
        lambda: context.model,
        lambda: setattr(context, "model", 1),
        lambda: context.load_state_dict({}),
        run_context,
    ):
        with pytest.raises(InvalidStateError, match=r"trainlab\.context.*main function"):
            touch()
    assert "no running experiment" in repr(context) and "state_dict" in dir(context)
    assert context.__doc__ and not hasattr(context, "__wrapped__")


def test_a_main_function_with_two_parameters_gets_the_context(tmp_path: Path) -> None:
    """pystematic's older form, `main(params, context)`, has the same context as `trainlab.context`."""

    @trainlab.experiment
    def older(params: Any, ctx: Any) -> bool:
        ctx.epoch = 1
        return bool(context.epoch == 1)

    assert older.run({"output_dir": tmp_path}) is True


def test_autotransform_does_what_the_parameters_say(run: Callable[..., Any], tmp_path: Path) -> None:
    """It loads `--checkpoint` and returns the context; `cuda` on a machine without a GPU changes nothing."""
    place = trainlab.save_checkpoint(ContextObject(counter=Counter(4)), tmp_path / "saved")

    def main(params: Any) -> int:
        assert params["cuda"] is True
        context.counter = Counter()
        assert context.autotransform() is run_context()
        return int(context.counter.count)

    assert run(main, checkpoint=str(place)) == 4


def test_autotransform_outside_of_an_experiment_says_what_to_call() -> None:
    """There are no parameters to go by, and that is said."""
    with pytest.raises(InvalidStateError, match="load_state_dict, cuda and ddp"):
        ContextObject().autotransform()


def test_a_run_that_goes_on_loads_the_newest_checkpoint_of_its_own(run: Callable[..., Any], tmp_path: Path) -> None:
    """Started again, a loop goes on after its last whole checkpoint, without anybody naming it; the first is anew."""

    def main(params: Any) -> int:
        context.counter = Counter()
        context.autotransform()
        found = context.counter.count
        for _ in range(3):
            context.counter.step()
            trainlab.save_checkpoint(context, context.counter.count)
        return int(found)

    assert run(main) == 0
    (tmp_path / "run" / "checkpoint-9").mkdir()
    (tmp_path / "run" / "checkpoint-3" / "state.safetensors").write_bytes(b"damaged")
    trained = [path.name for path in sorted((tmp_path / "run").glob("checkpoint-*"))]
    assert trained == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-9"]
    (tmp_path / "run" / "checkpoint-3").rename(tmp_path / "damaged")
    assert run(main, resumes=True) == 2


def test_a_given_checkpoint_counts_until_the_run_has_saved_one_after_it(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """A run begun with `--checkpoint` goes on from its own newest one, and goes back only to one that is given anew."""
    places = [trainlab.save_checkpoint(ContextObject(counter=Counter(n)), tmp_path / f"from-{n}") for n in (10, 20)]

    def main(params: Any) -> int:
        context.counter = Counter()
        context.autotransform()
        found = context.counter.count
        if found not in fails_at:
            context.counter.step()
            trainlab.save_checkpoint(context, context.counter.count)
        return int(found)

    first, other = ({"checkpoint": str(place), "resumes": True} for place in places)
    fails_at = [10, 20]
    assert [run(main, checkpoint=str(places[0])), run(main, **first)] == [10, 10]  # nothing was saved
    fails_at = [20]
    assert [run(main, **first), run(main, **first), run(main, **first)] == [10, 11, 12]
    assert [run(main, **other), run(main, **other)] == [20, 20]
    fails_at = []
    assert [run(main, **other), run(main, **other), run(main, resumes=True)] == [20, 21, 22]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_in_nobodys_way(
    run: Callable[..., Any], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A run goes on before a checkpoint that cannot be read, which is moved aside when its place is needed."""

    def main(params: Any) -> int:
        context.counter = Counter()
        context.autotransform()
        found = context.counter.count
        while context.counter.count < 3:
            context.counter.step()
            trainlab.save_checkpoint(context, context.counter.count)
        return int(found)

    run(main)
    manifest = tmp_path / "run" / "checkpoint-3" / "manifest.json"
    for number in (1, 2):
        content = manifest.read_bytes()
        if damage == "missing":
            manifest.unlink()
        else:
            manifest.write_bytes(content[:40] if damage == "truncated" else content.replace(b"3", b"4"))
        assert run(main, resumes=True) == 2
        assert run(main, resumes=True) == 3
        assert (tmp_path / "run" / f"checkpoint-3.damaged-{number}").is_dir()
    told = caplog.text
    assert told.count("A checkpoint is passed over") == told.count("Moved a checkpoint that cannot be read") == 2


def test_only_a_checkpoint_is_moved_aside(run: Callable[..., Any], tmp_path: Path) -> None:
    """A folder of the user's own, and a checkpoint that can be read, stay where they are, and the save says so."""

    def main(params: Any) -> None:
        (tmp_path / "run" / "best").mkdir()
        (tmp_path / "run" / "best" / "notes.txt").touch()
        trainlab.save_checkpoint({}, 1)
        for place in ("best", 1):
            with pytest.raises(CheckpointError, match="something already"):
                trainlab.save_checkpoint({}, place)

    run(main)
    assert not list((tmp_path / "run").glob("*.damaged-*"))


def test_checkpoints_are_saved_as_pystematic_calls_it(run: Callable[..., Any], tmp_path: Path) -> None:
    """`save_checkpoint(state, id=3)` is `save_checkpoint(state, 3)`; ints of numpy are ints."""

    def main(params: Any) -> None:
        assert trainlab.save_checkpoint({"n": 1}, id=3) == tmp_path / "run" / "checkpoint-3"
        assert trainlab.save_checkpoint({"n": 2}, np.int64(4)) == tmp_path / "run" / "checkpoint-4"  # type: ignore[arg-type]
        assert trainlab.load_checkpoint(4) == {"n": 2}

    run(main)


@pytest.mark.parametrize(
    "places", [{}, {"path": "a", "id": 1}, {"path": 1.5}, {"path": True}, {"path": b"a"}, {"id": [1]}], ids=str
)
def test_what_is_no_place_of_a_checkpoint_is_told(places: dict[str, Any]) -> None:
    """A place that is none, or two at once, are errors that say what was received."""
    with pytest.raises(InvalidTypeError, match="Received: "):
        trainlab.save_checkpoint({}, **places)


def test_checkpoints_by_number_and_by_name_lie_in_the_runs_folder(run: Callable[..., Any], tmp_path: Path) -> None:
    """`save_checkpoint(ctx, 3)` is `<run>/checkpoint-3`; a bare name lies there too, and is found again."""

    def main(params: Any) -> None:
        assert trainlab.save_checkpoint({"n": 1}, 3) == tmp_path / "run" / "checkpoint-3"
        assert trainlab.save_checkpoint({"n": 2}, "best") == tmp_path / "run" / "best"
        assert [trainlab.load_checkpoint(place) for place in (3, "best")] == [{"n": 1}, {"n": 2}]
        with pytest.raises(CheckpointNotFoundError):
            trainlab.load_checkpoint(4)

    run(main)
    with pytest.raises(InvalidStateError, match="Pass a path"):
        trainlab.save_checkpoint({}, 3)
    with pytest.raises(InvalidStateError, match="Pass a path"):
        trainlab.load_checkpoint(3)


def test_what_a_killed_save_has_left_is_in_nobodys_way(run: Callable[..., Any], tmp_path: Path) -> None:
    """A loop that is started again writes the checkpoint at whose saving it was killed."""

    def main(params: Any) -> Any:
        left = tmp_path / "run" / "checkpoint-3"
        left.mkdir()
        (left / ".unfinished").touch()
        (left / "state.json").write_text("{")
        return trainlab.load_checkpoint(trainlab.save_checkpoint({"n": 1}, 3))

    assert run(main) == {"n": 1}


def test_things_are_placed_where_the_experiment_trains(run: Callable[..., Any]) -> None:
    """`place_on_correct_device` gives a list, moves what is nested, and goes by the parameter `cuda`."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"

    def place() -> str:
        layer, array, pair, text, nothing = trainlab.place_on_correct_device(
            nn.Linear(1, 1), np.ones(2), {"a": [Pair(torch.ones(1), "n")]}, "text", None
        )
        assert (text, nothing, pair["a"][0].name) == ("text", None, "n")
        devices = {layer.weight.device.type, array.device.type, pair["a"][0].x.device.type}
        assert len(devices) == 1
        return devices.pop()

    assert place() == run(lambda params: place()) == expected
    assert run(lambda params: place(), resumes=True, cuda=False) == "cpu"
    assert trainlab.place_on_correct_device() == []


def test_texts_and_none_are_placed_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Names and missing values in a batch, which nobody expects to move, are passed on silently."""
    assert trainlab.place_on_correct_device("id", None, {"name": "n"}) == ["id", None, {"name": "n"}]
    assert not caplog.records


def test_a_run_started_again_in_its_folder_keeps_what_it_recorded(run: Callable[..., Any], tmp_path: Path) -> None:
    """Without a word that it goes on, nothing is removed and the error says what to do; told so, each step is once."""

    def main(params: Any) -> None:
        context.recorder = trainlab.Recorder(tensorboard=False)
        context.autotransform()
        for _ in range(2):
            context.recorder.scalar("x", context.recorder.count)
            context.recorder.step()
        trainlab.save_checkpoint(context, context.recorder.count)

    run(main)
    before = (tmp_path / "run" / "scalars.csv").read_bytes()
    with pytest.raises(InvalidStateError, match="trainlab resume.*TRAINLAB_RESUME=1.*another folder"):
        run(main)
    assert (tmp_path / "run" / "scalars.csv").read_bytes() == before
    run(main, resumes=True)
    lines = (tmp_path / "run" / "scalars.csv").read_text().splitlines()
    assert lines == ["step,tag,value", *(f"{step},x,{step}.0" for step in range(4))]
