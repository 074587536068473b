"""What holds for a store in a folder of this machine."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainlab.errors import StorageError
from trainlab.storage import Checksum, faults, open_store

ANY = Checksum().text


def test_links_are_refused(tmp_path: Path) -> None:
    """A link in a store, to a file or a folder, leads nowhere: reading it is an error that names it."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "store" / "step-1").mkdir(parents=True)
    (tmp_path / "store" / "step-1" / "weights").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "step-2").symlink_to(tmp_path)
    store = open_store(tmp_path / "store")
    assert store.folders() == ["step-1"]
    for name in ("step-1/weights", "step-2/secret"):
        with pytest.raises(StorageError, match=f"{name} is a link"):
            store.open(name, size=6, checksum=ANY)
        with pytest.raises(StorageError, match=f"{name} is a link"):
            store.read(name, 100)
        with pytest.raises(StorageError, match=f"{name} is a link"):
            store.size(name)
    with pytest.raises(StorageError, match="weights is not a file but a link"):
        store.files("step-1")
    for ask in (lambda: store.files("step-2"), lambda: store.hold("step-2", "secret")):
        with pytest.raises(StorageError, match="is a link"):
            ask()


def test_a_store_may_be_reached_by_a_link(tmp_path: Path) -> None:
    """The folder that a person names may be a link, as a scratch disk often is."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    store = open_store(tmp_path / "runs" / "first")
    store.make_folder("step-1")
    store.write("step-1/weights", [b"weights"])
    assert store.read("step-1/weights", 10) == b"weights"
    assert store.files("step-1") == {"weights": 7}


def test_removal_follows_no_link(tmp_path: Path) -> None:
    """A link in a folder that is removed is removed itself, and not what it leads to."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"kept")
    (tmp_path / "store" / "step-1" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "step-1" / "deep" / "folder").symlink_to(tmp_path / "kept")
    (tmp_path / "store" / "step-1" / "manifest.json").symlink_to(tmp_path / "kept" / "file")
    (tmp_path / "store" / "step-2").symlink_to(tmp_path / "kept")
    store = open_store(tmp_path / "store")
    assert store.remove_unread("step-1", "manifest.json")
    with pytest.raises(StorageError, match="step-2 is a link"):
        store.remove_folder("step-2")
    assert (tmp_path / "kept" / "file").read_bytes() == b"kept"
    assert store.folders() == []


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_only_files_are_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, a socket or a folder in place of a file is an error that says so, and is not waited for."""
    monkeypatch.chdir(tmp_path)
    Path("step-1").mkdir()
    if kind == "pipe":
        os.mkfifo("step-1/weights")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("step-1/weights")
    else:
        Path("step-1/weights").mkdir()
    store = open_store(tmp_path)
    with pytest.raises(StorageError, match=f"not a file but a {kind}"):
        store.size("step-1/weights")
    with pytest.raises(OSError):
        store.open("step-1/weights", size=1, checksum=ANY)
    if kind != "folder":
        with pytest.raises(StorageError, match=f"not a file but a {kind}"):
            store.files("step-1")


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    """Writing where there is a file, or a link to one, is an error that leaves it as it was."""
    (tmp_path / "file").write_bytes(b"first")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    store = open_store(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            store.write(name, [b"second"])
    assert (tmp_path / "file").read_bytes() == b"first"
    assert not (tmp_path / "nowhere").exists()


def test_a_write_into_a_folder_that_was_removed_fails(tmp_path: Path) -> None:
    """A folder removed by somebody while it is written is not made again with only the later files in it."""
    store = open_store(tmp_path / "store")
    store.make_folder("step-1")
    store.write("step-1/weights", [b"weights"])
    store.remove_folder("step-1")
    with pytest.raises(FileNotFoundError):
        store.write("step-1/optimizer", [b"state"])
    with pytest.raises(FileNotFoundError):
        store.publish("step-1/manifest.json", b"{}")
    assert store.folders() == []


def test_deep_folders_are_listed_and_removed(tmp_path: Path) -> None:
    """A folder nested deeper than Python can recurse is no problem."""
    depth = 1_200
    here = os.open(tmp_path, os.O_RDONLY)
    start = here
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        if here != start:
            os.close(here)
        here = below
    os.close(here)
    os.close(start)
    store = open_store(tmp_path)
    assert store.files("d") == {}
    store.remove_folder("d")
    assert store.folders() == []


def test_everything_is_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut never leaves a manifest whose files are not on the disk: each is synced before what relies on it."""
    root = tmp_path / "store"
    happened: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)
        happened.append(f"sync {'temporary' if name.endswith('.tmp') else name}")
        fsync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        happened.append(f"rename to {os.path.relpath(target, tmp_path)}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    store = open_store(root)
    store.make_folder("step-1")
    assert happened == ["sync .", "sync store"]
    happened.clear()
    store.write("step-1/weights", [b"weights"])
    store.sync_folder("step-1")
    assert happened == ["sync store/step-1/weights", "sync store/step-1"]
    happened.clear()
    store.publish("step-1/manifest.json", b"{}")
    assert happened == ["sync temporary", "sync store", "rename to store/step-1/manifest.json", "sync store/step-1"]
    happened.clear()
    store.remove_unread("step-1", "manifest.json")
    assert happened == ["sync store/step-1"]


POINTS = "manifest written,manifest synced,published,published durably".split(",")


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_while_publishing_leaves_the_old_or_the_new(tmp_path: Path, point: str) -> None:
    """Whoever reads a published file reads all of the old one or all of the new one, whenever the writer was killed."""
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "manifest.json").write_bytes(b"old")
    killed_at(point, tmp_path, "store.publish('step-1/manifest.json', b'new' * 1000)")
    published = open_store(tmp_path).read("step-1/manifest.json", 10_000)
    assert published == (b"old" if POINTS.index(point) < 2 else b"new" * 1000)


@pytest.mark.parametrize("point", ["first removed", "part removed", "folder removed"])
def test_a_kill_while_removing_leaves_no_manifest(tmp_path: Path, point: str) -> None:
    """A folder of which a part was removed has no manifest, so that nobody takes the rest for a whole."""
    (tmp_path / "step-1" / "deep").mkdir(parents=True)
    for name in ("manifest.json", "weights", "deep/optimizer"):
        (tmp_path / "step-1" / name).write_bytes(b"content")
    killed_at(point, tmp_path, "store.remove_unread('step-1', 'manifest.json')")
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    kept = {"first removed": 2, "part removed": 1, "folder removed": 0}[point]
    assert len(left) == kept
    assert "manifest.json" not in left
    assert open_store(tmp_path).remove_unread("step-1", "manifest.json")
    assert not (tmp_path / "step-1").exists()


def test_the_instants_of_a_checkpoint_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of kills can stop a writer at each of its steps, in this order."""
    passed: list[str] = []
    monkeypatch.setattr(faults, "hook", passed.append)
    store = open_store(tmp_path)
    store.make_folder("step-1")
    store.write("step-1/weights", [b"a", memoryview(bytearray(20 * 2**20))])
    store.sync_folder("step-1")
    store.publish("step-1/manifest.json", b"{}")
    assert passed == [
        "folder made",
        "file begun",
        *["piece written"] * 4,
        "file written",
        "file synced",
        "folder synced",
        "manifest begun",
        "manifest written",
        "manifest synced",
        "published",
        "published durably",
    ]


def killed_at(point: str, folder: Path, call: str) -> None:
    """Run a call on a store in a process that is killed at a named instant."""
    program = (
        "import os, signal, sys\n"
        "from trainlab.storage import faults, open_store\n"
        f"faults.hook = lambda point: point == {point!r} and os.kill(os.getpid(), signal.SIGKILL)\n"
        "store = open_store(sys.argv[1])\n"
        f"{call}\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert ended.returncode == -signal.SIGKILL
