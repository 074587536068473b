import uuid
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import trainlab
from tests.checkpoint.samples import same, sample_state, write
from trainlab.checkpoint import Checkpoint, latest_checkpoint
from trainlab.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointNotFoundError,
    InvalidTypeError,
    InvalidValueError,
)


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of this machine, and one on another file system, neither of which exists."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "runs" / "a") if request.param == "local" else f"memory://{uuid.uuid4()}/a"


def trained(steps: int, resumed_from: Any = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model after some steps of a loop of one's own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if resumed_from is not None:
        state = trainlab.load_checkpoint(resumed_from)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_a_loop_of_ones_own_resumes_bit_by_bit(place: str) -> None:
    """Model, optimizer and random state go on from a checkpoint as if there had been no stop."""
    model, optimizer = trained(3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "step": 3}
    path = trainlab.save_checkpoint(state, f"{place}/batch-0000003")
    resumed, whole = trained(2, path)[0], trained(5)[0]
    assert all(same(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "state",
    [
        {"counts": Counter("abca"), (1, 2): {3.5, None}, "moments": [torch.randn(3), torch.zeros(0)]},
        OrderedDict(second=np.arange(3), first=(1, float("inf"), b"\0")),
        [torch.randn(2, dtype=torch.complex64), torch.device("cpu")],
        torch.arange(3),
        None,
    ],
    ids=["dict", "ordered", "list", "tensor", "none"],
)
def test_a_state_comes_back_with_its_types(place: str, state: Any) -> None:
    """Whatever the format holds comes back as it was, whether it is in a dict or not."""
    assert same(trainlab.load_checkpoint(trainlab.save_checkpoint(state, f"{place}/any name")), state)


def test_one_element_of_any_stride_is_saved(place: str) -> None:
    """A tensor of one element that is a column of a larger one is saved like every other."""
    column = torch.arange(8.0).reshape(1, 8)[:, 3]
    path = trainlab.save_checkpoint({"state": column, "same": column}, place, weights={"weight": column})
    assert trainlab.load_checkpoint(path)["state"].tolist() == [3.0]


def test_it_is_a_checkpoint_as_every_other(tmp_path: Path) -> None:
    """The path that is returned opens the checkpoint, tells what wrote it, and is verified."""
    path = trainlab.save_checkpoint({"step": 3}, tmp_path / "runs" / "batch-0000003", weights=torch.nn.Linear(2, 2))
    assert path == tmp_path / "runs" / "batch-0000003"
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.state() == {"step": 3}
        assert checkpoint.versions["trainlab"] == trainlab.__version__
        assert checkpoint.sequence == 1
    assert latest_checkpoint(tmp_path / "runs") == path


def test_weights_are_read_by_others(place: str, tmp_path: Path) -> None:
    """Weights that were given apart are loaded by load_weights, and by safetensors alone from model.safetensors."""
    model = torch.nn.Linear(3, 2)
    for number, weights in enumerate([model, model.state_dict(), {"net": model}, {"net": model.state_dict()}]):
        path = trainlab.save_checkpoint({}, f"{place}/{number}", weights=weights)
        fresh = torch.nn.Linear(3, 2)
        trainlab.load_weights(fresh, path)
        assert same(dict(fresh.state_dict()), dict(model.state_dict()))
        if isinstance(path, Path):
            assert load_file(path / "model.safetensors").keys() == {"weight", "bias"}


def test_several_models_are_kept_apart(tmp_path: Path) -> None:
    """Each of several models is found under its name."""
    models = {"generator": torch.nn.Linear(2, 3), "critic": torch.nn.Linear(3, 1).state_dict()}
    path = trainlab.save_checkpoint({}, tmp_path / "a", weights=models)
    fresh = torch.nn.Linear(3, 1)
    trainlab.load_weights(fresh, path, name="critic")
    assert same(dict(fresh.state_dict()), dict(models["critic"]))  # type: ignore[arg-type]
    assert set(Checkpoint.open(path).weights()) == {"generator", "critic"}


def test_nothing_is_overwritten(place: str, tmp_path: Path) -> None:
    """Where something is already nothing is written, and what is there stays as it was."""
    path = trainlab.save_checkpoint({"step": 1}, f"{place}/best")
    with pytest.raises(CheckpointError, match=r"something already.*Received: .*/best.*name of its own"):
        trainlab.save_checkpoint({"step": 2}, path)
    assert trainlab.load_checkpoint(path) == {"step": 1}
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name in ("folder", "file"):
        with pytest.raises(CheckpointError, match="something already"):
            trainlab.save_checkpoint({"step": 2}, tmp_path / name)
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_object_with_a_state_may_be_the_whole_of_it(tmp_path: Path) -> None:
    """A model, an optimizer or a context is saved by its state dict, without asking for that."""
    model = torch.nn.Linear(2, 1)
    saved = trainlab.load_checkpoint(trainlab.save_checkpoint(model, tmp_path / "model"))
    assert same(saved, model.state_dict())


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ([torch.nn.Linear(1, 1)], r"\[0\]: a Linear"),
        ({"model": torch.nn.Linear(1, 1)}, "model: a Linear"),
        ({"all": [1, {"sgd": torch.optim.SGD([torch.ones(1)])}]}, r"all\[1\]/sgd: a SGD"),
    ],
)
def test_objects_are_refused_in_place_of_their_state(tmp_path: Path, state: Any, where: str) -> None:
    """A model or optimizer in the state is refused with the path to it and the advice, and nothing is left."""
    with pytest.raises(InvalidTypeError, match=rf"Received at {where}\. Pass its state_dict\(\)"):
        trainlab.save_checkpoint(state, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_other_objects_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    """What is no data is refused with the path to it, also in a state that contains itself."""
    with pytest.raises(CheckpointError, match=r"Received at history\[1\]: builtins.object\. Allowed: None, bool"):
        trainlab.save_checkpoint({"history": [1, object()]}, tmp_path / "a")
    endless: list[Any] = []
    endless += [endless, endless]
    with pytest.raises(CheckpointError, match="contains itself"):
        trainlab.save_checkpoint(endless, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (3, "Received: weights, a int"),
        ({"a": 3}, r"Received: weights\['a'\], a int"),
        ({"a": {"step": 3}}, r"weights\['a'\], with 'step': int"),
        ({"w": torch.ones(1), "step": 3}, "weights, with 'step': int"),
        ({3: torch.nn.Linear(1, 1)}, "Received: 3 in weights"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: Any, told: str) -> None:
    """What cannot be in a file of weights is refused with its name, and nothing is left."""
    with pytest.raises(InvalidTypeError, match=told):
        trainlab.save_checkpoint({}, tmp_path / "a", weights=weights)
    assert list(tmp_path.iterdir()) == []


def test_later_checkpoints_are_newer_whatever_their_names(tmp_path: Path) -> None:
    """The order in a folder is that of writing, and only names of runs are looked at by latest_checkpoint."""
    written = [trainlab.save_checkpoint({}, tmp_path / name) for name in ("batch-0000009", "z", "batch-0000001", "a")]
    (tmp_path / "no checkpoint").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"sequence": 70}')
    written.append(trainlab.save_checkpoint({}, tmp_path / "b"))
    assert [Checkpoint.open(path).sequence for path in written] == [1, 2, 3, 4, 5]
    assert latest_checkpoint(tmp_path) == tmp_path / "batch-0000001"


def test_a_changed_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    """One flipped bit in the state is an error that names the file, and never a wrong value."""
    path = trainlab.save_checkpoint({"moment": torch.ones(100)}, tmp_path / "a")
    file = Path(path) / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"state\.safetensors"):
        trainlab.load_checkpoint(path)
    with pytest.raises(CheckpointNotFoundError):
        trainlab.load_checkpoint(tmp_path / "b")


def test_the_state_of_a_trainers_checkpoint_can_be_looked_at(tmp_path: Path) -> None:
    """The state of a run is loaded as data by the same call."""
    assert same(trainlab.load_checkpoint(write(tmp_path, 7)), sample_state(7))


def test_a_device_is_asked_for_before_anything_is_read(tmp_path: Path) -> None:
    """What is no device, or one that cannot hold tensors here, is an error that says so."""
    path = trainlab.save_checkpoint({"a": torch.ones(1)}, tmp_path / "a")
    assert trainlab.load_checkpoint(path, map_location="cpu")["a"].device.type == "cpu"
    for wanted in ("meta", "gpu", "cuda:99"):
        with pytest.raises(InvalidValueError, match=f"Received: map_location='{wanted}'"):
            trainlab.load_checkpoint(path, map_location=wanted)
    with pytest.raises(InvalidTypeError, match="Received: 0"):
        trainlab.load_checkpoint(path, map_location=0)  # type: ignore[arg-type]


@pytest.mark.cuda
def test_tensors_are_put_on_the_device_and_stay_tied(tmp_path: Path) -> None:
    """All tensors of the state are on the device that was asked for, and arrays where arrays are."""
    tied = torch.randn(3, device="cuda")
    state = {"a": tied, "b": [tied, (torch.ones(2, dtype=torch.bfloat16),)], "c": np.ones(2), "d": {torch.Size([1])}}
    path = trainlab.save_checkpoint(state, tmp_path / "a")
    assert trainlab.load_checkpoint(path)["a"].device.type == "cpu"
    loaded = trainlab.load_checkpoint(path, map_location="cuda")
    assert loaded["a"] is loaded["b"][0]
    assert loaded["b"][1][0].is_cuda
    assert torch.equal(loaded["a"], tied)
    assert isinstance(loaded["c"], np.ndarray)
