import hashlib
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.samples import model_state, write
from trainlab.checkpoint import Checkpoint, latest_checkpoint, list_checkpoints, match_keys
from trainlab.checkpoint.layout import render_manifest
from trainlab.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
)

FILES = ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return write(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "root" / whole.name))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as someone would who knows how to give it a checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    change(manifest)
    (folder / "manifest.json").write_bytes(render_manifest(manifest))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_detected(copy: Path, name: str) -> None:
    """A bit that flipped in any file of a checkpoint is an error that names the file, and never other weights."""
    content = (copy / name).read_bytes()
    chance = random.Random(7)
    positions = {0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(40))}
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << chance.randrange(8)
        (copy / name).write_bytes(flipped)
        with pytest.raises(CheckpointDamagedError, match=name):
            Checkpoint.open(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_or_longer_file_is_detected(copy: Path, name: str, verify: bool) -> None:
    """A file that lost its end, or gained one, is found even without checksums."""
    content = (copy / name).read_bytes()
    for spoilt in (content[:-1], content[: len(content) // 2], b"", content + b"\0"):
        (copy / name).write_bytes(spoilt)
        with pytest.raises(CheckpointDamagedError, match=name):
            Checkpoint.open(copy, verify=verify)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    """A file that was deleted is named."""
    (copy / name).unlink()
    with pytest.raises(CheckpointDamagedError, match=f"{name}: it is missing"):
        Checkpoint.open(copy)


def test_without_verification_content_is_not_read(copy: Path) -> None:
    """verify=False is cheap: it does not read the files, so it does not see a flipped bit."""
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    Checkpoint.open(copy, verify=False)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../outside", "./model.safetensors", "a\\b", "", ".", "\ud800"]
)
def test_a_manifest_cannot_name_a_file_outside(copy: Path, name: str) -> None:
    """A hostile manifest does not make us read any other file."""
    (copy.parent / "outside").write_bytes(b"secret")
    rewrite(copy, lambda manifest: manifest["files"].update({name: {"size": 6, "sha256": "0" * 64}}))
    with pytest.raises(CheckpointDamagedError, match="outside of its folder"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("make", ["file", "folder"])
def test_a_link_out_of_the_folder_is_not_followed(copy: Path, make: str) -> None:
    """Neither a file nor a folder of a checkpoint may be a link."""
    outside = copy.parent / "outside"
    if make == "file":
        shutil.move(copy / "model.safetensors", outside)
        (copy / "model.safetensors").symlink_to(outside)
    else:
        outside.mkdir()
        (outside / "x").touch()
        (copy / "sub").symlink_to(outside)
        rewrite(copy, lambda manifest: manifest["files"].update({"sub/x": {"size": 0, "sha256": "0" * 64}}))
    with pytest.raises(CheckpointDamagedError, match="it is a link"):
        Checkpoint.open(copy)


HOSTILE = {
    "files are a list": lambda m: m.update(files=[]),
    "a negative size": lambda m: m["files"]["state.json"].update(size=-1),
    "a size that is true": lambda m: m["files"]["state.json"].update(size=True),
    "a checksum that is no text": lambda m: m["files"]["state.json"].update(sha256=3),
    "an entry that is no object": lambda m: m["files"].update({"state.json": 3}),
    "weights in no listed file": lambda m: m["weights"]["model"].update({"0": "other.safetensors"}),
    "weights that are no object": lambda m: m.update(weights={"model": ["model.safetensors"]}),
    "no weights": lambda m: m.pop("weights"),
    "a state in no listed file": lambda m: m["state"].update(tensors="/etc/passwd"),
    "a sequence that is no number": lambda m: m.update(sequence="1"),
    "a class that is no text": lambda m: m.update(trial_class=None),
    "no progress": lambda m: m.update(progress=None),
    "no hparams": lambda m: m.pop("hparams"),
    "hparams of an unknown kind": lambda m: m.update(hparams={"$": "eval", "v": "1"}),
    "versions that are none": lambda m: m.update(versions=[]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_of_another_shape_is_damaged(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest whose checksum is right and whose content is not gives the same clear error."""
    rewrite(copy, change)
    with pytest.raises(CheckpointDamagedError):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": "trainlab-checkpoint", "format": "trainlab-checkpoint"}',
        '{"format": "trainlab-checkpoint", "sequence": NaN}',
        '{"format": "trainlab-checkpoint", "sequence": 1e999}',
        '{"format": "trainlab-checkpoint", "sequence": ' + "9" * 5000 + "}",
        '{"format": "trainlab-checkpoint", "a": ' + "[" * 900 + "]" * 900 + "}",
        "\0",
        "",
    ],
    ids=["deep", "key twice", "NaN", "infinity", "huge number", "deep and closed", "zero", "empty"],
)
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_hostile_json_is_damaged(copy: Path, name: str, text: str) -> None:
    """JSON that would exhaust or confuse a reader is an error, in the manifest and in the state."""
    (copy / name).write_text(text)
    if name == "state.json":
        entry = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        rewrite(copy, lambda manifest: manifest["files"].update({"state.json": entry}))
    with pytest.raises(CheckpointDamagedError):
        Checkpoint.open(copy).state()


@given(st.binary(max_size=200))
def test_any_bytes_as_weights_are_damaged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A weights file of any other content, with a right checksum, is one error and no crash."""
    copy = write(tmp_path_factory.mktemp("bytes"))
    (copy / "model.safetensors").write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(copy, lambda manifest: manifest["files"].update({"model.safetensors": entry}))
    with pytest.raises(CheckpointDamagedError, match=r"model\.safetensors"):
        Checkpoint.open(copy).weights()


def test_a_later_format_is_refused(copy: Path) -> None:
    """A checkpoint of a version that we do not know is not guessed at, and not called damaged."""
    rewrite(copy, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(CheckpointError, match="Received: 2") as raised:
        Checkpoint.open(copy)
    assert type(raised.value) is CheckpointError


def test_what_is_not_there_is_said_with_what_is(whole: Path) -> None:
    """A mistyped path is answered with the checkpoints that are there."""
    with pytest.raises(CheckpointNotFoundError, match=f"checkpoints there are: {whole.name}"):
        Checkpoint.open(whole.parent / "batch-0000006")
    with pytest.raises(CheckpointNotFoundError, match="There is no folder"):
        Checkpoint.open(whole.parent / "a" / "b")
    with pytest.raises(FileNotFoundError):
        Checkpoint.open(whole.parent / "batch-0000006")


def test_the_run_or_the_folder_of_checkpoints_is_answered_with_the_newest(tmp_path: Path) -> None:
    """Who passes a run's folder is told which path to pass."""
    path = write(tmp_path / "checkpoints")
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(CheckpointNotFoundError, match=f"Pass one of them: {path}"):
            Checkpoint.open(folder)


def test_a_checkpoint_that_was_never_finished_is_none(copy: Path) -> None:
    """Without its manifest a folder is no checkpoint."""
    (copy / "manifest.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match="never finished"):
        Checkpoint.open(copy)


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    """A pickled file, another tool's folder and another tool's manifest are said to be none of ours."""
    torch.save({"w": torch.ones(1)}, tmp_path / "model.pt")
    (tmp_path / "lightning").mkdir()
    (tmp_path / "lightning" / "epoch=1.ckpt").touch()
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text('{"manifest_version": 3}')
    for name in ("model.pt", "lightning", "extension"):
        with pytest.raises(CheckpointError, match="not a trainlab checkpoint") as raised:
            Checkpoint.open(tmp_path / name)
        assert type(raised.value) is CheckpointError


def test_reading_never_unpickles(copy: Path) -> None:
    """A pickle in the place of a file is not run, even with right checksums."""

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (copy.parent / "planted",))

    content = pickle.dumps(Planted())
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for name in ("model.safetensors", "state.safetensors", "state.json"):
        (copy / name).write_bytes(content)
        rewrite(copy, lambda manifest, name=name: manifest["files"].update({name: entry}))
    for read in ("weights", "state"):
        with pytest.raises(CheckpointDamagedError):
            getattr(Checkpoint.open(copy), read)()
    assert not (copy.parent / "planted").exists()


def test_an_unknown_role_is_answered_with_those_there(whole: Path) -> None:
    """Asking for weights that were not saved lists what was."""
    with pytest.raises(CheckpointMismatchError, match="Received: 'ema'. It holds: 'model'"):
        Checkpoint.open(whole).weights("ema")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_one_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The one before is used, and the log says which is damaged, in which file, and what is used instead."""
    older, newest = write(tmp_path, 1), write(tmp_path, 2)
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    assert latest_checkpoint(tmp_path) == older
    (message,) = [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"]
    assert str(newest) in message
    assert name in message
    assert f"{older} is used instead" in message
    assert list_checkpoints(tmp_path) == [older, newest]


def test_a_manifest_that_is_gone_to_pieces_is_still_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest that tells nothing any more counts as newest, so that its loss is not overlooked."""
    damaged, whole = write(tmp_path, 1), write(tmp_path, 2)
    (damaged / "manifest.json").write_bytes(b"\0" * 100)
    assert latest_checkpoint(tmp_path) == whole
    assert str(damaged) in caplog.text
    assert write(tmp_path, 3) == latest_checkpoint(tmp_path)


def test_if_none_is_whole_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a whole checkpoint the answer is None; if there was one, with an error in the log."""
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    assert caplog.text == ""
    (write(tmp_path) / "state.json").unlink()
    assert latest_checkpoint(tmp_path) is None
    assert "there is no other one" in caplog.text


def test_keys_and_shapes_that_do_not_fit_are_listed() -> None:
    """Missing, unknown and mis-shaped keys are all named in one error."""
    expected = {**model_state(), "new.weight": torch.ones(2)}
    found = {**model_state(), "old.weight": torch.ones(2), "layer.bias": torch.ones(5)}
    with pytest.raises(CheckpointMismatchError) as raised:
        match_keys(expected, found, "model 'net'")
    for part in ("model 'net'", "missing: new.weight", "unknown: old.weight", "layer.bias ([5] instead of [4])"):
        assert part in str(raised.value)


def test_keys_that_fit_are_accepted() -> None:
    """The order of keys, and their dtypes, do not matter."""
    match_keys(model_state(), dict(reversed(model_state(1).items())), "model")
