import enum
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.checkpoint.samples import DETAILS, model_state, same
from tests.checkpoint.writing import write, write_checkpoint
from trainlab.checkpoint import (
    Checkpoint,
    Snapshot,
    encode,
    latest_checkpoint,
    list_checkpoints,
    register_class,
    remove_rubbish,
)
from trainlab.errors import CheckpointError, InvalidValueError
from trainlab.storage import open_store

ROOT = Path(__file__).parents[2]


@register_class
class Shape(enum.Enum):
    ROUND = 1


def _branches(inner: Any) -> Any:
    return st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5) | st.tuples(inner, inner)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Weights, state and details come back with their types."""
    state = {"betas": (0.9, 0.999), "moments": [torch.randn(3), torch.zeros(0)], 3: {1, 2}}
    checkpoint = Checkpoint.open(write(tmp_path, state=state))
    assert same(checkpoint.state(), state)
    read = checkpoint.weights()["0"]
    assert read.keys() == model_state().keys()
    assert all(same(read[key], value) for key, value in model_state(5).items())
    assert same(checkpoint.progress, DETAILS["progress"])
    assert same(checkpoint.hparams, DETAILS["hparams"])
    assert checkpoint.exp_conf == {"name": "digits"}
    assert checkpoint.trial_class == "digits:DigitsTrial"
    assert checkpoint.versions == {"torch": torch.__version__}


def test_the_state_of_an_optimizer_is_kept(tmp_path: Path) -> None:
    """An optimizer that is loaded from a checkpoint takes the same next step, bit by bit."""

    def trained(steps: int, loaded: Path | None = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if loaded:
            checkpoint = Checkpoint.open(loaded)
            model.load_state_dict(checkpoint.weights()["net"])
            optimizer.load_state_dict(checkpoint.state()["optimizer"])
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = trained(2)
    path = write(tmp_path, weights={"model": {"net": model.state_dict()}}, state={"optimizer": optimizer.state_dict()})
    resumed, whole = trained(2, path)[0], trained(4)[0]
    assert all(same(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True))


def test_weights_are_read_by_safetensors_alone(tmp_path: Path) -> None:
    """Another tool gets the weights from model.safetensors under the keys of the state dict."""
    weights = load_file(write(tmp_path) / "model.safetensors")
    assert weights.keys() == model_state().keys()
    assert all(same(weights[key], value) for key, value in model_state(5).items())


def test_several_models_have_a_file_each(tmp_path: Path) -> None:
    """Each model's file is named after it, whatever characters the name has, and roles do not mix."""
    names = ["generator", "a/b", "a_b", "../../escape", "é"]
    models = {name: {"w": torch.full((2,), float(number))} for number, name in enumerate(names)}
    path = write(tmp_path / "root", weights={"model": models, "ema": {"generator": {"w": torch.ones(1)}}, "empty": {}})
    assert (path / "model.generator.safetensors").is_file()
    assert (path / "ema.safetensors").is_file()
    checkpoint = Checkpoint.open(path)
    assert {name: state["w"].tolist() for name, state in checkpoint.weights().items()} == {
        name: [float(number)] * 2 for number, name in enumerate(names)
    }
    assert checkpoint.weights("ema")["generator"]["w"].tolist() == [1.0]
    assert checkpoint.weights("empty") == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["root"]


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    """Tied weights take room once; each of their keys is there when they are read."""
    shared = torch.randn(100, 100)
    state = {"embedding.weight": shared, "head.weight": shared, "head.bias": torch.zeros(2)}
    path = write(tmp_path, weights={"model": {"0": state}})
    assert (path / "model.safetensors").stat().st_size < 1.5 * shared.nbytes
    read = Checkpoint.open(path).weights()["0"]
    assert read.keys() == state.keys()
    assert read["head.weight"] is read["embedding.weight"]
    assert torch.equal(read["head.weight"], shared)


def test_weights_that_share_memory_in_part_and_complex_ones_are_kept(tmp_path: Path) -> None:
    """Views of one flat buffer, transposed, empty and complex weights are read as they were."""
    flat = torch.arange(12.0)
    state = {
        "flat": flat,
        "rows": flat.view(3, 4),
        "columns": flat.view(3, 4).T,
        "part": flat[4:7],
        "complex": torch.randn(2, dtype=torch.complex64).conj(),
        "complex again": torch.randn(2, dtype=torch.complex128),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
    }
    read = Checkpoint.open(write(tmp_path, weights={"model": {"0": state}})).weights()["0"]
    assert read.keys() == state.keys()
    assert all(same(read[key], value) for key, value in state.items())


def test_weights_read_do_not_hang_on_the_file(tmp_path: Path) -> None:
    """A checkpoint may be deleted or overwritten after it was loaded."""
    path = write(tmp_path)
    read = Checkpoint.open(path).weights()["0"]
    with (path / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * (path / "model.safetensors").stat().st_size)
    assert all(same(read[key], value) for key, value in model_state(5).items())


def test_weights_that_cannot_be_stored_are_named(tmp_path: Path) -> None:
    """A sparse weight is refused with its key, and nothing is left."""
    with pytest.raises(CheckpointError, match="Received: w, a tensor of layout torch.sparse_coo"):
        write(tmp_path, weights={"model": {"0": {"w": torch.eye(2).to_sparse()}}})
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_that_are_no_data_do_not_stop_a_run(tmp_path: Path) -> None:
    """What the manifest tells is written as text where it is no data, and exactly where it is."""
    hparams = {
        "lr": 1e-3,
        "sizes": (1, 2),
        "layer": torch.nn.Linear,
        "shape": Shape.ROUND,
        "path": Path("a"),
        "w": torch.ones(2),
        3: [None],
    }
    read = Checkpoint.open(write(tmp_path, details={"hparams": hparams})).hparams
    assert read == {**hparams, "shape": "Shape.ROUND", "layer": str(torch.nn.Linear), "w": str(torch.ones(2))}


def test_unknown_details_and_roles_are_refused(tmp_path: Path) -> None:
    """A misspelt detail is not dropped silently, nor is a role that no file can be named after."""
    with pytest.raises(InvalidValueError, match="'hparam'"):
        write(tmp_path, details={"hparam": {}})
    with pytest.raises(InvalidValueError, match="Received: '../x'"):
        write(tmp_path, weights={"../x": {"0": {}}})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A second checkpoint of the same batch gets a name of its own, a damaged one's is not taken either."""
    paths = [write(tmp_path, 500) for _ in range(3)]
    assert [path.name for path in paths] == ["batch-0000500", "batch-0000500.1", "batch-0000500.2"]
    (paths[1] / "manifest.json").write_text("damaged")
    (tmp_path / "batch-0000500.3").mkdir()
    assert write(tmp_path, 500).name == "batch-0000500.4"
    assert (paths[1] / "manifest.json").read_text() == "damaged"


def test_newest_is_the_last_written(tmp_path: Path) -> None:
    """A run that went back and wrote an earlier batch again goes on from there, not from the greater number."""
    written = [write(tmp_path, batches) for batches in (10, 30, 20)]
    assert list_checkpoints(open_store(tmp_path)) == [path.name for path in written]
    assert [Checkpoint.open(path).sequence for path in written] == [1, 2, 3]
    assert latest_checkpoint(tmp_path) == written[-1]


def test_files_that_a_hook_adds_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    """The hook finds the data in place and no manifest; what it adds is checked like everything else."""

    def add(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        assert not (folder / "manifest.json").exists()
        (folder / "vocabulary").mkdir()
        (folder / "vocabulary" / "words.txt").write_text("one two")

    path = write(tmp_path, before_commit=add)
    assert "vocabulary/words.txt" in json.loads((path / "manifest.json").read_text())["files"]
    (path / "vocabulary" / "words.txt").write_text("one too")
    with pytest.raises(CheckpointError, match=r"vocabulary/words\.txt"):
        Checkpoint.open(path)


def test_an_error_of_a_hook_passes_through(tmp_path: Path) -> None:
    """The user's own error arrives as it was raised, and nothing is left of the checkpoint."""
    error = OSError("mine")

    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(OSError, match="mine") as raised:
        write(tmp_path, before_commit=fail)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_hook_cannot_spoil_a_checkpoint(tmp_path: Path) -> None:
    """A hook that removes a file of ours, or adds a link out of the folder, is told so before the commit."""
    with pytest.raises(CheckpointError, match="without model.safetensors"):
        write(tmp_path, before_commit=lambda folder: (folder / "model.safetensors").unlink())
    with pytest.raises(CheckpointError, match="is not a file but a link"):
        write(tmp_path, before_commit=lambda folder: (folder / "link").symlink_to("/etc/hostname"))
    with pytest.raises(CheckpointError, match="file of this name"):
        write(tmp_path, before_commit=lambda folder: (folder / "manifest.json").touch())
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    """A refused state is found before anything is written."""
    with pytest.raises(CheckpointError, match="callbacks/mine"):
        write(tmp_path / "root", state={"callbacks": {"mine": object()}})
    assert not (tmp_path / "root").exists()


def test_a_full_disk_leaves_the_earlier_checkpoint(small_disk: Path) -> None:
    """A full disk is an error that says so with the folder; nothing half-written stays, and the earlier one does."""
    root = small_disk / "checkpoints"
    earlier = write(root, 1)
    large = {"model": {"0": {"w": torch.zeros(10**6)}}}
    with pytest.raises(CheckpointError, match=r"No space left on device.*batch-0000002"):
        write(root, 2, weights=large)
    assert list(root.iterdir()) == [earlier]
    assert latest_checkpoint(root) == earlier
    assert same(write(root, 2), root / "batch-0000002")


def test_a_disk_that_is_full_in_the_state_is_no_other_case(small_disk: Path) -> None:
    """So it is when the disk fills up in another file."""
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(small_disk, 2, state={"text": "x" * 2 * 10**6})
    assert list(small_disk.iterdir()) == []


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    """A root that cannot be a folder is an error with its path and the reason."""
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="Not a directory.*checkpoints"):
        write(tmp_path / "checkpoints")


def test_kill_9_in_the_middle_leaves_the_previous_one(tmp_path: Path) -> None:
    """A process killed while it writes leaves the previous checkpoint, and rubbish that the next start removes."""
    previous = write(tmp_path, 1)
    program = [sys.executable, "-m", "tests.checkpoint.writing", str(tmp_path), "2"]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        half_written = Path(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
    assert half_written == tmp_path / "batch-0000002"
    assert (half_written / "state.safetensors").is_file()
    assert latest_checkpoint(tmp_path) == previous
    assert list_checkpoints(open_store(tmp_path)) == [previous.name]
    assert remove_rubbish(open_store(tmp_path)) == [half_written.name]
    assert list(tmp_path.iterdir()) == [previous]
    assert write(tmp_path, 2) == half_written


def test_only_rubbish_of_ours_is_removed(tmp_path: Path) -> None:
    """Checkpoints, damaged ones, links and folders of other names stay."""
    whole, damaged = write(tmp_path, 1), write(tmp_path, 2)
    (damaged / "manifest.json").write_text("?")
    for name in ("notes", "batch-12", "batch-0000003.old", "batch-0000004.1"):
        (tmp_path / name).mkdir()
    (tmp_path / "batch-0000005").symlink_to(tmp_path / "notes")
    (tmp_path / "batch-0000006").touch()
    assert remove_rubbish(open_store(tmp_path)) == ["batch-0000004.1"]
    assert {entry.name for entry in tmp_path.iterdir()} == {
        *(whole.name, damaged.name, "notes", "batch-12", "batch-0000003.old", "batch-0000005", "batch-0000006")
    }
    assert remove_rubbish(open_store(tmp_path / "missing")) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a write removes what was written."""

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, batches_trained=1, weights={}, state={}, details={}, before_commit=interrupt)
    assert list(tmp_path.iterdir()) == []


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), _branches))
def test_the_structure_is_written_in_pieces(state: Any) -> None:
    """However large a state is, its JSON is the same, and no piece of it takes long to make."""
    snapshot = Snapshot(weights={}, state={"state": state, "long": list(range(10_000))}, details={})
    (text,) = [b"".join(pieces) for name, pieces in snapshot.contents() if name == "state.json"]
    assert json.loads(text) == json.loads(json.dumps(encode({"state": state, "long": list(range(10_000))})[0]))
