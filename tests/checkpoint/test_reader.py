import itertools
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.samples import (
    DETAILS,
    described,
    model_state,
    replace,
    rewrite,
    same,
    sample_state,
    write,
)
from trainlab.checkpoint import (
    Checkpoint,
    checkpoint_name,
    latest_checkpoint,
    list_checkpoints,
    match_keys,
    remove_checkpoint,
    remove_rubbish,
)
from trainlab.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
)
from trainlab.storage import faults, open_store

FILES = ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return write(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "root" / whole.name))


def flip(file: Path, position: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_what_was_written_is_read(whole: Path) -> None:
    """Weights, state and details come back with their types, and the attributes tell what the files are."""
    with Checkpoint.open(whole) as checkpoint:
        assert same(checkpoint.state(), sample_state())
        assert same(checkpoint.weights(), {"0": dict(sorted_as_stored(model_state(5)))})
        assert same([checkpoint.progress, checkpoint.hparams], [DETAILS["progress"], DETAILS["hparams"]])
        assert (checkpoint.path, checkpoint.name, checkpoint.sequence) == (whole, whole.name, 1)
        assert (checkpoint.trial_class, checkpoint.exp_conf) == ("digits:DigitsTrial", {"name": "digits"})
        assert checkpoint.created == "2026-01-01T00:00:00+00:00"
        assert {name: entry.size for name, entry in checkpoint.files.items()} == {
            name: (whole / name).stat().st_size for name in FILES[1:]
        }
        assert checkpoint.size == sum(entry.size for entry in checkpoint.files.values())


def sorted_as_stored(state: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """The order in a file: wide ones first."""
    return sorted(state.items(), key=lambda item: -item[1].element_size())


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
        Checkpoint.open(copy, verify=False)


@pytest.mark.parametrize("name", FILES[1:])
def test_what_is_read_is_verified_even_if_opening_was_cheap(copy: Path, name: str) -> None:
    """verify=False does not read the files, so it sees no flipped bit; whatever reads or verifies the file does."""
    flip(copy / name)
    checkpoint = Checkpoint.open(copy, verify=False)
    with pytest.raises(CheckpointDamagedError, match=name):
        checkpoint.weights() if name == "model.safetensors" else checkpoint.state()
    with pytest.raises(CheckpointDamagedError, match=name):
        checkpoint.verify()


def test_verify_reads_only_what_was_not_read(copy: Path) -> None:
    """After the weights and the state were read, verify has only the other files left."""
    replace(copy, "words.txt", b"one two")
    checkpoint = Checkpoint.open(copy, verify=False)
    checkpoint.weights()
    checkpoint.state()
    for name in (*FILES[1:], "words.txt"):
        flip(copy / name)
    with pytest.raises(CheckpointDamagedError, match=r"words\.txt"):
        checkpoint.verify()


def test_a_link_out_of_the_folder_is_not_followed(copy: Path) -> None:
    """Neither a file nor a folder of a checkpoint may be a link, listed or not."""
    outside = copy.parent / "outside"
    shutil.copy(copy / "model.safetensors", outside)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointDamagedError, match=r"model\.safetensors is (a link|not a file)"):
        Checkpoint.open(copy)
    (copy / "model.safetensors").unlink()
    shutil.copy(outside, copy / "model.safetensors")
    Checkpoint.open(copy)
    folder = copy.parent / "folder"
    folder.mkdir()
    (folder / "x").write_bytes(b"x")
    (copy / "sub").symlink_to(folder)
    rewrite(copy, lambda manifest: manifest["files"].update({"sub/x": described(b"x")}))
    with pytest.raises(CheckpointDamagedError, match="sub is (a link|not a file)"):
        Checkpoint.open(copy)


def test_a_link_to_a_checkpoint_is_followed(whole: Path, tmp_path: Path) -> None:
    """Who gives a checkpoint a second name by a link opens it by that name, and is told its own."""
    (tmp_path / "best").symlink_to(whole)
    checkpoint = Checkpoint.open(tmp_path / "best")
    assert (checkpoint.path, checkpoint.name) == (whole, whole.name)


def test_a_home_folder_and_a_file_url_are_paths(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are taken as a shell and a browser write them, and relative to the working folder."""
    monkeypatch.setenv("HOME", str(copy.parent))
    monkeypatch.chdir(copy.parent)
    for path in (f"~/{copy.name}", f"file://{copy}", f"{copy}/", copy.name, Path(copy.name)):
        assert Checkpoint.open(path).path == copy


def test_files_that_are_no_part_of_it_are_said_and_left(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An editor's backup in a checkpoint's folder makes it no less usable, and is pointed out once."""
    (copy / "notes.txt~").write_text("mine")
    checkpoint = Checkpoint.open(copy)
    checkpoint.weights()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{copy} has files that are not part of it: notes.txt~" in record.getMessage()


def test_what_is_not_there_is_said_with_what_is(whole: Path) -> None:
    """A mistyped path is answered with the checkpoints that are there."""
    with pytest.raises(CheckpointNotFoundError, match=f"checkpoints there are: {whole.name}"):
        Checkpoint.open(whole.parent / "batch-0000006")
    with pytest.raises(CheckpointNotFoundError, match="There is no folder"):
        Checkpoint.open(whole.parent / "a" / "b")
    with pytest.raises(FileNotFoundError):
        Checkpoint.open(whole.parent / "batch-0000006")
    with pytest.raises(CheckpointNotFoundError, match="top of a file system"):
        Checkpoint.open("/")
    with pytest.raises(CheckpointNotFoundError, match="There is no checkpoint"):
        Checkpoint.open(whole / "model.safetensors" / "batch-0000006")


def test_the_run_or_the_folder_of_checkpoints_is_answered_with_the_newest(tmp_path: Path) -> None:
    """Who passes a run's folder is told which path to pass."""
    path = write(tmp_path / "checkpoints")
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(CheckpointNotFoundError, match=f"Pass one of them: {path}"):
            Checkpoint.open(folder)


def test_a_checkpoint_that_was_never_finished_is_none(copy: Path) -> None:
    """Without its manifest a folder with the writer's mark is no checkpoint; without the mark it is a damaged one."""
    (copy / "manifest.json").unlink()
    with pytest.raises(CheckpointDamagedError, match=r"manifest\.json: it is missing"):
        Checkpoint.open(copy)
    (copy / ".unfinished").touch()
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

    for name in FILES[1:]:
        replace(copy, name, pickle.dumps(Planted()))
    for read in ("weights", "state"):
        with pytest.raises(CheckpointDamagedError):
            getattr(Checkpoint.open(copy), read)()
    assert not (copy.parent / "planted").exists()


def test_an_unknown_role_is_answered_with_those_there(whole: Path) -> None:
    """Asking for weights that were not saved lists what was."""
    with pytest.raises(CheckpointMismatchError, match="Received: 'ema'. It holds: 'model'"):
        Checkpoint.open(whole).weights("ema")


def test_what_cannot_be_read_is_not_called_damaged(copy: Path) -> None:
    """Missing permissions are an error of their own kind, with the system's reason."""
    (copy / "state.json").chmod(0)
    was = os.geteuid()
    os.seteuid(65534 if was == 0 else was)  # root may read everything
    try:
        with pytest.raises(CheckpointError, match="cannot be read: Permission denied") as raised:
            Checkpoint.open(copy)
    finally:
        os.seteuid(was)
    assert type(raised.value) is CheckpointError


def test_a_checkpoint_being_read_is_not_removed(copy: Path) -> None:
    """Retention, in this process or another, leaves an open checkpoint alone until it is closed or forgotten."""
    store = open_store(copy.parent)
    checkpoint = Checkpoint.open(copy)
    program = f"""
from trainlab.storage import open_store
print(open_store({str(copy.parent)!r}).remove_unread({copy.name!r}, "manifest.json"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
    assert not store.remove_unread(copy.name, "manifest.json")
    assert same(checkpoint.state(), sample_state())
    checkpoint.close()
    checkpoint.close()
    again = Checkpoint.open(copy)
    assert not store.remove_unread(copy.name, "manifest.json")
    del again
    assert store.remove_unread(copy.name, "manifest.json")
    assert not copy.exists()


def test_one_that_cannot_be_opened_is_not_held(copy: Path) -> None:
    """A damaged checkpoint can be removed after it was looked at."""
    flip(copy / "state.json")
    with pytest.raises(CheckpointDamagedError) as raised:
        Checkpoint.open(copy)
    assert open_store(copy.parent).remove_unread(copy.name, "manifest.json"), raised


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_one_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The one before is used, and the log says which is damaged, in which file, and what is used instead."""
    older, newest = write(tmp_path, 1), write(tmp_path, 2)
    flip(newest / name, (newest / name).stat().st_size // 2)
    assert latest_checkpoint(tmp_path) == older
    (message,) = [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"]
    assert str(newest) in message
    assert name in message
    assert f"{older} is used instead" in message
    assert list_checkpoints(open_store(tmp_path)) == [older.name, newest.name]


def test_a_manifest_that_is_gone_to_pieces_is_still_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest that tells nothing any more counts as newest, so that its loss is not overlooked."""
    damaged, whole = write(tmp_path, 1), write(tmp_path, 2)
    (damaged / "manifest.json").write_bytes(b"\0" * 100)
    assert latest_checkpoint(tmp_path) == whole
    assert str(damaged) in caplog.text
    assert write(tmp_path, 3) == latest_checkpoint(tmp_path)


def test_a_flipped_sequence_does_not_hide_the_newest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged manifest is reported even if its number now looks like that of an old one."""
    paths = [write(tmp_path, batches) for batches in (1, 2, 3)]
    manifest = (paths[2] / "manifest.json").read_bytes()
    (paths[2] / "manifest.json").write_bytes(manifest.replace(b'"sequence": 3', b'"sequence": 1'))
    assert latest_checkpoint(tmp_path) == paths[1]
    assert str(paths[2]) in caplog.text


def test_newest_is_the_last_written(tmp_path: Path) -> None:
    """A run that went back and wrote an earlier batch again goes on from there, not from the greater number."""
    written = [write(tmp_path, batches) for batches in (10, 30, 20)]
    assert list_checkpoints(open_store(tmp_path)) == [path.name for path in written]
    assert latest_checkpoint(tmp_path) == latest_checkpoint(open_store(tmp_path)) == written[-1]


def test_if_none_is_whole_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a whole checkpoint the answer is None; if there was one, with an error in the log."""
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    assert caplog.text == ""
    (write(tmp_path) / "state.json").unlink()
    assert latest_checkpoint(tmp_path) is None
    assert "there is no other one" in caplog.text


def test_if_none_can_be_told_it_is_an_error(tmp_path: Path) -> None:
    """A run does not start from scratch because its only checkpoint is of a later trainlab."""
    path = write(tmp_path)
    rewrite(path, lambda manifest: manifest.update(format_version=4))
    with pytest.raises(CheckpointError, match="later format version"):
        latest_checkpoint(tmp_path)
    older = write(tmp_path, 1)
    assert latest_checkpoint(tmp_path) == older


def test_only_rubbish_of_ours_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a killed writer left is removed and named; checkpoints, damaged ones, links and other folders stay."""
    whole, damaged = write(tmp_path, 1), write(tmp_path, 2)
    (damaged / "manifest.json").write_text("?")
    for name in ("notes", "batch-12", "batch-0000003.old", "batch-0000004.1", "batch-0000007/manifest.json"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "batch-0000007" / "manifest.json" / "x").touch()
    (tmp_path / "batch-0000005").symlink_to(tmp_path / "notes")
    (tmp_path / "batch-0000006").touch()
    assert remove_rubbish(open_store(tmp_path)) == ["batch-0000004.1"]
    assert {entry.name for entry in tmp_path.iterdir()} == {
        *(whole.name, damaged.name, "notes", "batch-12", "batch-0000003.old"),
        *("batch-0000005", "batch-0000006", "batch-0000007"),
    }
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{tmp_path / 'batch-0000004.1'}, a checkpoint that was never finished" in record.getMessage()
    assert remove_rubbish(open_store(tmp_path / "missing")) == []


def test_the_same_batch_again_gets_another_name() -> None:
    """A name that is taken is not used again."""
    assert checkpoint_name(500, ()) == "batch-0000500"
    assert checkpoint_name(500, {"batch-0000500", "batch-0000500.1"}) == "batch-0000500.2"
    assert checkpoint_name(123456789, []) == "batch-123456789"


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of checkpoints in memory, whose copies are cached in the test's folder."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    yield "memory://reading/checkpoints"
    open_store("memory://").remove_folder("reading")


def test_checkpoints_of_a_store_that_is_no_folder_are_read_alike(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """In memory, and so on any store, checkpoints are found, read, passed over when damaged and missed by name."""
    store = open_store(url)
    older, newest = str(write(store, 1)), str(write(store, 2))
    assert latest_checkpoint(url) == newest
    with Checkpoint.open(newest) as checkpoint:
        assert (checkpoint.path, checkpoint.name, checkpoint.sequence) == (newest, "batch-0000002", 2)
        assert same(checkpoint.state(), sample_state(2))
        assert checkpoint.weights()["0"].keys() == model_state().keys()
        assert not store.remove_unread(checkpoint.name, "manifest.json")
    store.remove("batch-0000002/model.safetensors")
    assert latest_checkpoint(url) == older
    assert "model.safetensors: it is missing" in caplog.text
    with pytest.raises(CheckpointNotFoundError, match="checkpoints there are: batch-0000002, batch-0000001"):
        Checkpoint.open(f"{url}/batch-0000003")
    with pytest.raises(CheckpointNotFoundError, match=f"Pass one of them: {newest}"):
        Checkpoint.open("memory://reading")


def test_a_damaged_copy_in_the_cache_is_fetched_anew(url: str, tmp_path: Path) -> None:
    """A cached copy that went bad is no damage of the checkpoint: it is fetched again; a bad original is one."""
    path = write(open_store(url))
    Checkpoint.open(path)
    cached = [file for file in (tmp_path / "cache").iterdir() if file.is_file()]
    assert len(cached) == 3
    for file in cached:
        flip(file)
    with Checkpoint.open(path) as checkpoint:
        assert same(checkpoint.state(), sample_state())
    content = open_store(url).read("batch-0000005/state.json", 10**6)
    open_store(url).publish("batch-0000005/state.json", content[:-1] + b" ")
    Checkpoint.open(path)  # what the cache has is right
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CheckpointDamagedError, match=r"state\.json"):
        Checkpoint.open(path)


def test_keys_and_shapes_that_do_not_fit_are_listed() -> None:
    """Missing, unknown, mis-shaped and otherwise typed keys are all named in one error."""
    expected = {**model_state(), "new.weight": torch.ones(2)}
    found = {
        **model_state(),
        "old.weight": torch.ones(2),
        "layer.bias": torch.ones(5),
        "layer.weight": torch.ones(4, 3, dtype=torch.float64),
    }
    with pytest.raises(CheckpointMismatchError) as raised:
        match_keys(expected, found, "model 'net'")
    for part in (
        *("model 'net'", "missing: new.weight", "unknown: old.weight", "of another shape: layer.bias ([5] instead of"),
        "of another dtype: layer.weight (torch.float64 instead of torch.float32)",
    ):
        assert part in str(raised.value)


def test_a_cast_can_be_allowed() -> None:
    """Where another dtype is no error, keys of another dtype fit."""
    match_keys(model_state(), {key: value.double() for key, value in model_state().items()}, "model", dtypes=False)


def test_keys_that_fit_are_accepted() -> None:
    """The order of keys does not matter."""
    match_keys(model_state(), dict(reversed(model_state(1).items())), "model")


def test_a_lost_manifest_is_no_rubbish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints whose manifests someone removed are damaged ones: reported, never removed, nor what else is there."""
    folders = [write(tmp_path, batches) for batches in (1, 2, 3)]
    for folder in folders[1:]:
        (folder / "manifest.json").unlink()
    (tmp_path / "batch-0000009").mkdir()
    (tmp_path / "batch-0000009" / "mydata.csv").touch()
    store = open_store(tmp_path)
    assert remove_rubbish(store) == []
    assert list_checkpoints(store) == [folder.name for folder in folders]
    assert latest_checkpoint(tmp_path) == folders[0]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all("manifest.json: it is missing" in line and str(folders[0]) in line for line in told)


def test_removing_is_known_as_such_at_every_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that is killed leaves a whole checkpoint, or rubbish that the next start removes."""

    class KilledError(Exception):
        pass

    def kill_at(number: int) -> Callable[[str], None]:
        passed = itertools.count()

        def hook(point: str) -> None:
            if next(passed) == number:
                raise KilledError

        return hook

    store = open_store(tmp_path)
    for number in itertools.count():
        name = write(tmp_path, number + 1).name
        for hidden in (".a", ".zzz"):
            (tmp_path / name / hidden).touch()
        monkeypatch.setattr(faults, "hook", kill_at(number))
        try:
            assert remove_checkpoint(store, name)
            break
        except KilledError:
            pass
        finally:
            monkeypatch.setattr(faults, "hook", None)
        if list_checkpoints(store) == [name]:
            Checkpoint.open_in(store, name).close()
            remove_rubbish(store)
            Checkpoint.open_in(store, name).close()
            assert remove_checkpoint(store, name)
        else:
            assert list_checkpoints(store) == []
            assert remove_rubbish(store) in ([name], [])
        assert list(tmp_path.iterdir()) == []
    assert number > 5


def test_what_a_link_leads_to_is_not_removed(tmp_path: Path) -> None:
    """A checkpoint that was moved away, with a link in its place, stays as it is where it was moved to."""
    folder = write(tmp_path / "root", 1)
    folder.rename(tmp_path / "archive")
    folder.symlink_to(tmp_path / "archive")
    before = sorted(path.name for path in (tmp_path / "archive").iterdir())
    with pytest.raises(OSError, match="link"):
        remove_checkpoint(open_store(tmp_path / "root"), folder.name)
    with pytest.raises(OSError, match="link"):
        open_store(tmp_path / "root").remove_unread(folder.name, "manifest.json")
    assert sorted(path.name for path in (tmp_path / "archive").iterdir()) == before
    Checkpoint.open(tmp_path / "archive").close()
