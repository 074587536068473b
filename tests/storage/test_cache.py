"""The local copies of remote files."""

import fcntl
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.storage.s3 import FaultyProxy, faulty_s3_store
from trainlab.errors import InvalidValueError, StorageError
from trainlab.storage import Checksum, Store, open_store

CONTENTS = {name: name.encode() * 400_000 for name in "abc"}


@pytest.fixture
def remote(cache: Path, no_pauses: None) -> Iterator[tuple[Store, FaultyProxy]]:
    """A remote store with three files, and the proxy that counts what is fetched."""
    with faulty_s3_store() as (url, options, proxy):
        store = open_store(url, options)
        for name, content in CONTENTS.items():
            store.write(name, [content])
        yield store, proxy


def checksum(data: bytes) -> str:
    state = Checksum()
    state.update(data)
    return state.text


def read(store: Store, name: str) -> bytes:
    content = CONTENTS[name]
    with store.open(name, size=len(content), checksum=checksum(content)) as file:
        return file.read()


def entry_of(cache: Path, name: str) -> Path:
    return cache / f"{checksum(CONTENTS[name]).replace(':', '-')}-400000"


def kept(cache: Path) -> str:
    """Which files have a copy."""
    entries = {entry_of(cache, name): name for name in CONTENTS}
    return "".join(sorted(entries[path] for path in cache.iterdir()))


def test_a_file_is_fetched_once(remote: tuple[Store, FaultyProxy]) -> None:
    """A file that was read before is read from this machine, also under another name."""
    store, proxy = remote
    store.write("copy-of-a", [CONTENTS["a"]])
    assert read(store, "a") == read(store, "a") == CONTENTS["a"]
    with store.open("copy-of-a", size=400_000, checksum=checksum(CONTENTS["a"])) as file:
        assert file.read() == CONTENTS["a"]
    assert proxy.count("GET") == 1


def test_a_bad_copy_is_fetched_anew_once_it_is_forgotten(remote: tuple[Store, FaultyProxy], cache: Path) -> None:
    """A copy whose bytes rotted is replaced by the store's own after the reader has found it out."""
    store, _ = remote
    read(store, "a")
    entry_of(cache, "a").write_bytes(b"x" * 400_000)
    assert read(store, "a") == b"x" * 400_000
    store.forget("a", checksum(CONTENTS["a"]))
    assert read(store, "a") == CONTENTS["a"]


def test_a_copy_of_another_size_is_fetched_anew(remote: tuple[Store, FaultyProxy], cache: Path) -> None:
    """A copy that a crash cut short is not used."""
    store, _ = remote
    read(store, "a")
    entry_of(cache, "a").write_bytes(b"a" * 100)
    assert read(store, "a") == CONTENTS["a"]


def test_the_cache_is_bounded(remote: tuple[Store, FaultyProxy], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies never take more than TRAINLAB_CACHE_GB; those that were not read for longest go."""
    monkeypatch.setenv("TRAINLAB_CACHE_GB", "0.001")
    store, _ = remote
    for name in "aba":
        assert read(store, name) == CONTENTS[name]
    assert kept(cache) == "ab"
    assert read(store, "c") == CONTENTS["c"]
    assert kept(cache) == "ac"


def test_an_open_file_outlives_its_copy(remote: tuple[Store, FaultyProxy], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is being read can go from the cache, and is read to its end all the same."""
    monkeypatch.setenv("TRAINLAB_CACHE_GB", "0.0004")
    store, _ = remote
    with store.open("a", size=400_000, checksum=checksum(CONTENTS["a"])) as file:
        read(store, "b")
        assert file.read() == CONTENTS["a"]


@pytest.mark.parametrize("gigabytes", ["0.0001", "0"])
def test_a_file_larger_than_the_cache_is_read(
    remote: tuple[Store, FaultyProxy],
    cache: Path,
    gigabytes: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file for which the cache has no room is read without it; that is told once, unless no cache is wanted."""
    monkeypatch.setenv("TRAINLAB_CACHE_GB", gigabytes)
    store, _ = remote
    assert read(store, "a") == read(store, "a") == CONTENTS["a"]
    assert not cache.exists()
    assert sum("TRAINLAB_CACHE_GB" in record.getMessage() for record in caplog.records) == (gigabytes != "0")


def test_a_cache_that_cannot_be_written_is_done_without(
    remote: tuple[Store, FaultyProxy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Files are read where no cache can be made, and a warning says so once."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store, _ = remote
    with caplog.at_level(logging.WARNING, "trainlab.storage"):
        assert [read(store, "a"), read(store, "b")] == [CONTENTS["a"], CONTENTS["b"]]
    assert sum("cannot be used" in record.getMessage() for record in caplog.records) == 1


def test_a_size_that_is_no_number_is_refused(
    remote: tuple[Store, FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped TRAINLAB_CACHE_GB is named, rather than taken for some number."""
    store, _ = remote
    for text in ("20 GB", "-1", "nan", "inf"):
        monkeypatch.setenv("TRAINLAB_CACHE_GB", text)
        with pytest.raises(InvalidValueError, match=f"TRAINLAB_CACHE_GB.*Received: '{text}'"):
            read(store, "a")


def test_readers_at_once_fetch_once(remote: tuple[Store, FaultyProxy], cache: Path) -> None:
    """When all processes of a machine load the same file, it is fetched once, and each reads all of it."""
    store, proxy = remote
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: read(store, "a"), range(8))) == {CONTENTS["a"]}
    assert proxy.count("GET") == 1
    assert kept(cache) == "a"


def test_a_process_killed_while_fetching_leaves_nothing(remote: tuple[Store, FaultyProxy], cache: Path) -> None:
    """What a killed process had begun to fetch is removed, and what another is fetching now is left alone."""
    store, _ = remote
    program = """
import os, signal, sys
from trainlab.storage.cache import open_cached
def fetch(path):
    open(path, "wb").write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
open_cached("xxh3_128:" + "0" * 32, 10, fetch)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    (abandoned,) = cache.iterdir()
    live = cache / f"xxh3_128-{'1' * 32}-10.part"
    with live.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert read(store, "a") == CONTENTS["a"]
        assert live.exists()
    assert not abandoned.exists()


def test_an_interrupted_fetch_is_done_again(remote: tuple[Store, FaultyProxy], cache: Path) -> None:
    """A connection that is lost while a file is fetched costs a second request; a failure leaves nothing."""
    store, proxy = remote
    proxy.fail("drop", times=1, method="GET")
    assert read(store, "a") == CONTENTS["a"]
    proxy.fail("denied", times=100, method="GET")
    with pytest.raises(StorageError):
        read(store, "b")
    assert kept(cache) == "a"


def test_a_file_of_another_size_is_not_fetched(remote: tuple[Store, FaultyProxy]) -> None:
    """A remote file that is larger than it should be does not fill the disk: the error tells both sizes."""
    store, proxy = remote
    with pytest.raises(StorageError, match="a has 400000 bytes; expected: 10"):
        store.open("a", size=10, checksum=checksum(b"a" * 10))
    assert proxy.count("GET") == 0


def test_a_checksum_cannot_name_another_file(remote: tuple[Store, FaultyProxy], cache: Path) -> None:
    """A checksum that nobody trusts neither leads out of the cache nor removes what is in it."""
    store, _ = remote
    read(store, "b")
    for text in ("xxh3_128:../../etc", "../../etc", "xxh3_128:*", "md5:00"):
        with pytest.raises(StorageError, match="Received"):
            store.open("a", size=400_000, checksum=text)
        store.forget("a", text)
    assert kept(cache) == "b"


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TRAINLAB_CACHE the copies are in the home folder's .cache, where only their owner reads them."""
    monkeypatch.delenv("TRAINLAB_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    store = open_store("memory://default-folder")
    store.write("a", [CONTENTS["a"]])
    assert read(store, "a") == CONTENTS["a"]
    folder = tmp_path / ".cache" / "trainlab"
    assert kept(folder) == "a"
    assert folder.stat().st_mode & 0o777 == 0o700
