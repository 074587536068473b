import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.ranks import save, snapshots, write_sharded, writers
from tests.checkpoint.samples import rewrite, same
from trainlab.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Entry,
    Retention,
    SaveMode,
    Snapshot,
    Write,
    latest_checkpoint,
    list_checkpoints,
)
from trainlab.checkpoint.snapshot import Staging
from trainlab.checkpoint.writer import WriteAbortedError
from trainlab.errors import CheckpointError
from trainlab.schedule import Batch
from trainlab.storage import Store, faults, open_store

ALL = Retention(keep_last=None)
LAST = Retention(keep_last=1, keep_best=0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind that needs no server."""
    return open_store(tmp_path / "checkpoints" if request.param == "local" else f"memory://{uuid.uuid4()}/checkpoints")


class Gate:
    """A named instant of a write at which the writer, a thread or a process, waits until it is let through."""

    def __init__(self, point: str) -> None:
        self._point = point
        self._opened, self._open = os.pipe()
        self._told, self._tell = os.pipe()

    def __call__(self, point: str) -> None:
        if point == self._point:
            os.write(self._tell, f"{os.getpid()} {threading.get_ident()}\n".encode())
            os.read(self._opened, 1)

    def reached(self) -> tuple[int, int]:
        """Wait until the writer is there, and tell its process and thread."""
        process, thread = os.read(self._told, 100).splitlines()[0].split()
        return int(process), int(thread)

    def open(self) -> None:
        """Let it through, now and from now on."""
        os.write(self._open, bytes(100))

    def close(self) -> None:
        """Let go of the pipes."""
        for descriptor in (self._opened, self._open, self._told, self._tell):
            os.close(descriptor)


@pytest.fixture
def gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate where a file is begun, or at the point that the test names."""
    gate = Gate(getattr(request, "param", "file begun"))
    monkeypatch.setattr(faults, "hook", gate)
    yield gate
    gate.close()


def snapshot_of(weight: torch.Tensor, state: Any = None) -> Snapshot:
    """A snapshot of one weight, and as state of 1 added to it, unless told."""
    state = {"moment": weight + 1} if state is None else state
    return Snapshot(weights={"model": {"0": {"w": weight}}}, state=state, details={"progress": {"batches_trained": 1}})


def start(writer: CheckpointWriter, weight: torch.Tensor, batches: int = 1, **how: Any) -> Write:
    """Start to write a checkpoint."""
    entry = Entry(writer.next_name(batches), 0, batches, 0)
    return writer.start(snapshot_of(weight), entry, **{"wait": False, **how})


def settled(writer: CheckpointWriter) -> Write:
    """The write that was started, when it is done, and has not failed."""
    write = writer.settle(wait=True)
    assert write is not None
    assert write.error is None
    return write


def failed(writer: CheckpointWriter) -> BaseException:
    """Why the write failed that was started."""
    write = writer.settle(wait=True)
    assert write is not None
    assert write.error is not None
    return write.error


def weight_in(store: Store, name: str) -> torch.Tensor:
    """The weight in a checkpoint of which every file is whole."""
    with Checkpoint.open_in(store, name) as checkpoint:
        weight = checkpoint.weights()["0"]["w"]
        assert same(checkpoint.state(), {"moment": weight + 1})
    return weight


def test_an_asynchronous_checkpoint_is_that_of_its_instant(store: Store, gate: Gate) -> None:
    """Training goes on, and changes its tensors, while another thread writes what they were."""
    writer = CheckpointWriter(store)
    weight = torch.arange(1000.0)
    start(writer, weight)
    process, thread = gate.reached()
    assert process == os.getpid()
    assert thread != threading.get_ident()
    weight.fill_(-1)
    assert writer.is_busy
    assert writer.settle() is None
    assert list_checkpoints(store) == []
    gate.open()
    assert settled(writer).location == store.location("batch-0000001")
    assert torch.equal(weight_in(store, "batch-0000001"), torch.arange(1000.0))
    assert not writer.is_busy
    assert writer.settle(wait=True) is None


@pytest.mark.skipif(sys.platform != "linux", reason="checkpoints are forked on Linux only")
def test_a_forked_checkpoint_is_that_of_its_instant(tmp_path: Path, gate: Gate) -> None:
    """Training goes on, and changes its tensors, while a child process writes what they were, and ends."""
    store = open_store(tmp_path)
    writer = CheckpointWriter(store, mode="fork")
    # One that is not contiguous, which takes a copy.
    weight = torch.arange(1000.0).view(10, 100).T
    expected = weight.clone()
    start(writer, weight)
    process, _ = gate.reached()
    assert process != os.getpid()
    weight.fill_(-1)
    assert writer.is_busy
    assert writer.settle() is None
    gate.open()
    settled(writer)
    assert torch.equal(weight_in(store, "batch-0000001"), expected)
    with pytest.raises(ChildProcessError):
        os.waitpid(process, os.WNOHANG)


@pytest.mark.skipif(sys.platform != "linux", reason="checkpoints are forked on Linux only")
@pytest.mark.parametrize(("place", "reason"), [("local", "a tensor is in shared memory"), ("memory", "a remote store")])
def test_where_a_fork_would_be_wrong_a_copy_is_made(
    tmp_path: Path, place: str, reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that a child would see change, and connections that it would break, are not forked; that is told once."""
    store = open_store(tmp_path if place == "local" else f"memory://{uuid.uuid4()}")
    writer = CheckpointWriter(store, mode="fork")
    weight = torch.arange(10.0)
    if place == "local":
        weight.share_memory_()
    staged: list[str] = []
    monkeypatch.setattr(faults, "hook", staged.append)
    for batches in (1, 2):
        start(writer, weight, batches)
        weight += 1
        settled(writer)
    assert torch.equal(weight_in(store, "batch-0000002"), torch.arange(10.0) + 1)
    assert staged.count("staged") == 2
    assert "forked" not in staged
    assert [reason in record.message for record in caplog.records if record.levelno == logging.WARNING] == [True]


@pytest.mark.parametrize(("mode", "wait"), [("sync", False), ("async", True), ("fork", True)])
def test_a_checkpoint_that_is_waited_for_is_durable_at_once(store: Store, mode: SaveMode, wait: bool) -> None:
    """In mode sync, and at the end of a run, the checkpoint is there when the call returns."""
    writer = CheckpointWriter(store, mode=mode)
    weight = torch.randn(5)
    write = start(writer, weight, wait=wait)
    assert write.is_done
    assert torch.equal(weight_in(store, "batch-0000001"), weight)
    assert settled(writer) is write


@pytest.mark.parametrize("gate", ["file begun", "staged"], indirect=True)
def test_an_aborted_write_ends_soon_and_leaves_nothing(tmp_path: Path, gate: Gate) -> None:
    """A second Ctrl-C does not wait for the writing of a large model, and what was begun is gone."""
    store = open_store(tmp_path)
    writer = CheckpointWriter(store)
    opener = threading.Thread(target=lambda: (gate.reached(), writer.abort(), gate.open()))
    opener.start()
    start(writer, torch.ones(10))
    assert isinstance(failed(writer), WriteAbortedError)
    opener.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="checkpoints are forked on Linux only")
@pytest.mark.parametrize("by_us", [True, False])
def test_a_child_that_is_killed_leaves_nothing(tmp_path: Path, gate: Gate, by_us: bool) -> None:
    """A forked child that is aborted, or killed for lack of memory, is an error; what it had begun is gone."""
    store = open_store(tmp_path)
    writer = CheckpointWriter(store, mode="fork")
    start(writer, torch.ones(10))
    process, _ = gate.reached()
    if by_us:
        writer.abort()
    else:
        os.kill(process, signal.SIGKILL)
    error = failed(writer)
    assert isinstance(error, CheckpointError)
    assert ("given up" if by_us else "ended with status -9") in str(error)
    assert list(tmp_path.iterdir()) == []
    gate.open()
    if not by_us:
        start(writer, torch.ones(10), 2)
        settled(writer)
        assert list_checkpoints(store) == ["batch-0000002"]


@pytest.mark.parametrize("mode", ["async", "sync", "fork"])
def test_a_full_disk_is_an_error_and_the_next_checkpoint_is_tried(small_disk: Path, mode: SaveMode) -> None:
    """A checkpoint that finds no room says so when it is settled and leaves nothing; a smaller one is then written."""
    store = open_store(small_disk / "checkpoints")
    writer = CheckpointWriter(store, mode=mode, retention=LAST)
    start(writer, torch.ones(10), 1)
    settled(writer)
    start(writer, torch.ones(10**6), 2)
    error = failed(writer)
    assert isinstance(error, CheckpointError)
    assert "No space left on device" in str(error)
    assert str(store.location("batch-0000002")) in str(error)
    assert store.folders() == ["batch-0000001"]
    start(writer, torch.ones(20), 3)
    settled(writer)
    assert store.folders() == ["batch-0000003"]
    assert weight_in(store, "batch-0000003").shape == (20,)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_folder_removed_under_a_write_is_an_error(
    tmp_path: Path, mode: SaveMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who removes the checkpoints while one is written loses that one; the next makes the folder anew."""
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(open_store(folder), mode=mode)
    monkeypatch.setattr(faults, "hook", lambda point: shutil.rmtree(folder) if point == "file synced" else None)
    start(writer, torch.ones(10))
    error = failed(writer)
    assert isinstance(error, CheckpointError)
    assert "No such file or directory" in str(error)
    assert not folder.exists()
    monkeypatch.setattr(faults, "hook", None)
    start(writer, torch.ones(10), 2)
    settled(writer)
    assert torch.equal(weight_in(open_store(folder), "batch-0000002"), torch.ones(10))


@pytest.mark.parametrize("mode", ["async", "sync", "fork"])
def test_a_folder_without_permission_is_an_error(mode: SaveMode) -> None:
    """A folder that may not be written is an error with its path, and is written once it may be."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        writer = CheckpointWriter(store, mode=mode)
        os.chmod(folder, 0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)  # nobody
        try:
            start(writer, torch.ones(10))
            error = failed(writer)
        finally:
            if is_root:
                os.seteuid(0)
        assert isinstance(error, CheckpointError)
        assert f"Permission denied. Received: {folder}" in str(error)
        os.chmod(folder, 0o755)
        start(writer, torch.ones(10), 2)
        settled(writer)
        assert store.folders() == ["batch-0000002"]


def test_where_there_is_no_memory_for_a_copy_training_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A copy that does not fit into memory is not taken for a checkpoint that was written, and the next is tried."""
    writer = CheckpointWriter(open_store(tmp_path))
    snapshot = snapshot_of(torch.ones(1).expand(2**50), state={})
    write = writer.start(snapshot, Entry(writer.next_name(1), 0, 1, 0), wait=False)
    assert write.is_done
    assert "Training waits while" in caplog.text
    assert "memory" in str(failed(writer))
    assert writer.names == []
    start(writer, torch.ones(10), 2)
    settled(writer)
    assert writer.names == ["batch-0000002"]


def test_an_error_of_the_copy_is_raised_and_no_checkpoint_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that fails while its tensors are copied is an error at once, and nothing seems to have been written."""

    def fail(point: str) -> None:
        if point == "staged":
            raise RuntimeError("the device is lost")

    writer = CheckpointWriter(open_store(tmp_path))
    monkeypatch.setattr(faults, "hook", fail)
    with pytest.raises(RuntimeError, match="the device is lost"):
        start(writer, torch.ones(3))
    assert writer.settle(wait=True) is None
    assert not writer.is_busy
    monkeypatch.setattr(faults, "hook", None)
    start(writer, torch.ones(3), 2)
    settled(writer)


def test_old_checkpoints_are_removed_only_when_the_new_one_is_durable(store: Store) -> None:
    """Until the newer one is committed the older one is whole; if it cannot be committed, that one stays."""
    refusing = OSError("the run's folder cannot be written")
    seen = []

    def check() -> None:
        seen.append([float(weight_in(store, name)[0]) for name in list_checkpoints(store)])
        if len(seen) == 3:
            raise refusing

    writer = CheckpointWriter(store, retention=LAST, before_publish=check)
    start(writer, torch.tensor([1.0]), 1)
    settled(writer)
    start(writer, torch.tensor([2.0]), 2)
    settled(writer)
    assert store.folders() == writer.names == ["batch-0000002"]
    start(writer, torch.tensor([3.0]), 3)
    error = failed(writer)
    assert error.__cause__ is refusing
    assert "the run's folder cannot be written" in str(error)
    assert store.folders() == writer.names == ["batch-0000002"]
    assert seen == [[], [1.0], [2.0]]


def test_a_checkpoint_that_another_process_reads_is_removed_later(tmp_path: Path) -> None:
    """A checkpoint that an evaluation has open stays until it is closed, and goes with the next chance."""
    store = open_store(tmp_path)
    writer = CheckpointWriter(store, retention=LAST)
    start(writer, torch.ones(10), 1)
    settled(writer)
    # What opening a checkpoint does, without the import of torch.
    reader = (
        "import sys; from trainlab.storage import open_store\n"
        "hold = open_store(sys.argv[1]).hold('batch-0000001', 'manifest.json'); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", reader, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        start(writer, torch.ones(10), 2)
        settled(writer)
        assert store.folders() == ["batch-0000001", "batch-0000002"]
        weight_in(store, "batch-0000001")
        process.communicate()
    start(writer, torch.ones(10), 3)
    settled(writer)
    assert store.folders() == ["batch-0000003"]


def test_a_resumed_run_goes_on_with_what_it_finds(store: Store) -> None:
    """A new writer counts on from the checkpoints that are there, keeps the rules for them, and takes no name twice."""
    details = {"batches_trained": 10, "last_validation_batch": 10}
    first = CheckpointWriter(store, retention=ALL)
    for batches, loss in ((10, 0.5), (20, 0.1), (30, 0.3)):
        progress = {**details, "batches_trained": batches, "last_validation_batch": batches}
        progress["validation_metrics"] = {"loss": loss}
        snapshot = Snapshot(weights={}, state={}, details={"progress": progress})
        first.start(snapshot, Entry.of(first.next_name(batches), 0, progress), wait=True)
        settled(first)
    resumed = CheckpointWriter(store, retention=Retention(keep_last=1, keep_best=1), metric="loss")
    assert resumed.next_name(30) == "batch-0000030.1"
    start(resumed, torch.ones(1), 30)
    write = settled(resumed)
    assert write.entry.sequence == 4
    assert resumed.names == store.folders() == ["batch-0000020", "batch-0000030.1"]


def test_what_cannot_be_read_is_neither_removed_nor_counted_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged checkpoint, and one of a later version, are left as they are, and what comes is newer than they."""
    store = open_store(tmp_path)
    writer = CheckpointWriter(store, retention=ALL)
    for batches in range(1, 5):
        start(writer, torch.ones(1), batches)
        settled(writer)
    rewrite(tmp_path / "batch-0000004", lambda manifest: manifest.update(format_version=1000))
    (tmp_path / "batch-0000001" / "manifest.json").write_text("{")
    writer = CheckpointWriter(store, retention=LAST)
    assert not {"batch-0000001", "batch-0000004"} & set(writer.names)
    assert sum("is left as it is" in record.message for record in caplog.records) == 2
    start(writer, torch.ones(1), 5)
    assert settled(writer).entry.sequence == 5
    assert store.folders() == ["batch-0000001", "batch-0000004", "batch-0000005"]
    assert list_checkpoints(store)[:2] == ["batch-0000004", "batch-0000005"]


def test_every_nth_is_kept_for_ever(store: Store) -> None:
    """Checkpoints that a rule keeps for ever are there at the end of the run."""
    writer = CheckpointWriter(store, mode="sync", retention=Retention(keep_last=1, keep_best=0, keep_every=Batch(20)))
    for batches in range(5, 66, 10):
        start(writer, torch.ones(1), batches)
        settled(writer)
    assert store.folders() == ["batch-0000025", "batch-0000045", "batch-0000065"]


def test_a_hook_adds_files(store: Store) -> None:
    """What a hook writes beside the data, in folders too, is part of the checkpoint, on any store."""

    def add(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        assert not (folder / "manifest.json").exists()
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "words.txt").write_text("one two")
        (folder / "empty.txt").touch()

    writer = CheckpointWriter(store)
    start(writer, torch.ones(3), before_commit=add)
    settled(writer)
    assert store.read("batch-0000001/a/b/words.txt", 100) == b"one two"
    with Checkpoint.open_in(store, "batch-0000001") as checkpoint:
        assert {"a/b/words.txt", "empty.txt", "model.safetensors"} < checkpoint.files.keys()
        assert checkpoint.files["a/b/words.txt"].size == 7


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "without model.safetensors"),
        (lambda folder: (folder / "manifest.json").touch(), "file of this name"),
        (lambda folder: (folder / "link").symlink_to("/etc/hostname"), "link"),
    ],
)
def test_a_hook_cannot_spoil_a_checkpoint(store: Store, spoil: Callable[[Path], object], told: str) -> None:
    """A hook that takes away what was written, or leaves what cannot be stored, is told so; nothing is left."""
    writer = CheckpointWriter(store)
    start(writer, torch.ones(3), before_commit=spoil)
    error = failed(writer)
    assert isinstance(error, CheckpointError)
    assert told in str(error)
    assert store.folders() == []
    start(writer, torch.ones(3), 2)
    settled(writer)


def test_an_error_of_a_hook_is_the_users_own(store: Store) -> None:
    """What a hook raises arrives as it is, and nothing is left of the checkpoint."""
    mine = OSError("mine")

    def fail(folder: Path) -> None:
        raise mine

    writer = CheckpointWriter(store)
    start(writer, torch.ones(3), before_commit=fail)
    assert failed(writer) is mine
    assert store.folders() == []


def test_ctrl_c_in_a_hook_is_raised_at_once_and_leaves_nothing(store: Store) -> None:
    """An interrupt is not kept for later."""

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    writer = CheckpointWriter(store)
    with pytest.raises(KeyboardInterrupt):
        start(writer, torch.ones(3), before_commit=interrupt)
    assert store.folders() == []


def staged_content(staging: Staging, weights: Mapping[str, torch.Tensor], state: Any) -> dict[str, bytes]:
    """The files of a checkpoint, as they come from the staging memory after the tensors have changed."""
    tensors = [tensor for tensor in [*weights.values(), *state.values()] if isinstance(tensor, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    snapshot = Snapshot(weights={"model": {"0": weights}}, state=state, details={})
    contents = snapshot.contents(staging.copy(snapshot))
    for tensor in tensors:
        tensor.zero_()
    content = {name: b"".join(pieces) for name, pieces in contents}
    for tensor, value in zip(tensors, before, strict=True):
        tensor.copy_(value)
    return content


def direct_content(weights: Mapping[str, torch.Tensor], state: Any) -> dict[str, bytes]:
    """The files of a checkpoint, as they are written without a copy."""
    snapshot = Snapshot(weights={"model": {"0": weights}}, state=state, details={})
    return {name: b"".join(pieces) for name, pieces in snapshot.contents()}


def test_staging_memory_is_taken_once() -> None:
    """From the second checkpoint on, and from the first if it was reserved, no new memory is taken."""
    snapshot = snapshot_of(torch.ones(1000))
    staging = Staging()
    staging.reserve(snapshot.size)
    reserved = staging.copy(snapshot)[0].data_ptr()
    assert staging.copy(snapshot_of(torch.ones(1000)))[0].data_ptr() == reserved
    assert staging.copy(snapshot_of(torch.ones(10, 7)))[0].data_ptr() == reserved
    assert staging.copy(snapshot_of(torch.ones(1000)))[0].data_ptr() == reserved


def test_what_is_staged_is_what_would_be_written() -> None:
    """Whatever changes from one checkpoint to the next – shapes, dtypes, number, file – the copy is right."""
    a, b, c = torch.arange(5.0), torch.arange(3.0) + 10, torch.arange(4, dtype=torch.int16)
    staging = Staging()
    for weights, state in [
        ({"a": a}, {"b": b}),
        ({"a": a, "b": b}, {}),
        ({"a": a}, {"b": b}),
        ({}, {"a": a, "b": b}),
        ({"a": a.double(), "c": c, "z": torch.zeros(0)}, {"b": b.bfloat16(), "flag": torch.tensor(True)}),
        ({"a": torch.randn(3, 50, dtype=torch.complex64).T}, {"b": b, "a": a, "number": 3}),
        ({"a": torch.ones(6)[::2]}, {"tied": a, "a": a}),
        ({}, {}),
    ]:
        assert staged_content(staging, weights, dict(state)) == direct_content(weights, state)


def test_a_new_start_removes_nothing_while_the_newest_may_be_damaged(store: Store) -> None:
    """What a killed process did not come to remove goes at the next start, but only if the newest was found whole."""
    first = CheckpointWriter(store, mode="sync", retention=ALL)
    for batches in (1, 2):
        start(first, torch.ones(2), batches)
        settled(first)
    older, newest = list_checkpoints(store)
    for whole in (None, store.location(older)):
        CheckpointWriter(store, retention=LAST, whole=whole)
        assert list_checkpoints(store) == [older, newest]
    CheckpointWriter(store, retention=LAST, whole=store.location(newest))
    assert list_checkpoints(store) == [newest]


DAMAGE: dict[str, Callable[[Store, str], None]] = {
    "lost weights": lambda store, name: store.remove(f"{name}/model.safetensors"),
    "lost manifest": lambda store, name: store.remove(f"{name}/manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_do_not_take_the_place_of_whole_ones(store: Store, keep: int, damage: str) -> None:
    """With the newest damaged, the one resumed from stays until enough whole ones are newer; no damaged one goes."""
    first = CheckpointWriter(store, mode="sync", retention=ALL)
    for batches in (1, 2, 3, 4):
        start(first, torch.ones(2), batches)
        settled(first)
    damaged = list_checkpoints(store)[2:]
    for name in damaged:
        DAMAGE[damage](store, name)
    whole = latest_checkpoint(store)
    assert whole == store.location("batch-0000002")
    resumed = CheckpointWriter(store, mode="sync", retention=Retention(keep_last=keep, keep_best=0), whole=whole)
    own: list[str] = []
    for batches in (3, 4, 5):
        start(resumed, torch.ones(2), batches)
        own.append(settled(resumed).entry.name)
        expected = ["batch-0000002", *own][-keep:]
        assert resumed.names == expected
        assert set(store.folders()) == {*damaged, *expected}
    assert latest_checkpoint(store) == store.location(own[-1])


@pytest.mark.parametrize("saves_before_it_ends", [1, 2])
def test_damage_is_known_to_later_processes_too(store: Store, saves_before_it_ends: int) -> None:
    """After another start a damaged checkpoint takes no place of a whole one either, until it is older than enough."""
    first = CheckpointWriter(store, mode="sync", retention=ALL)
    for batches in (1, 2, 3):
        start(first, torch.ones(2), batches)
        settled(first)
    for name in ("batch-0000002", "batch-0000003"):
        store.remove(f"{name}/model.safetensors")
    rules = Retention(keep_last=3, keep_best=0)
    second = CheckpointWriter(store, mode="sync", retention=rules, whole=latest_checkpoint(store))
    for batches in range(4, 4 + saves_before_it_ends):
        start(second, torch.ones(2), batches)
        settled(second)
    third = CheckpointWriter(store, mode="sync", retention=rules, whole=latest_checkpoint(store))
    assert "batch-0000001" in third.names and latest_checkpoint(store) == store.location(third.names[-1])
    for batches in (6, 7, 8):
        start(third, torch.ones(2), batches)
        settled(third)
        whole = [name for name in third.names if weight_in(store, name) is not None]
        assert len(whole) >= 3
    assert third.names == ["batch-0000006", "batch-0000007", "batch-0000008"]


def test_a_damaged_one_is_neither_the_best_nor_the_first_of_its_stretch(store: Store) -> None:
    """What is known to be damaged is kept by no rule, so that the best and the first of the whole ones are."""

    def saved(writer: CheckpointWriter, batches: int, loss: float) -> str:
        progress = {"batches_trained": batches, "last_validation_batch": batches, "validation_metrics": {"loss": loss}}
        snapshot = Snapshot(weights={"model": {"0": {}}}, state={}, details={"progress": progress})
        writer.start(snapshot, Entry.of(writer.next_name(batches), 0, progress), wait=True)
        return settled(writer).entry.name

    first = CheckpointWriter(store, mode="sync", retention=ALL)
    names = [saved(first, batches, loss) for batches, loss in ((8, 2.0), (9, 3.0), (10, 1.0))]
    store.remove(f"{names[-1]}/model.safetensors")
    rules = Retention(keep_last=1, keep_best=1, keep_every=Batch(10))
    resumed = CheckpointWriter(
        store, mode="sync", retention=rules, metric="loss", whole=store.location("batch-0000009")
    )
    own = [saved(resumed, batches, 4.0) for batches in (10, 11, 12)]
    assert resumed.names == ["batch-0000008", own[0], own[2]]
    assert set(store.folders()) == {"batch-0000008", "batch-0000010", own[0], own[2]}


def test_damaged_ones_do_not_count_on_several_ranks(tmp_path: Path) -> None:
    """Of several ranks none counts the damaged ones, and the one that was resumed from stays."""
    for batches in (1, 2):
        write_sharded(tmp_path, 2, batches=batches)
    (tmp_path / "batch-0000002" / "rank-1" / "state.json").write_text("{}")
    whole = latest_checkpoint(tmp_path)
    made = writers(tmp_path, 2, whole=whole)
    assert [write.error for write in save(made, snapshots(2), 2)] == [None, None]
    assert [writer.names for writer in made] == [["batch-0000001", "batch-0000002.1"]] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"batch-0000001", "batch-0000002", "batch-0000002.1"}
