import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard

from tests.checkpoint.hostility import sample
from tests.checkpoint.ranks import WHOLE, write_sharded
from tests.checkpoint.samples import bits, described, replace, rewrite, write
from trainlab.checkpoint import Checkpoint
from trainlab.checkpoint.json_text import parse_json
from trainlab.checkpoint.manifest import FileEntry, is_inside, read_manifest, read_sequence, render_manifest
from trainlab.errors import CheckpointDamagedError, CheckpointError
from trainlab.storage import Checksum

# How tensors of two dimensions, and of one, may be cut over four ranks.
CUT = (((4,), [Shard(0)]), ((2, 2), [Replicate(), Shard(0)]))
EMPTY = "xxh3_128:" + "0" * 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return write(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "root" / whole.name))


def content(**others: Any) -> dict[str, Any]:
    """A manifest's content."""
    return {
        "format": "trainlab-checkpoint",
        "format_version": 3,
        "sequence": 7,
        "created": "2026-01-01T00:00:00+00:00",
        "files": {
            "model.safetensors": {"size": 8, "checksum": EMPTY},
            "state.json": {"size": 2, "checksum": EMPTY},
            "state.safetensors": {"size": 10, "checksum": EMPTY},
        },
        "weights": {"model": {"0": "model.safetensors"}},
        "state": {"structure": "state.json", "tensors": "state.safetensors"},
        "ranks": [],
        "progress": {"batches_trained": 3},
        "trial_class": "m:T",
        "hparams": {"lr": 0.1},
        "exp_conf": None,
        "versions": {"torch": "2.6"},
        **others,
    }


def test_a_manifest_tells_what_was_rendered() -> None:
    """What is rendered is read again, with its files as entries."""
    manifest = read_manifest(render_manifest(content()), "here")
    assert manifest.files["state.json"] == FileEntry(size=2, checksum=EMPTY)
    told = {key: value for key, value in vars(manifest).items() if key != "files"}
    assert told == {key: value for key, value in content().items() if key in told}
    assert read_sequence(render_manifest(content())) == 7


def test_its_checksum_is_that_of_the_text_before_it() -> None:
    """A reader in any language checks a manifest without rendering JSON: it cuts off the last member, and hashes."""
    data = render_manifest(content())
    before, _, after = data.rpartition(b',\n "manifest_checksum": "')
    checksum = Checksum()
    checksum.update(before + b"\n}\n")
    assert after == f'{checksum.text}"\n}}\n'.encode()
    assert before + b"\n}\n" == json.dumps(content(), indent=1).encode() + b"\n"


def test_any_changed_byte_shows() -> None:
    """Whatever happens to a single byte of a manifest, it is not read as another one."""
    data = render_manifest(content())
    for position in range(len(data)):
        for changed in (bytes([data[position] ^ 1]), b"", bytes([data[position]]) * 2, b" " + bytes([data[position]])):
            spoilt = data[:position] + changed + data[position + 1 :]
            with pytest.raises(CheckpointDamagedError):
                read_manifest(spoilt, "here")
            assert read_sequence(spoilt) is None


def _more(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest["files"], "a": manifest["files"]["state.json"], "b": manifest["files"]["state.json"]}


def _rank(weights: Any) -> dict[str, Any]:
    return {"weights": weights, "state": {"structure": "a", "tensors": "b"}}


HOSTILE = {
    "files are a list": lambda m: m.update(files=[]),
    "a negative size": lambda m: m["files"]["state.json"].update(size=-1),
    "a size that is true": lambda m: m["files"]["state.json"].update(size=True),
    "a size that is no integer": lambda m: m["files"]["state.json"].update(size=2.0),
    "a size beyond 64 bits": lambda m: m["files"]["state.json"].update(size=2**63),
    "sizes beyond 64 bits in all": lambda m: [entry.update(size=2**62) for entry in m["files"].values()],
    "a checksum that is no text": lambda m: m["files"]["state.json"].update(checksum=3),
    "a checksum of no algorithm": lambda m: m["files"]["state.json"].update(checksum="crc:00"),
    "a checksum that is too short": lambda m: m["files"]["state.json"].update(checksum="xxh3_128:00"),
    "a checksum that is a path": lambda m: m["files"]["state.json"].update(checksum="sha256:../../" + "0" * 58),
    "an entry that is no object": lambda m: m["files"].update({"state.json": 3}),
    "an entry with more": lambda m: m["files"]["state.json"].update(mode=7),
    "a file below a file": lambda m: m["files"].update({"state.json/x": {"size": 0, "checksum": EMPTY}}),
    "weights in no listed file": lambda m: m["weights"]["model"].update({"0": "other.safetensors"}),
    "weights in the manifest": lambda m: m["weights"]["model"].update({"0": "manifest.json"}),
    "weights that are no object": lambda m: m.update(weights={"model": ["model.safetensors"]}),
    "a file read many times": lambda m: m["weights"]["model"].update({"1": "model.safetensors"}),
    "a file read as weights and state": lambda m: m["weights"]["model"].update({"1": "state.safetensors"}),
    "no weights": lambda m: m.pop("weights"),
    "no further ranks": lambda m: m.pop("ranks"),
    "further ranks that are a number": lambda m: m.update(ranks=2),
    "a further rank without a state": lambda m: m.update(ranks=[{"weights": {}}]),
    "a further rank whose state is nowhere": lambda m: m.update(
        ranks=[{"weights": {}, "state": {"structure": "x", "tensors": "y"}}]
    ),
    "a further rank with the first one's files": lambda m: m.update(ranks=[{"weights": {}, "state": m["state"]}]),
    "a further rank with weights that are none": lambda m: (
        m.update(files=_more(m)),
        m.update(ranks=[_rank(weights=[])]),
    ),
    "a further rank with a model of its own": lambda m: (
        m.update(files=_more(m)),
        m.update(ranks=[_rank(weights={"model": {"1": "c"}})]),
    ),
    "a state in no listed file": lambda m: m["state"].update(tensors="/etc/passwd"),
    "a state of three": lambda m: m["state"].update(more="model.safetensors"),
    "a sequence that is no number": lambda m: m.update(sequence="1"),
    "a sequence that is true": lambda m: m.update(sequence=True),
    "a sequence of zero": lambda m: m.update(sequence=0),
    "a sequence beyond 64 bits": lambda m: m.update(sequence=2**63),
    "a date that is a number": lambda m: m.update(created=3),
    "a date without an end": lambda m: m.update(created="2" * 1000),
    "a class that is no text": lambda m: m.update(trial_class=None),
    "no progress": lambda m: m.update(progress=None),
    "progress that is a tuple": lambda m: m.update(progress={"$": "tuple", "v": []}),
    "no hparams": lambda m: m.pop("hparams"),
    "hparams of an unknown kind": lambda m: m.update(hparams={"$": "eval", "v": "1"}),
    "hparams with a tensor": lambda m: m.update(hparams={"$": "tensor", "v": "x"}),
    "versions that are none": lambda m: m.update(versions=[]),
    "a member too many": lambda m: m.update(data_set_state=None),
    "a version that is true": lambda m: m.update(format_version=True),
    "a version of zero": lambda m: m.update(format_version=0),
    "no version": lambda m: m.pop("format_version"),
    "another format": lambda m: m.update(format="other"),
    "another algorithm for itself": lambda m: m.update(manifest_checksum=EMPTY),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_of_another_shape_is_damaged(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest whose checksum is right and whose content is not gives the same clear error, that names it."""
    rewrite(copy, change)
    with pytest.raises(CheckpointDamagedError, match=rf"{copy}(: The state| is damaged: manifest\.json)"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/hostname",
        "a/../../outside",
        "./model.safetensors",
        "a\\b",
        "",
        ".",
        "\0",
        "a//b",
        "manifest.json",
    ],
)
def test_a_manifest_cannot_name_a_file_outside(copy: Path, name: str) -> None:
    """A hostile manifest does not make us read any other file."""
    (copy.parent / "outside").write_bytes(b"secret")
    rewrite(copy, lambda manifest: manifest["files"].update({name: described(b"secret")}))
    with pytest.raises(CheckpointDamagedError, match="outside of its folder"):
        Checkpoint.open(copy)


@given(st.text())
def test_a_name_that_is_inside_stays_inside(name: str) -> None:
    """Every name that a manifest may list leads below the checkpoint's folder, and is its only spelling."""
    if is_inside(name):
        path = Path("/a/checkpoint", name)
        assert str(path) == f"/a/checkpoint/{name}"
        assert path.parents[len(path.parts) - 4] == Path("/a/checkpoint")
        assert name.encode()


def test_a_later_format_is_refused(copy: Path) -> None:
    """A checkpoint of a version that we do not know is not guessed at, and not called damaged."""
    rewrite(copy, lambda manifest: (manifest.update(format_version=4), manifest.pop("weights")))
    with pytest.raises(CheckpointError, match=f"{copy} is of a later format version.*Received: 4") as raised:
        Checkpoint.open(copy)
    assert type(raised.value) is CheckpointError


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": "trainlab-checkpoint", "format": "trainlab-checkpoint"}',
        '{"format": "trainlab-checkpoint", "sequence": NaN}',
        '{"format": "trainlab-checkpoint", "sequence": 1e999}',
        '{"format": "trainlab-checkpoint", "sequence": ' + "9" * 5000 + "}",
        '{"format": "trainlab-checkpoint", "a": ' + "[" * 900 + "]" * 900 + "}",
        '{"format": "trainlab-checkpoint", "a": "\\ud800"}',
        "\0",
        "",
        "\ufeff{}",
    ],
    ids="deep,key twice,NaN,infinity,huge number,deep and closed,half a character,zero,empty,byte order mark".split(
        ","
    ),
)
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_hostile_json_is_damaged(copy: Path, name: str, text: str) -> None:
    """JSON that would exhaust or confuse a reader is an error that names the file, in the manifest and in the state."""
    if name == "state.json":
        replace(copy, name, text.encode())
        with pytest.raises(CheckpointDamagedError, match=str(copy)):
            Checkpoint.open(copy).state()
    else:
        (copy / name).write_text(text)
        with pytest.raises(CheckpointDamagedError, match=f"{copy} is damaged: {name}"):
            Checkpoint.open(copy)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_is_read_as_the_standard_has_it(value: Any) -> None:
    """What is stricter than Python's own reader takes nothing away from JSON."""
    for ascii_only in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_only_numbers_of_64_bits_are_read() -> None:
    """A number that no other language reads, or that takes minutes to read, is refused by its length."""
    assert parse_json(b"[18446744073709551615, -9223372036854775808]") == [2**64 - 1, -(2**63)]
    with pytest.raises(ValueError, match="21 digits"):
        parse_json(b"9" * 21)


def test_an_oversized_manifest_is_not_read(copy: Path) -> None:
    """A manifest of gigabytes is refused by its size."""
    with (copy / "manifest.json").open("r+b") as file:
        file.truncate(2**34)
    with pytest.raises(CheckpointDamagedError, match="17179869184 bytes"):
        Checkpoint.open(copy)


def test_the_reader_in_the_specification_reads_what_is_specified(tmp_path: Path) -> None:
    """The page of the format is enough to read weights, complex and tied ones too, and to find damage."""
    page = (Path(__file__).parents[2] / "docs" / "checkpoint_format.md").read_text(encoding="utf-8")
    code = page.partition("## A reader")[2].partition("```python\n")[2].partition("```")[0]
    its: dict[str, Any] = {}
    exec(code, its)
    write(tmp_path, 7)
    folder = sample(tmp_path)  # of batch 5, and later
    assert its["newest"](tmp_path) == folder
    expected = Checkpoint.open(folder).weights()["0"]
    found = its["read_weights"](folder)
    assert found.keys() == expected.keys()
    for key, (dtype, shape, content) in found.items():
        assert (bits(expected[key]), list(expected[key].shape)) == (content, shape)
        assert (dtype == "C64") == expected[key].is_complex()
    for name in ("manifest.json", "model.safetensors"):
        data = (folder / name).read_bytes()
        for position in range(0, len(data), 7):
            (folder / name).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(ValueError, match="damaged|version"):
                its["read_weights"](folder)
        (folder / name).write_bytes(data)
    for number, (mesh, placements) in enumerate(CUT):
        folder = write_sharded(tmp_path / str(number), 4, mesh=mesh, placements=placements)
        found = its["read_weights"](folder)
        assert {name: content for name, (_, _, content) in found.items() if name in WHOLE} == {
            name: bits(tensor) for name, tensor in WHOLE.items()
        }
        assert (found["uneven"][:2], bytes(found["tied"][2])) == (("I64", [7, 5]), bits(WHOLE["even"]))
