import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoint import hostility
from tests.checkpoint.corruptions import corrupt
from tests.checkpoint.samples import described, replace, rewrite, same
from trainlab.checkpoint import Checkpoint, latest_checkpoint, list_checkpoints
from trainlab.errors import CheckpointDamagedError, CheckpointError, TrainlabError
from trainlab.storage import open_store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return hostility.sample(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def original(whole: Path) -> Any:
    """What it holds."""
    return hostility.content(whole)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several ranks that no test changes."""
    return hostility.sharded_sample(tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def original_of_ranks(sharded: Path) -> Any:
    """What it holds."""
    return hostility.content(sharded)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where copies of it are spoilt, one after the other."""
    return tmp_path_factory.mktemp("target") / "batch-0000005"


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_a_hostile_checkpoint_is_read_right_or_refused(whole: Path, original: Any, target: Path, seed: int) -> None:
    """Whatever is done to any file, the outcome is the exact content or trainlab's own error.

    If whoever did it also put the checksums right, it may be other content, of things that a checkpoint can hold.
    """
    what, repaired = hostility.attack(whole, target, seed)
    try:
        found = hostility.content(target)
    except TrainlabError as error:
        assert str(error).encode()
        return
    assert same(found, original) or (repaired and hostility.is_sound(found)), what


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_hostile_parts_are_read_right_or_refused(
    sharded: Path, original_of_ranks: Any, target: Path, seed: int
) -> None:
    """The same holds for a checkpoint of several ranks, whatever it says of the parts that tensors lie in."""
    what, repaired = hostility.attack(sharded, target, seed)
    try:
        found = hostility.content(target)
    except TrainlabError as error:
        assert str(error).encode()
        return
    assert same(found, original_of_ranks) or (repaired and hostility.is_sound(found)), what


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), of_ranks=st.booleans())
def test_every_corruption_is_found(whole: Path, sharded: Path, target: Path, seed: int, of_ranks: bool) -> None:
    """Every damage of the kinds that disks and people do is found when a checkpoint is opened and verified."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sharded if of_ranks else whole, target)
    what = corrupt(target, random.Random(seed))
    with pytest.raises(CheckpointError):
        Checkpoint.open(target).verify()
        raise AssertionError(what)


def test_every_kind_of_corruption_is_done(whole: Path, target: Path) -> None:
    """The corruptions reach every file, in at least fifteen ways."""
    told = set()
    for seed in range(300):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(whole, target)
        told.add("".join(c for c in corrupt(target, random.Random(seed)) if not c.isdigit()))
    kinds = {text.partition(": ")[2].split(" model")[0].split(" state")[0].split(" manifest")[0] for text in told}
    assert len(kinds) >= 15, kinds
    assert {text.partition(":")[0] for text in told} == set(hostility.FILES)


def put_fifo(path: Path) -> None:
    """A pipe into which nobody writes: opening it waits for ever."""
    os.mkfifo(path)


def put_zeros(path: Path) -> None:
    """A device that never ends."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


PUT = {
    "a pipe": put_fifo,
    "a device": put_zeros,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a pipe": lambda path: (os.mkfifo(path.parent.parent / "pipe"), path.symlink_to("../pipe")),
}


@pytest.mark.parametrize("name", hostility.FILES)
@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_what_is_no_file_is_refused_at_once(whole: Path, tmp_path: Path, name: str, put: Any) -> None:
    """A pipe, a device, a folder or a link in a file's place is an error, and nothing waits for it or follows it."""
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    (folder / name).unlink()
    put(folder / name)
    for verify in (True, False):
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder, verify=verify)
    latest_checkpoint(tmp_path)
    assert list_checkpoints(open_store(tmp_path)) in ([whole.name], [])


def test_a_file_swapped_after_opening_is_refused(whole: Path, tmp_path: Path) -> None:
    """A file that becomes a link, a pipe or a longer one between opening and reading is not read."""
    outside = tmp_path / "outside"
    shutil.copy(whole / "model.safetensors", outside)
    for put in (lambda path: path.symlink_to(outside), os.mkfifo, lambda path: path.write_bytes(b"\0" * 10**6)):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        folder = Path(shutil.copytree(whole, tmp_path / "c"))
        checkpoint = Checkpoint.open(folder, verify=False)
        (folder / "model.safetensors").unlink()
        put(folder / "model.safetensors")
        with pytest.raises(CheckpointDamagedError, match=r"model\.safetensors"):
            checkpoint.weights()


# Reads a checkpoint with little more address space than the process has.
LIMITED = """
import resource, sys
import torch
from tests.checkpoint.hostility import content
from trainlab.errors import TrainlabError
content(sys.argv[3])  # what is needed once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    content(sys.argv[1])
    print("read")
except TrainlabError as error:
    print(type(error).__name__, str(error)[:300])
"""


def read_limited(folder: Path, more_bytes: int, whole: Path) -> str:
    """The outcome of reading a checkpoint with so many more bytes of memory than reading a whole one takes."""
    program = [sys.executable, "-c", LIMITED, str(folder), str(more_bytes), str(whole)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def empties(count: int) -> bytes:
    """A file of tensors without elements."""
    text = b"{" + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)) + b"}"
    return len(text).to_bytes(8, "little") + text


def shaped(shape: str, end: int, size: int = 8) -> bytes:
    """A file of one tensor that is said to be larger than it is."""
    text = b'{"w":{"dtype":"F32","shape":%s,"data_offsets":[0,%d]}}' % (shape.encode(), end)
    return len(text).to_bytes(8, "little") + text + bytes(size)


LARGE = {
    "a shape of 16 TB": ("model.safetensors", shaped("[4398046511104]", 2**44), "Damaged"),
    "a shape beyond 64 bits": ("model.safetensors", shaped("[9223372036854775807, 4]", 2**63 - 1), "Damaged"),
    "a header of 2**63 bytes": ("model.safetensors", (2**63).to_bytes(8, "little") + b"{}", "Damaged"),
    "as many tensors as fit": ("state.safetensors", empties(20_000), "Damaged"),
    "as many lists as fit": ("state.json", b"[" + b"[]," * 300_000 + b"[]]", "read"),
    "as many objects as fit": ("state.json", b"[" + b"{}," * 300_000 + b"0]", "read"),
    "a deep list": ("state.json", b"[" * 500_000 + b"]" * 500_000, "Damaged"),
    "a deep header": ("state.safetensors", b"\x40\x42\x0f\0\0\0\0\0" + b'{"a":' * 200_000, "Damaged"),
    "a number of a million digits": ("state.json", b"[" + b"9" * 1_000_000 + b"]", "Damaged"),
    "a hexadecimal number of a million digits": (
        "state.json",
        b'{"$":"int","v":"0x' + b"f" * 1_000_000 + b'"}',
        "read",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data", "outcome"), LARGE.values(), ids=LARGE)
def test_memory_is_bounded_by_what_is_there(whole: Path, tmp_path: Path, name: str, data: bytes, outcome: str) -> None:
    """Lies about sizes, and structures that blow up, take at most 64 times the files' own bytes and 128 MiB."""
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    replace(folder, name, data)
    size = sum(path.stat().st_size for path in folder.iterdir())
    told = read_limited(folder, 64 * size + 128 * 2**20, whole)
    assert outcome in told
    assert "not enough memory" not in told


@pytest.mark.slow
def test_tensors_take_their_own_memory_only(whole: Path, tmp_path: Path) -> None:
    """Large weights are read into the memory that they need, and no second copy is made on the way."""
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    count = 2**26
    replace(folder, "model.safetensors", shaped(f"[{count}]", 4 * count, 4 * count))
    assert read_limited(folder, 4 * count + 128 * 2**20, whole) == "read\n"
    assert "CheckpointError There is not enough memory" in read_limited(folder, 2 * count, whole)


@pytest.mark.slow
def test_a_manifest_of_many_files_is_bounded_too(whole: Path, tmp_path: Path) -> None:
    """A manifest that lists a hundred thousand files that are not there costs little, and is refused."""
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    entry = described(b"")
    rewrite(folder, lambda manifest: manifest["files"].update({f"f{i}": entry for i in range(100_000)}))
    size = (folder / "manifest.json").stat().st_size
    assert "f0: it is missing" in read_limited(folder, 16 * size + 128 * 2**20, whole)


@pytest.mark.slow
def test_the_fuzzer_runs() -> None:
    """The atheris target can be run by hand, and finds nothing in a few thousand runs."""
    pytest.importorskip("atheris")
    program = [sys.executable, "-m", "tests.checkpoint.fuzz", "--runs", "2000", "--seed", "1"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 2000" in done.stderr
