"""What holds for every store: local, in memory, and on S3."""

import itertools
import random

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.storage.s3 import s3_files, s3_store, shared_endpoint, storage_options
from trainlab.errors import InvalidTypeError, InvalidValueError, MissingDependencyError, StorageError
from trainlab.storage import Checksum, Store, open_store
from trainlab.storage.remote import _Joined


def checksum(data: bytes) -> str:
    state = Checksum()
    state.update(data)
    return state.text


def put(store: Store, folder: str = "step-1") -> None:
    """A folder with two files and a manifest."""
    store.make_folder(folder)
    store.write(f"{folder}/weights", [b"some ", memoryview(b"weights")])
    store.write(f"{folder}/empty", [])
    store.sync_folder(folder)
    store.publish(f"{folder}/manifest.json", b"{}")


def test_what_is_written_is_read_back(store: Store) -> None:
    """The files of a folder, their sizes and bytes are those that were written."""
    put(store)
    assert store.folders() == ["step-1"]
    assert store.files("step-1") == {"weights": 12, "empty": 0, "manifest.json": 2}
    assert store.size("step-1/weights") == 12
    assert store.read("step-1/weights", 12) == b"some weights"
    assert store.read("step-1/empty", 0) == b""
    with store.open("step-1/weights", size=12, checksum=checksum(b"some weights")) as file:
        assert file.read() == b"some weights"
    with store.open("step-1/weights", size=12, checksum=checksum(b"some weights")) as file:
        buffer = bytearray(12)
        assert file.readinto(buffer) == 12  # type: ignore[attr-defined]
        assert buffer == b"some weights"


def test_another_store_at_the_same_url_sees_it(store: Store) -> None:
    """The URL of a store opens it again, with the same storage_options."""
    put(store)
    options = storage_options(shared_endpoint()) if store.url.startswith("s3") else None
    assert open_store(store.url, options).read("step-1/weights", 100) == b"some weights"


def test_an_empty_store_has_nothing(store: Store) -> None:
    """A store that nobody wrote to is empty, and says which file or folder is missing."""
    assert store.folders() == []
    for ask in (
        lambda: store.files("step-1"),
        lambda: store.size("step-1/weights"),
        lambda: store.read("step-1/weights", 100),
        lambda: store.open("step-1/weights", size=1, checksum=checksum(b"1")),
        lambda: store.hold("step-1", "weights"),
    ):
        with pytest.raises(FileNotFoundError, match="step-1"):
            ask()


def test_a_file_larger_than_its_limit_is_not_read(store: Store) -> None:
    """A file that should be small and is not cannot fill the memory: the error tells both sizes."""
    put(store)
    with pytest.raises(StorageError, match="weights has 12 bytes, and may have 11"):
        store.read("step-1/weights", 11)


def test_a_folder_is_made_only_once(store: Store) -> None:
    """A folder in which there is something cannot be made again, so two writers do not mix their files."""
    put(store)
    with pytest.raises(FileExistsError):
        store.make_folder("step-1")


def test_publishing_replaces(store: Store) -> None:
    """A file that is published again is read with its new content at once."""
    put(store)
    assert store.read("step-1/manifest.json", 100) == b"{}"
    store.publish("step-1/manifest.json", b"longer")
    assert store.read("step-1/manifest.json", 100) == b"longer"
    assert store.files("step-1") == {"weights": 12, "empty": 0, "manifest.json": 6}


def test_removing(store: Store) -> None:
    """What is removed is gone, and to remove what is not there is no error."""
    put(store, "step-1")
    put(store, "step-2")
    store.remove("step-1/weights")
    assert set(store.files("step-1")) == {"empty", "manifest.json"}
    store.remove("step-1/weights")
    store.remove_folder("step-1")
    assert store.folders() == ["step-2"]
    store.remove_folder("step-1")
    assert set(store.files("step-2")) == {"weights", "empty", "manifest.json"}


def test_a_held_folder_is_not_removed(store: Store) -> None:
    """A folder that is being read stays until all readers have let go."""
    put(store)
    first, second = store.hold("step-1", "manifest.json"), store.hold("step-1", "manifest.json")
    first()
    first()
    assert not store.remove_unread("step-1", "manifest.json")
    assert set(store.files("step-1")) == {"weights", "empty", "manifest.json"}
    second()
    assert store.remove_unread("step-1", "manifest.json")
    assert store.folders() == []
    assert store.remove_unread("step-1", "manifest.json")


def test_a_forgotten_hold_ends(store: Store) -> None:
    """A reader that failed without letting go does not keep a folder for ever."""
    put(store)
    hold = store.hold("step-1", "manifest.json")
    del hold
    assert store.remove_unread("step-1", "manifest.json")


NAMES = ["../out", "/etc/passwd", "a//b", "a/./b", "a/..", "", "a\0b"]


def test_a_name_cannot_leave_its_store(store: Store) -> None:
    """A name that comes from a file nobody trusts leads to nothing outside, and removes nothing there."""
    asks = (
        store.size,
        lambda name: store.read(name, 10),
        lambda name: store.open(name, size=1, checksum=checksum(b"1")),
        lambda name: store.write(name, [b"1"]),
        lambda name: store.publish(name, b"1"),
        store.files,
        store.make_folder,
        store.remove,
        store.remove_folder,
        lambda name: store.remove_unread(name, "manifest.json"),
        lambda name: store.hold(name, "manifest.json"),
    )
    for ask, name in itertools.product(asks, NAMES):
        with pytest.raises(StorageError, match="relative"):
            ask(name)


@pytest.mark.slow
def test_a_large_file_arrives_whole(store: Store) -> None:
    """A file of many parts has the bytes of its pieces in their order, however they are cut."""
    block = random.Random(5).randbytes(9 * 2**20)
    pieces = [block, b"x", memoryview(block)[7:], memoryview(bytearray(block)).cast("B", (9, 2**20)), b"end"]
    store.make_folder("step-1")
    store.write("step-1/weights", pieces)
    expected = b"".join(bytes(piece) for piece in pieces)
    assert store.size("step-1/weights") == len(expected)
    with store.open("step-1/weights", size=len(expected), checksum=checksum(expected)) as file:
        assert file.read() == expected


def test_a_failing_source_of_pieces_is_told(store: Store) -> None:
    """An error of who gives the pieces is not taken for one of the store, and not tried again."""
    tries = []

    def pieces():
        tries.append(1)
        yield b"first"
        raise RuntimeError("stopped")

    store.make_folder("step-1")
    with pytest.raises(RuntimeError, match="stopped"):
        store.write("step-1/weights", pieces())
    assert len(tries) == 1


@given(st.lists(st.binary(max_size=20), max_size=8), st.integers(0, 180), st.integers(0, 180))
def test_any_part_of_the_pieces_is_found(pieces: list[bytes], start: int, stop: int) -> None:
    """A part of an upload is the same bytes that it would be of all pieces joined."""
    joined = _Joined(pieces)
    assert len(joined) == len(b"".join(pieces))
    assert joined[start:stop] == b"".join(pieces)[start:stop]
    assert b"".join(joined.views()) == b"".join(pieces)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(content=st.binary(max_size=50))
def test_published_bytes_are_exact(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Any bytes can be published."""
    store = open_store(tmp_path_factory.mktemp("store"))
    store.publish("file", content)
    assert store.read("file", 50) == content


def test_a_change_by_others_is_seen() -> None:
    """What another program wrote, replaced or removed in a bucket is seen at once, for nothing is remembered."""
    with s3_store() as (url, options):
        store = open_store(url, options)
        put(store)
        assert store.folders() == ["step-1"]
        others = s3_files(options["endpoint_url"])
        others.pipe_file(f"{url}/step-2/weights", b"others")
        assert store.folders() == ["step-1", "step-2"]
        assert store.files("step-2") == {"weights": 6}
        others.pipe_file(f"{url}/step-2/weights", b"and more")
        assert store.size("step-2/weights") == 8
        others.rm(f"{url}/step-2", recursive=True)
        assert store.folders() == ["step-1"]
        with pytest.raises(FileNotFoundError):
            store.size("step-2/weights")


def test_a_folder_mark_is_no_file() -> None:
    """The empty object by which some tools mark a folder in a bucket is not among its files."""
    with s3_store() as (url, options):
        store = open_store(url, options)
        put(store)
        s3_files(options["endpoint_url"]).call_s3("put_object", Bucket=url[5:], Key="step-1/", Body=b"")
        assert set(store.files("step-1")) == {"weights", "empty", "manifest.json"}


def test_a_similar_name_is_another_folder(store: Store) -> None:
    """The folder step-1 has nothing to do with step-10."""
    put(store, "step-10")
    with pytest.raises(FileNotFoundError):
        store.files("step-1")
    store.remove_folder("step-1")
    assert set(store.files("step-10")) == {"weights", "empty", "manifest.json"}


def test_places(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a file URL and a path from the home folder are the same local store."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "runs", str(tmp_path / "runs"), f"file://{tmp_path}/runs", "~/runs", "runs"):
        store = open_store(place)
        assert (store.url, store.is_local) == (str(tmp_path / "runs"), True)
        assert store.location("a/b") == tmp_path / "runs" / "a" / "b"


def test_the_location_of_a_remote_name() -> None:
    """What is at a remote store has a URL that a person can use."""
    for place in ("memory://runs/first", "memory://runs/first/"):
        store = open_store(place)
        assert (store.url, store.is_local) == ("memory://runs/first", False)
        assert store.location() == "memory://runs/first"
        assert store.location("a/b") == "memory://runs/first/a/b"
    assert open_store("memory://").location("a") == "memory://a"


@pytest.mark.parametrize(
    ("place", "options", "text"),
    [
        ("nosuch://bucket", None, "No file system is known for nosuch://.* Known are: .*s3"),
        ("simplecache::s3://bucket", None, "one URL, not at a chain"),
        ("file://", None, "needs a path"),
        ("", None, "needs a path"),
        ("runs", {"key": "1"}, r"takes none.*'runs' with the options \['key'\]"),
        ("s3://bucket", {"endpoint": "http://x"}, "no option 'endpoint'. Did you mean endpoint_url?"),
        ("memory://runs", {"kee": "1"}, "no option 'kee'"),
        ("s3://bucket", {"max_concurrency": 0}, r"storage_options \['max_concurrency'\]"),
    ],
)
def test_places_that_cannot_be_used(place: str, options: dict[str, str] | None, text: str) -> None:
    """A place or an option that is not known is refused before anything is done, with what is known."""
    with pytest.raises(InvalidValueError, match=text):
        open_store(place, options)


def test_a_place_is_text() -> None:
    """What is no path and no URL is refused by its value."""
    with pytest.raises(InvalidTypeError, match="Received: 3"):
        open_store(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="Received: b'runs'"):
        open_store(b"runs")  # type: ignore[arg-type]


def test_a_password_in_a_url_is_refused_unseen() -> None:
    """A URL is logged, so one with a password is refused by a message that does not show it."""
    with pytest.raises(InvalidValueError, match="storage_options") as caught:
        open_store("ftp://me:hidden@host/runs")
    assert "hidden" not in str(caught.value)


def test_a_missing_package_is_named() -> None:
    """A URL whose package is not installed says how to install it."""
    fsspec.register_implementation("lacking", "nosuchpackage.FileSystem", errtxt="Install nosuchpackage to use it")
    with pytest.raises(MissingDependencyError, match="lacking://.*pip install nosuchpackage"):
        open_store("lacking://bucket")
