"""Folders that other processes read while they should be removed."""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainlab.storage import Store, open_store


@pytest.fixture
def read(tmp_path: Path) -> Store:
    """A store with a folder that can be held."""
    store = open_store(tmp_path)
    store.make_folder("step-1")
    store.write("step-1/weights", [b"weights"])
    store.publish("step-1/manifest.json", b"{}")
    return store


@contextlib.contextmanager
def reader(store: Store, *how: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-m", "tests.storage.holder", store.url, "step-1", "manifest.json", *how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_reads_stays(read: Store) -> None:
    """A checkpoint that another process is loading is not deleted under it, and is once that has ended."""
    with reader(read), reader(read) as second:
        assert not read.remove_unread("step-1", "manifest.json")
        second.kill()
        second.wait()
        assert not read.remove_unread("step-1", "manifest.json")
    assert set(read.files("step-1")) == {"weights", "manifest.json"}
    assert read.remove_unread("step-1", "manifest.json")
    assert read.folders() == []


def test_a_child_of_the_reader_keeps_nothing(read: Store) -> None:
    """Workers that a reader forked do not keep the folder once the reader has let go."""
    with reader(read, "released"):
        assert read.remove_unread("step-1", "manifest.json")


def test_a_child_does_not_let_go_for_its_parent(read: Store) -> None:
    """A worker that ends, or drops its copy of the reader's objects, does not end the reader's hold."""
    with reader(read, "child-released"):
        assert not read.remove_unread("step-1", "manifest.json")


def test_a_child_that_outlives_a_killed_reader_holds_nothing(read: Store) -> None:
    """A forgotten worker of a reader that was killed does not keep the folder for ever."""
    with reader(read, "child") as process:
        assert not read.remove_unread("step-1", "manifest.json")
        process.kill()
        process.wait()
        assert read.remove_unread("step-1", "manifest.json")


def test_a_reader_that_came_too_late_is_told(read: Store, tmp_path: Path) -> None:
    """A reader that waited while the folder was being removed learns that it is gone."""
    path = tmp_path / "step-1" / "manifest.json"
    answers: list[object] = []

    def come_too_late() -> None:
        try:
            answers.append(read.hold("step-1", "manifest.json"))
        except FileNotFoundError as error:
            answers.append(error)

    remover = os.open(path, os.O_RDWR)
    fcntl.flock(remover, fcntl.LOCK_EX)
    late = threading.Thread(target=come_too_late)
    late.start()
    while not waits_for_lock(path):
        pass
    path.unlink()
    os.close(remover)
    late.join()
    assert isinstance(answers[0], FileNotFoundError)


def waits_for_lock(path: Path) -> bool:
    """Whether some thread waits for a lock of the file, as the kernel tells."""
    inode = f":{path.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_writers_do_not_wait_for_readers(read: Store) -> None:
    """A manifest can be published again while its folder is read."""
    with reader(read):
        read.publish("step-1/manifest.json", b"new")
    assert read.read("step-1/manifest.json", 10) == b"new"
