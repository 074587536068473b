"""Disks that are full or read-only, and folders without permission: real ones."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainlab.storage import Checksum, open_store

NOBODY = 65534


def test_a_full_disk_is_told(small_disk: Path) -> None:
    """A file that does not fit is an error that says so, and what was there before is whole."""
    store = open_store(small_disk / "store")
    store.make_folder("step-1")
    store.write("step-1/weights", [b"weights"])
    with pytest.raises(OSError) as caught:
        store.write("step-1/optimizer", [memoryview(bytearray(4 * 2**20))])
    assert caught.value.errno == errno.ENOSPC
    assert store.read("step-1/weights", 10) == b"weights"
    store.remove("step-1/optimizer")
    store.write("step-1/optimizer", [b"small"])


def test_a_full_disk_keeps_what_was_published(small_disk: Path) -> None:
    """A manifest for which there is no room leaves the one before it, and no half of itself."""
    store = open_store(small_disk / "store")
    store.make_folder("step-1")
    store.publish("step-1/manifest.json", b"old")
    with pytest.raises(OSError) as caught:
        store.publish("step-1/manifest.json", bytes(4 * 2**20))
    assert caught.value.errno == errno.ENOSPC
    assert store.files("step-1") == {"manifest.json": 3}
    assert store.read("step-1/manifest.json", 10) == b"old"


def test_a_disk_that_became_read_only_is_told_and_read(small_disk: Path) -> None:
    """On a read-only disk writing and removing fail by their reason, and what is there can be held and read."""
    store = open_store(small_disk / "store")
    store.make_folder("step-1")
    store.publish("step-1/manifest.json", b"{}")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for ask in (
        lambda: store.make_folder("step-2"),
        lambda: store.write("step-1/weights", [b"weights"]),
        lambda: store.publish("step-1/manifest.json", b"{}"),
        lambda: store.remove_folder("step-1"),
        lambda: store.remove_unread("step-1", "manifest.json"),
    ):
        with pytest.raises(OSError) as caught:
            ask()
        assert caught.value.errno == errno.EROFS
    release = store.hold("step-1", "manifest.json")
    with store.open("step-1/manifest.json", size=2, checksum=Checksum().text) as file:
        assert file.read() == b"{}"
    release()


def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    """Where one may not write, every way of writing fails by its reason and leaves what is there."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "manifest.json").write_bytes(b"{}")
    (tmp_path / "step-1" / "hidden").write_bytes(b"hidden")
    (tmp_path / "step-1" / "hidden").chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    calls = (
        "store.make_folder('step-2')",
        "store.write('step-1/weights', [b'weights'])",
        "store.publish('step-1/manifest.json', b'new')",
        "store.remove('step-1/manifest.json')",
        "store.remove_folder('step-1')",
        "store.remove_unread('step-1', 'manifest.json')",
        "store.read('step-1/hidden', 10)",
        "store.read('step-1/manifest.json', 10)",
    )
    denied = errno.EACCES
    assert numbers_as_nobody(tmp_path, calls) == [denied, denied, denied, denied, denied, denied, denied, 0]
    assert open_store(tmp_path).files("step-1") == {"manifest.json": 2, "hidden": 6}


def numbers_as_nobody(folder: Path, calls: Sequence[str]) -> list[int]:
    """The number of the error with which each call ends in a process that has no rights; 0 for none."""
    program = f"""
import os, sys
from trainlab.storage import open_store
store = open_store(sys.argv[1])
os.setuid({NOBODY})
for call in {calls!r}:
    number = 0
    try:
        eval(call)
    except OSError as error:
        number = error.errno
    print(number)
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.splitlines()]
