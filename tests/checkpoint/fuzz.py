"""Fuzz the readers of a checkpoint with atheris, guided by coverage: ``python -m tests.checkpoint.fuzz --runs 100000``.

Whatever the bytes of a manifest, of a file of tensors or of the state's structure are, the outcome is content that
could have been saved, or trainlab's own error. Needs ``pip install atheris``. An input that does otherwise is written
to the working folder by atheris, and tried again by its path as the last argument.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["trainlab.checkpoint", "json"]):
    from trainlab.checkpoint.json_text import parse_json
    from trainlab.checkpoint.manifest import read_manifest, read_sequence
    from trainlab.checkpoint.parts import tiles
    from trainlab.checkpoint.tensor_file import TensorFile, read_index, read_rows, read_tensors
    from trainlab.checkpoint.tree import decode, encode

from tests.checkpoint.hostility import sample, sharded_sample
from trainlab.errors import TrainlabError
from trainlab.storage import Checksum


def try_manifest(data: bytes) -> None:
    """Read a manifest whose own checksum is right, and what it tells."""
    end = b"\n}\n"
    checksum = Checksum()
    checksum.update(data + end)
    for content in (data, data + f',\n "manifest_checksum": "{checksum.text}"'.encode() + end):
        read_sequence(content)
        manifest = read_manifest(content, "here")
        for part in (manifest.progress, manifest.hparams, manifest.exp_conf, manifest.versions):
            encode(decode(part, {}))


def try_tensors(data: bytes) -> None:
    """Read a file of tensors, and write it again."""
    found = read_tensors(io.BytesIO(data), size=len(data), checksum=None, name="here")
    again = b"".join(TensorFile(found).pieces())
    read_tensors(io.BytesIO(again), size=len(again), checksum=None, name="again")


def try_state(data: bytes) -> None:
    """Put a state together from tensors and any structure, and save it again."""
    length = int.from_bytes(TENSORS[:8], "little")
    tensors = read_tensors(io.BytesIO(TENSORS), size=len(TENSORS), checksum=None, name="here")
    assert length
    try:
        structure = parse_json(data)
    except ValueError:
        return
    encode(decode(structure, tensors))


def try_parts(data: bytes) -> None:
    """Read a file of parts of tensors by its header, and every other row of each."""
    index = read_index(io.BytesIO(data), size=len(data), name="here")
    for stored in index.tensors.values():
        if stored.part is not None:
            tiles(stored.part[1], [stored.part[0]] * 3)
        rows = stored.shape[0] if stored.shape else 1
        found = read_rows(io.BytesIO(data), index, stored, rows // 2, rows, name="here")
        assert found.dtype == stored.dtype
        assert found.shape[1:] == stored.shape[1:]


TARGETS = (try_manifest, try_tensors, try_state, try_parts)
TENSORS = b""


def fuzz_one(data: bytes) -> None:
    """One input: its first byte says which file it is."""
    if data:
        try:
            TARGETS[data[0] % len(TARGETS)](data[1:])
        except TrainlabError:
            return


def seeds(folder: Path) -> None:
    """Write what the fuzzer starts from: the files of a real checkpoint."""
    global TENSORS  # noqa: PLW0603 (atheris calls a function of one argument)
    whole = sample(folder / "checkpoint")
    TENSORS = (whole / "state.safetensors").read_bytes()
    manifest = (whole / "manifest.json").read_bytes().rpartition(b',\n "manifest_checksum"')[0]
    corpus = folder / "corpus"
    corpus.mkdir()
    contents = [manifest, TENSORS, (whole / "state.json").read_bytes()]
    contents_of = [(0, manifest), (1, (whole / "model.safetensors").read_bytes()), *enumerate(contents)]
    part = sharded_sample(folder / "sharded") / "rank-1" / "model.safetensors"
    contents_of += [(1, part.read_bytes()), (3, part.read_bytes())]
    contents_of += [(2, json.dumps(part).encode()) for part in json.loads(contents[2]).values()]
    for number, (target, content) in enumerate(contents_of):
        (corpus / str(number)).write_bytes(bytes([target]) + content)


def main() -> None:
    """Run the fuzzer."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=100_000)
    arguments.add_argument("--seconds", type=int, default=0, help="stop after so long, whatever --runs; 0 for never")
    arguments.add_argument("--seed", type=int, default=0, help="of the mutations; 0 for any")
    arguments.add_argument("input", nargs="*", help="files to try instead")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds(Path(folder))
        options = [f"-runs={given.runs}", f"-max_total_time={given.seconds}", f"-seed={given.seed}", "-max_len=8192"]
        inputs = given.input or [str(Path(folder) / "corpus")]
        atheris.Setup([sys.argv[0], *options, "-timeout=30", "-rss_limit_mb=4096", *inputs], fuzz_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
