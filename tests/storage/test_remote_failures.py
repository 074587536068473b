"""Object stores that fail: a real S3 server behind a proxy that answers with errors, or not at all."""

import errno
import json
import logging
import random
import threading
from typing import Any

import pytest

from tests.storage.s3 import FaultyProxy, s3_files, s3_store, shared_endpoint, storage_options
from trainlab.errors import StorageError
from trainlab.storage import Checksum, connection, open_store, remote, retry

MIB = 2**20
Faulty = tuple[str, dict[str, Any], FaultyProxy]


def uploads(url: str) -> list[object]:
    """The uploads in parts that were begun in a bucket and neither finished nor aborted."""
    return (
        s3_files(shared_endpoint())
        .call_s3("list_multipart_uploads", Bucket=url.removeprefix("s3://"))
        .get("Uploads", [])
    )


@pytest.mark.parametrize(("how", "times"), [("busy", 3), ("internal", 3), ("drop", 4)])
def test_what_may_pass_is_tried_again(faulty: Faulty, how: str, times: int, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is overloaded for a while, or drops connections, costs time and no checkpoint, and is logged."""
    url, options, proxy = faulty
    store = open_store(url, options)
    proxy.fail(how, times=times, method="PUT", having="weights")
    with caplog.at_level(logging.WARNING, "trainlab.storage"):
        store.write("step-1/weights", [b"weights"])
    assert store.read("step-1/weights", 10) == b"weights"
    warned = [record.getMessage() for record in caplog.records if record.name == "trainlab.storage"]
    assert warned
    assert all(f"Could not write {url}/step-1/weights (attempt {n} of 5)" in text for n, text in enumerate(warned, 1))


@pytest.mark.parametrize("how", ["busy", pytest.param("internal", marks=pytest.mark.slow)])
def test_every_way_of_asking_is_tried_again(faulty: Faulty, how: str) -> None:
    """Listing, reading, publishing and removing get over a passing failure as writing does."""
    url, options, proxy = faulty
    store = open_store(url, options)
    for ask in (
        lambda: store.make_folder("step-1"),
        lambda: store.publish("step-1/manifest.json", b"{}"),
        store.folders,
        lambda: store.files("step-1"),
        lambda: store.size("step-1/manifest.json"),
        lambda: store.read("step-1/manifest.json", 10),
        lambda: store.open("step-1/manifest.json", size=2, checksum=Checksum().text).close(),
        lambda: store.remove_unread("step-1", "manifest.json"),
        lambda: store.remove("step-1/manifest.json"),
        lambda: store.remove_folder("step-1"),
    ):
        proxy.fail(how, times=2)
        ask()
    assert store.folders() == []


@pytest.mark.parametrize(
    ("how", "number", "advice"),
    [("denied", errno.EACCES, "Give credentials"), ("full", errno.EIO, "Make room there")],
)
def test_what_will_not_pass_is_told_at_once(faulty: Faulty, how: str, number: int, advice: str) -> None:
    """Without permission, or in a full store, nothing is tried again: the error names the URL and what to do."""
    url, options, proxy = faulty
    store = open_store(url, options)
    proxy.fail(how, times=100)
    for ask in (
        lambda: store.write("step-1/weights", [b"weights"]),
        lambda: store.publish("step-1/weights", b"weights"),
    ):
        before = proxy.count("PUT")
        with pytest.raises(StorageError, match=f"Could not write {url}/step-1/weights: .*{advice}") as caught:
            ask()
        assert proxy.count("PUT") == before + 1
        assert caught.value.__cause__ is not None
    if how == "denied":
        for ask in (store.folders, lambda: store.size("step-1/weights"), lambda: store.files("step-1")):
            with pytest.raises(StorageError, match=advice):
                ask()


def test_a_store_that_goes_on_failing_is_given_up(faulty: Faulty) -> None:
    """After five attempts the error says how often was tried, and what with."""
    url, options, proxy = faulty
    proxy.fail("internal", times=1_000)
    with pytest.raises(StorageError, match=rf"Could not write {url}/a/b: .*internal error.*\(5 attempts\)"):
        open_store(url, options).write("a/b", [b"1"])
    assert proxy.count("PUT") == 5


@pytest.mark.slow
def test_a_store_that_never_answers_is_given_up(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes connections and never answers is an error after a few timeouts, and tells how to set them."""
    monkeypatch.setattr(connection, "S3FS_TRIES", 3)
    url, options, proxy = faulty
    options["config_kwargs"] = {"read_timeout": 0.4}
    proxy.fail("hang", times=1_000)
    with pytest.raises(StorageError, match=f"Could not write {url}/a/b: .*read_timeout"):
        open_store(url, options).write("a/b", [b"1"])
    # Two attempts, each of three tries of s3fs: with its timeout of 15 seconds that is a minute and a half.
    waiting = threading.Event()
    while proxy.count("PUT") < 6:  # the store may come to a request after it was given up
        waiting.wait(0.01)
    assert proxy.count("PUT") == 6


def test_a_server_that_is_not_there_is_told(no_pauses: None) -> None:
    """An endpoint at which nobody listens is an error that names the URL and advises to check it."""
    store = open_store("s3://bucket/runs", storage_options("http://127.0.0.1:9"))
    with pytest.raises(StorageError, match="Could not list s3://bucket/runs: .*check the network and the endpoint"):
        store.folders()


def test_a_missing_bucket_is_told() -> None:
    """A bucket that does not exist is no empty store: the error says to create it."""
    store = open_store("s3://never-created/runs", storage_options(shared_endpoint()))
    for ask in (
        store.folders,
        lambda: store.files("step-1"),
        lambda: store.size("step-1/weights"),
        lambda: store.make_folder("step-1"),
        lambda: store.write("step-1/weights", [b"1"]),
        lambda: store.remove_folder("step-1"),
    ):
        with pytest.raises(StorageError, match="Create the bucket") as caught:
            ask()
        assert not isinstance(caught.value, FileNotFoundError)


def test_a_large_file_goes_up_in_parts(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is sent in parts, and one part that fails is sent again alone."""
    monkeypatch.setattr(connection, "S3FS_TRIES", 3)
    url, options, proxy = faulty
    content = random.Random(1).randbytes(11 * MIB)
    monkeypatch.setattr(remote, "_PART_BYTES", 5 * MIB)  # the least that S3 takes
    proxy.fail("busy", times=1, method="PUT", having="partNumber=2")
    open_store(url, options).write("weights", [memoryview(content)])
    assert s3_files(shared_endpoint()).cat_file(f"{url}/weights") == content
    assert proxy.count("PUT", "partNumber") == 4
    assert uploads(url) == []


@pytest.mark.parametrize("how", ["denied", "drop"])
def test_a_failed_upload_leaves_no_parts(faulty: Faulty, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of an upload that failed are not kept in the bucket, where nobody sees them and they cost."""
    url, options, proxy = faulty
    monkeypatch.setattr(retry, "PAUSES", (0.0,))
    monkeypatch.setattr(remote, "_PART_BYTES", 5 * MIB)
    proxy.fail(how, times=100, method="PUT", having="partNumber=2")
    with pytest.raises(StorageError, match="Could not write"):
        open_store(url, options).write("weights", [memoryview(bytearray(11 * MIB))])
    assert proxy.count("PUT", "partNumber=2") >= 1  # others are sent at the same time, and given up with it
    assert uploads(url) == []
    with pytest.raises(FileNotFoundError):
        open_store(url, options).size("weights")


def test_publishing_is_a_single_put(faulty: Faulty) -> None:
    """A manifest is published by one request, so that a reader sees all of it or nothing."""
    url, options, proxy = faulty
    open_store(url, options).publish("step-1/manifest.json", bytes(11 * MIB))
    assert proxy.count("PUT") == 1
    assert proxy.count("POST") == 0


def test_an_upload_that_was_cut_short_is_noticed(faulty: Faulty) -> None:
    """A file of which the store kept another number of bytes than were sent is sent again."""
    url, options, proxy = faulty
    store = open_store(url, options)
    proxy.fail("cut", times=1, method="PUT")
    store.write("step-1/weights", [b"all the weights"])
    assert store.read("step-1/weights", 100) == b"all the weights"
    assert proxy.count("PUT") == 2


def test_a_refused_removal_is_told() -> None:
    """A folder whose objects the store refuses to remove is not reported as removed."""
    with s3_store() as (url, options):
        store = open_store(url, options)
        store.write("step-1/weights", [b"weights"])
        files = s3_files(options["endpoint_url"])
        bucket = url.removeprefix("s3://")
        statement = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:DeleteObject",
            "Resource": f"arn:aws:s3:::{bucket}/*",
        }
        files.call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps({"Statement": [statement]}))
        with pytest.raises(StorageError, match="delete"):
            store.remove_folder("step-1")


def test_credentials_are_in_no_message(faulty: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    """Neither errors nor warnings show a key, token or password, even of a server that repeats what it was sent."""
    url, options, proxy = faulty
    store = open_store(url, {**options, "token": "a-session-token"})
    proxy.fail("echo", times=100)
    with pytest.raises(StorageError, match=r"repeats .*\*\*\*.* \*\*\* http://\*\*\*@proxy") as caught:
        store.write("a", [b"1"])
    warned = [record.getMessage() for record in caplog.records if record.name == "trainlab.storage"]
    assert len(warned) == 4
    for text in (store.url, str(caught.value), *warned):
        for hidden in ("an-access-key", "a-secret-key", "a-session-token", "a-password"):
            assert hidden not in text


def test_retries_leave_the_random_numbers_alone(faulty: Faulty) -> None:
    """A run whose store failed for a while draws the same random numbers as one whose store did not."""
    url, options, proxy = faulty
    store = open_store(url, options)
    before = random.getstate()
    proxy.fail("busy", times=2)
    store.write("weights", [b"weights"])
    proxy.fail("internal", times=2)
    store.read("weights", 10)
    proxy.fail("drop", times=2)
    store.folders()
    assert random.getstate() == before
