import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.storage.s3 import faulty_proxy, s3_files, s3_server, s3_store, storage_options
from trainlab.errors import InvalidStateError, InvalidValueError, RunFolderError, StorageError
from trainlab.runs import RunFolder, remote_folder
from trainlab.storage import faults, retry

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this machine, empty."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go on as a machine that has never seen the run."""
    return lambda: monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / f"cache-{uuid.uuid4().hex}"))


@pytest.fixture
def url() -> str:
    """A place in this process's memory."""
    return f"memory://{uuid.uuid4().hex}/runs/a"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server."""
    with s3_server() as found:
        yield found


@pytest.fixture
def bucket(endpoint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A run's place on S3, and what access to it needs."""
    with s3_store(endpoint) as (found, options):
        yield f"{found}/runs/a", options


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * len(retry.PAUSES))


def stored(url: str, **options: Any) -> dict[str, bytes]:
    """What is at a URL, by its name, read past trainlab."""
    fs, root = fsspec.url_to_fs(url, **options, skip_instance_cache=True)
    fs.invalidate_cache()
    return {path.removeprefix(root + "/"): fs.cat_file(path) for path in fs.find(root)}


def store(url: str, **files: bytes) -> None:
    """Put files into this process's memory past trainlab."""
    fs, root = fsspec.url_to_fs(url)
    for name, content in files.items():
        fs.pipe_file(f"{root}/{name}", content)


@contextmanager
def other_process(url: str, options: dict[str, Any], how: str) -> Iterator["subprocess.Popen[str]"]:
    """A process with a run on a store."""
    program = [sys.executable, "-m", "tests.runs.remote_run", url, json.dumps(options), how]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_run_at_a_url_is_there_when_it_is_closed(url: str, cache: Path) -> None:
    """All that a run writes is at its URL afterwards, byte by byte, subfolders too; only the lock stays here."""
    with RunFolder.open(name="digits", run_dir=url) as folder:
        assert (folder.url, folder.place, folder.checkpoints_place) == (url, url, f"{url}/checkpoints")
        assert folder.path.parent == cache / "runs"
        assert folder.path.name.startswith("a-")
        folder.attach_log("trainlab_test_remote")
        logging.getLogger("trainlab_test_remote").info("hello")
        folder.write_params({"lr": 1})
        (folder.tensorboard / "train").mkdir(parents=True)
        (folder.tensorboard / "train" / "events").write_bytes(b"\x00\xff" * 50)
        (folder.path / "plot.csv").write_text("1,2\n")
        folder.write_record(status="finished")
    files = stored(url)
    assert set(files) == {"run.json", "params.yaml", "log.txt", "plot.csv", "tensorboard/train/events"}
    assert files == {name: (folder.path / name).read_bytes() for name in files}
    assert json.loads(files["run.json"])["status"] == "finished"
    assert b"hello" in files["log.txt"]


def test_a_run_is_at_its_url_as_soon_as_it_is_opened(url: str) -> None:
    """Others see which process has a run from its first moment on."""
    with RunFolder.open(name="digits", run_dir=url):
        told = json.loads(stored(url)["run.json"])
        assert (told["status"], told["pid"], told["host"]) == ("running", os.getpid(), socket.gethostname())


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_run_on_this_machine_stays_what_it_was(tmp_path: Path, cache: Path, prefix: str) -> None:
    """A path, and a file:// URL, is the folder itself; there is nothing to push, and nothing in the cache."""
    with RunFolder.open(name="digits", run_dir=f"{prefix}{tmp_path}/run", storage_options={}) as folder:
        assert folder.path == tmp_path / "run"
        assert (folder.url, folder.place, folder.checkpoints_place) == (None, folder.path, folder.checkpoints)
        folder.push()
        assert {entry.name for entry in folder.path.iterdir()} == {"lock", "run.json"}
    folder.push()
    assert not cache.exists()


def test_only_what_changed_is_pushed(url: str) -> None:
    """A file that is as it was is not copied again; one that grew, was cut or was replaced is."""
    with RunFolder.open(name="digits", run_dir=url) as folder:
        for name in ("same", "grows", "shrinks", "replaced"):
            (folder.path / name).write_text("before")
        folder.push()
        store(url, **dict.fromkeys(("same", "grows", "shrinks", "replaced", "run.json"), b"mark"))
        with (folder.path / "grows").open("a") as file:
            file.write("!")
        os.truncate(folder.path / "shrinks", 1)
        (folder.path / "new").write_text("after!")
        (folder.path / "new").replace(folder.path / "replaced")
        folder.push()
        assert stored(url) == {
            "same": b"mark",
            "run.json": b"mark",
            "grows": b"before!",
            "shrinks": b"b",
            "replaced": b"after!",
        }


def test_what_was_brought_is_not_pushed_again(bucket: tuple[str, dict[str, Any]]) -> None:
    """Going on with a run costs no upload of the series that it has."""
    url, options = bucket
    with RunFolder.open(name="digits", run_dir=url, storage_options=options) as folder:
        folder.metrics_file.write_text("x\n")
    with faulty_proxy(options["endpoint_url"]) as proxy:
        options = storage_options(proxy.endpoint)
        with RunFolder.open(name="digits", run_dir=url, storage_options=options) as folder:
            folder.push()
        assert proxy.count("PUT", "run.json") == 1
        assert proxy.count("PUT") == 1


def test_only_the_files_that_are_named_are_pushed(url: str) -> None:
    """Whoever needs one file on the store does not pay for the others."""
    with RunFolder.open(name="digits", run_dir=url) as folder:
        for file in (folder.metrics_file, folder.log_file):
            file.write_text("x\n")
        folder.push([folder.metrics_file])
        assert set(stored(url)) == {"run.json", "metrics.jsonl"}


def test_a_file_that_is_removed_is_removed_from_the_store(url: str) -> None:
    """A series that was cut away on a resume does not come back with the next one."""
    with RunFolder.open(name="digits", run_dir=url) as folder:
        folder.metrics_file.write_text("x\n")
    with RunFolder.open(name="digits", run_dir=url) as folder:
        folder.metrics_file.unlink()
        folder.push()
        assert set(stored(url)) == {"run.json"}


def test_checkpoints_are_neither_brought_nor_pushed(url: str, other_machine: Callable[[], None]) -> None:
    """Gigabytes of checkpoints at the URL are left there, and a text that is just being replaced here."""
    with RunFolder.open(name="digits", run_dir=url) as folder:
        folder.checkpoints.mkdir()
        (folder.checkpoints / "local").touch()
        (folder.path / ".run.json.1.tmp").touch()
        (folder.path / "gone").symlink_to("nowhere")
    assert set(stored(url)) == {"run.json"}
    store(url, **{"checkpoints/batch-1/model": b"x", "lock": b"x"})
    other_machine()
    with RunFolder.open(name="digits", run_dir=url) as folder:
        assert {entry.name for entry in folder.path.iterdir()} == {"run.json", "lock"}
    assert set(stored(url)) == {"run.json", "checkpoints/batch-1/model", "lock"}


@pytest.mark.parametrize("whole_bytes", [2**20, 0])
def test_a_file_that_grows_while_it_is_pushed_is_copied_as_it_was(
    url: str, whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training writes on while a push reads: each copy is a beginning of the file, with all that was there before."""
    monkeypatch.setattr(remote_folder, "_WHOLE_BYTES", whole_bytes)
    with RunFolder.open(name="digits", run_dir=url) as folder:
        folder.metrics_file.touch()
        done = threading.Event()

        def write() -> None:
            number = 0
            with folder.metrics_file.open("ab", buffering=0) as file:
                while not done.is_set():
                    file.write(b"%d\n" % (number := number + 1))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(20):
                before = folder.metrics_file.read_bytes()
                folder.push()
                copy = stored(url)["metrics.jsonl"]
                assert copy.startswith(before)
                assert folder.metrics_file.read_bytes().startswith(copy)
        finally:
            done.set()
            writer.join()
    assert stored(url)["metrics.jsonl"] == folder.metrics_file.read_bytes()


def test_a_large_file_is_read_no_further_than_it_was(tmp_path: Path) -> None:
    """What is appended between two pieces of a file is left to the next push."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * (2**23 + 5))
    with path.open("rb") as file:
        pieces = remote_folder._pieces(file, 2**23 + 5)
        read = next(pieces)
        with path.open("ab") as writer:
            writer.write(b"y" * 2**10)
        assert read + b"".join(pieces) == b"x" * (2**23 + 5)


def test_a_push_that_overtakes_another_does_not_lose_to_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread that writes checkpoints pushes, so may another: the store has the newer content after both."""
    with RunFolder.open(name="digits", run_dir=url) as folder:
        folder.metrics_file.write_text("x\n")

        def push_more() -> None:
            folder.metrics_file.write_text("x\ny\n")
            folder.push()

        second = threading.Thread(target=push_more)

        def start_second(point: str) -> None:
            if second.ident is None:
                second.start()
                # It waits for its turn, so this is no wait for its end; if it did not, it would be done by then.
                second.join(0.2)

        monkeypatch.setattr(faults, "hook", start_second)
        folder.push()
        second.join()
        assert stored(url)["metrics.jsonl"] == b"x\ny\n"


def test_what_an_earlier_process_left_here_goes(url: str) -> None:
    """The store is the truth: what it has not is not in the run, whatever a process left on this machine."""
    folder = RunFolder.open(name="digits", run_dir=url)
    folder.close()
    (folder.path / "tensorboard").mkdir()
    for name in ("metrics.jsonl", "params.yaml", "tensorboard/events"):
        (folder.path / name).write_text("later")
    store(url, **{"metrics.jsonl": b"truth"})
    with RunFolder.open(name="digits", run_dir=url) as folder:
        assert folder.continues
        assert {entry.name for entry in folder.path.iterdir()} == {"lock", "run.json", "metrics.jsonl"}
        assert folder.metrics_file.read_text() == "truth"


def test_a_run_whose_store_was_emptied_begins_anew(url: str) -> None:
    """A run that was removed from the store does not come back from a machine's cache."""
    with RunFolder.open(name="digits", run_dir=url) as folder:
        folder.metrics_file.write_text("x\n")
    fsspec.filesystem("memory").rm(url, recursive=True)
    with RunFolder.open(name="digits", run_dir=url) as folder:
        assert not folder.continues
        assert {entry.name for entry in folder.path.iterdir()} == {"lock", "run.json"}


def test_a_bucket_of_its_own_may_hold_a_run(endpoint: str) -> None:
    """A run needs no folder below its bucket."""
    with s3_store(endpoint) as (url, options):
        for continues in (False, True):
            with RunFolder.open(name="digits", run_dir=url, storage_options=options) as folder:
                assert (folder.url, folder.continues) == (url, continues)
        assert set(stored(url, **options)) == {"run.json"}


class Folders(LocalFileSystem):
    """Folders of this machine under a protocol of their own."""

    protocol = "folders"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("folders://"))


def test_a_file_system_with_folders_gets_them_made(tmp_path: Path) -> None:
    """Where a file needs a folder, as on SFTP or HDFS, a run makes its own ones, and goes on in them."""
    fsspec.register_implementation("folders", Folders)
    for text in ("x", "xy"):
        with RunFolder.open(name="digits", run_dir=f"folders://{tmp_path}/runs/a") as folder:
            for name in ("events", f"{text}/events"):
                (folder.tensorboard / name).parent.mkdir(parents=True, exist_ok=True)
                (folder.tensorboard / name).write_text(text)
    written = tmp_path / "runs" / "a" / "tensorboard"
    names = ("events", "x/events", "xy/events")
    assert [(written / name).read_text() for name in names] == ["xy", "x", "xy"]


def test_a_foreign_url_is_refused_and_left_alone(url: str) -> None:
    """Nothing is mixed into a folder on a store that is no run's, and this process does not hold it afterwards."""
    store(url, **{"thesis.tex": b"x"})
    for _ in range(2):
        with pytest.raises(RunFolderError, match=f"holds no run.*{url}, with thesis.tex"):
            RunFolder.open(name="digits", run_dir=url)
    assert stored(url) == {"thesis.tex": b"x"}


def test_the_same_process_cannot_open_a_url_twice(url: str) -> None:
    """Two contexts over one URL in one program are an error, with or without a slash at its end."""
    with (
        RunFolder.open(name="digits", run_dir=url),
        pytest.raises(RunFolderError, match=f"This process holds .*{url}"),
    ):
        RunFolder.open(name="digits", run_dir=f"{url}/")


def test_runs_of_one_last_name_do_not_share_a_folder(url: str) -> None:
    """Where runs work on this machine depends on all of the URL."""
    with (
        RunFolder.open(name="digits", run_dir=f"{url}/x y") as one,
        RunFolder.open(name="digits", run_dir=f"{url}/2/x y") as other,
    ):
        assert one.path != other.path
        assert one.path.name.startswith("x_y-")


def test_a_spoilt_record_is_told_with_its_url(url: str) -> None:
    """Who repairs a record has to do it on the store, so that is where the error points to."""
    store(url, **{"run.json": b"{"})
    with pytest.raises(RunFolderError, match=f"record cannot be read.*{url}/run.json"):
        RunFolder.open(name="digits", run_dir=url)
    assert stored(url) == {"run.json": b"{"}


def test_other_parameters_are_told_with_the_url(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The warning about other parameters names the file that a person can look at."""
    for rate in (1, 2):
        with RunFolder.open(name="digits", run_dir=url) as folder:
            folder.write_params({"lr": rate})
    assert f"than those in {url}/params.yaml" in caplog.text


@pytest.mark.parametrize("run_dir", [None, "run"])
def test_storage_options_for_a_local_folder_are_refused(tmp_path: Path, run_dir: str | None) -> None:
    """Options that would do nothing are an error that names them, before any folder is made."""
    given = None if run_dir is None else tmp_path / run_dir
    with pytest.raises(InvalidValueError, match="storage_options are for.*'key'"):
        RunFolder.open(name="digits", run_dir=given, root=tmp_path, storage_options={"key": "x"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run_dir", [Path("s3://bucket/runs/a"), "nosuch://bucket", "simplecache::s3://bucket/a"])
def test_a_url_that_cannot_be_used_is_refused(
    run_dir: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Path that swallowed a slash, or a protocol that nobody knows, makes no local folder of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match="nosuch|s3:|simplecache"):
        RunFolder.open(name="digits", run_dir=run_dir)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no place for the cache learns how to name another."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunFolderError, match=f"{url}.*TRAINLAB_CACHE"):
        RunFolder.open(name="digits", run_dir=url)


def test_a_closed_run_is_not_pushed(url: str) -> None:
    """After close another process may own the run, so nothing more goes to its URL."""
    folder = RunFolder.open(name="digits", run_dir=url)
    folder.close()
    before = stored(url)
    folder.metrics_file.touch()
    folder.close()
    with pytest.raises(InvalidStateError, match=f"push\\(\\) on {url}"):
        folder.push()
    assert stored(url) == before


def dead() -> int:
    """The id of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


@pytest.mark.parametrize(
    ("changes", "is_warned"),
    [
        ({"host": "elsewhere"}, True),
        ({"pid": 1}, True),
        ({"pid": None}, True),
        ({"pid": -1}, True),
        ({}, False),
        ({"pid": os.getpid()}, False),
        ({"host": "elsewhere", "status": "failed"}, False),
    ],
)
def test_a_run_that_may_be_running_elsewhere_is_warned_of(
    url: str, changes: dict[str, object], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """No lock is possible on a store: who goes on with a run that says it is running learns where and since when."""
    told = {
        "status": "running",
        "host": socket.gethostname(),
        "pid": dead(),
        "started": "then",
        "starts": [],
        **changes,
    }
    store(url, **{"run.json": json.dumps(told).encode()})
    RunFolder.open(name="digits", run_dir=url).close()
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert [f"process {told['pid']} on {told['host']}, since then" in warning for warning in warnings] == [
        True
    ] * is_warned


def test_another_machine_goes_on_with_a_run(
    bucket: tuple[str, dict[str, Any]], other_machine: Callable[[], None]
) -> None:
    """A machine that has never seen a run on S3 has its series, parameters and history, and continues them there."""
    url, options = bucket
    with RunFolder.open(name="digits", run_dir=url, storage_options=options) as folder:
        folder.write_params({"lr": 1})
        folder.write_record(seed=3, status="finished")
        folder.tensorboard.mkdir()
        for file in (folder.metrics_file, folder.tensorboard / "events"):
            file.write_text("first\n")
    before = folder.path
    other_machine()
    with RunFolder.open(name="digits", run_dir=f"{url}/", storage_options=options) as folder:
        assert folder.path != before
        assert folder.continues
        assert folder.record["seed"] == 3
        assert folder.params_file.read_text() == "lr: 1\n"
        for file in (folder.metrics_file, folder.tensorboard / "events"):
            with file.open("a") as series:
                series.write("second\n")
    files = stored(url, **options)
    assert set(files) == {"run.json", "params.yaml", "metrics.jsonl", "tensorboard/events"}
    assert files["metrics.jsonl"] == files["tensorboard/events"] == b"first\nsecond\n"
    assert [start["status"] for start in json.loads(files["run.json"])["starts"]] == ["finished", "running"]


@pytest.mark.parametrize("machine", ["same", "other"])
def test_a_killed_run_goes_on_from_its_last_push(
    bucket: tuple[str, dict[str, Any]], machine: str, other_machine: Callable[[], None]
) -> None:
    """kill -9 loses what came after the last push and nothing before, on the same machine and on another."""
    url, options = bucket
    with other_process(url, options, "wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    if machine == "other":
        other_machine()
    with RunFolder.open(name="digits", run_dir=url, storage_options=options) as folder:
        assert folder.continues
        assert folder.metrics_file.read_text() == "x\n" * 3
        assert (folder.tensorboard / "events").read_text() == "y\n" * 3
        starts = json.loads(folder.record_file.read_text())["starts"]
        assert [start["status"] for start in starts] == ["crashed", "running"]


@pytest.mark.parametrize("files", [pytest.param(n, marks=() if n in (2, 5) else pytest.mark.slow) for n in range(1, 7)])
def test_a_run_killed_between_two_files_of_a_push_leaves_whole_ones(
    bucket: tuple[str, dict[str, Any]], files: int, other_machine: Callable[[], None]
) -> None:
    """Wherever a push is killed, each file is the old or the new one; "finished" stands there only after all else."""
    url, options = bucket
    with other_process(url, options, str(files)) as process:
        assert process.wait() == -signal.SIGKILL
    found = stored(url, **options)
    assert found.get("metrics.jsonl", b"") in (b"", b"x\n" * 3, b"x\n" * 4)
    assert found.get("tensorboard/events", b"") in (b"", b"y\n" * 3, b"y\n" * 4)
    if json.loads(found["run.json"])["status"] == "finished":
        assert (found["metrics.jsonl"], found["tensorboard/events"]) == (b"x\n" * 4, b"y\n" * 4)
    other_machine()
    with RunFolder.open(name="digits", run_dir=url, storage_options=options) as folder:
        assert folder.continues


def test_a_second_process_of_this_machine_is_told_who_holds_the_url(bucket: tuple[str, dict[str, Any]]) -> None:
    """Two live processes of one machine cannot write one run on a store; what the first has here is left alone."""
    url, options = bucket
    with other_process(url, options, "wait") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        with pytest.raises(RunFolderError, match=f"held by process {pid} on .* since .*{url}"):
            RunFolder.open(name="digits", run_dir=url, storage_options=options)
        process.communicate("")
        assert process.returncode == 0
    assert stored(url, **options)["metrics.jsonl"] == b"x\n" * 4


def test_a_store_that_refuses_at_the_end_is_an_error_with_the_files_place(endpoint: str, no_pauses: None) -> None:
    """A run whose last files cannot be copied says where they still are, and lets go of its folder all the same."""
    with s3_store(endpoint) as (url, options), faulty_proxy(endpoint) as proxy:
        folder = RunFolder.open(name="digits", run_dir=url, storage_options=storage_options(proxy.endpoint))
        folder.metrics_file.write_text("x\n")
        proxy.fail("denied", times=1, method="PUT")
        with pytest.raises(StorageError, match=f"{url}.*Denied.*still in {folder.path}"):
            folder.close()
        assert folder.metrics_file.read_text() == "x\n"
        assert set(stored(url, **options)) == {"run.json"}
        RunFolder.open(name="digits", run_dir=url, storage_options=options).close()


def test_a_failed_push_is_made_up_for_by_the_next(endpoint: str, no_pauses: None) -> None:
    """A store that refuses once costs nothing but the error."""
    with (
        s3_store(endpoint) as (url, options),
        faulty_proxy(endpoint) as proxy,
        RunFolder.open(name="digits", run_dir=url, storage_options=storage_options(proxy.endpoint)) as folder,
    ):
        folder.metrics_file.write_text("x\n")
        proxy.fail("denied", times=1, method="PUT")
        with pytest.raises(OSError, match="Denied"):
            folder.push()
        folder.push()
        assert stored(url, **options)["metrics.jsonl"] == b"x\n"


@pytest.mark.parametrize(("method", "done"), [("GET", "read"), ("PUT", "written")])
def test_a_store_without_the_rights_is_told_before_training(
    endpoint: str, no_pauses: None, method: str, done: str
) -> None:
    """Missing rights to read or to write are an error of the opening, which leaves the run free."""
    with s3_store(endpoint) as (url, _), faulty_proxy(endpoint) as proxy:
        options = storage_options(proxy.endpoint)
        proxy.fail("denied", times=1, method=method)
        with pytest.raises(RunFolderError, match=f"cannot be {done}.*Denied.*{url}.*storage_options"):
            RunFolder.open(name="digits", run_dir=url, storage_options=options)
        RunFolder.open(name="digits", run_dir=url, storage_options=options).close()


def test_a_store_that_cannot_be_reached_is_told_before_training(no_pauses: None) -> None:
    """A wrong endpoint is a clear error at once and not one of the first checkpoint."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        options = storage_options(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(RunFolderError, match="cannot be read.*s3://bucket/runs/a.*storage_options"):
            RunFolder.open(name="digits", run_dir="s3://bucket/runs/a", storage_options=options)


def test_a_bucket_that_does_not_exist_is_told_before_training(endpoint: str) -> None:
    """A misspelt bucket is neither made nor found out only at the end."""
    with pytest.raises(RunFolderError, match="s3://no-such-bucket/runs/a"):
        RunFolder.open(name="digits", run_dir="s3://no-such-bucket/runs/a", storage_options=storage_options(endpoint))
    assert not s3_files(endpoint).exists("no-such-bucket")


def test_a_name_on_the_store_that_leads_elsewhere_writes_nothing(
    bucket: tuple[str, dict[str, Any]], cache: Path
) -> None:
    """S3 takes any text as a name; one with ".." in it is an error and no file outside of the run's folder."""
    url, options = bucket
    files = s3_files(options["endpoint_url"])
    files.pipe_file(f"{url}/run.json", b"{}")
    files.pipe_file(f"{url}/../planted", b"x")
    if not any(".." in name for name in files.find(url)):
        files.pipe_file(f"{url}/x//../../../planted", b"x")
    with pytest.raises(RunFolderError, match=r"\.\."):
        RunFolder.open(name="digits", run_dir=url, storage_options=options)
    assert not list(cache.rglob("planted"))
