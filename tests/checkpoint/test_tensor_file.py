import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from tests.checkpoint.samples import model_state, same
from trainlab.checkpoint.tensor_file import TensorFile, read_tensors
from trainlab.errors import CheckpointDamagedError, CheckpointError
from trainlab.storage import Checksum

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
    *(torch.float8_e5m2, torch.complex64, torch.complex128),
]
# Those that safetensors of any supported version reads.
COMMON = [*DTYPES[:6], *DTYPES[9:13]]


def filled(dtype: torch.dtype, shape: list[int], seed: int = 0) -> torch.Tensor:
    """A tensor of any dtype, of any bits."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape) * dtype.itemsize
    high = 2 if dtype is torch.bool else 256
    return torch.randint(0, high, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def content(tensors: dict[str, torch.Tensor]) -> bytes:
    """The bytes of a file."""
    return b"".join(TensorFile(tensors).pieces())


def read(data: bytes, *, checksum: str | None = None, size: int | None = None) -> dict[str, torch.Tensor]:
    """Read a file from memory."""
    return read_tensors(io.BytesIO(data), size=len(data) if size is None else size, checksum=checksum, name="the file")


def raw(header: Any, data: bytes = b"") -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


SHAPES = st.lists(st.integers(0, 4), max_size=4)
TENSORS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.tuples(st.sampled_from(DTYPES), SHAPES))


@given(TENSORS)
def test_all_dtypes_and_shapes_come_back(described: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    """Tensors of every dtype, shape and name are read with every bit as it was."""
    described.pop("__metadata__", None)
    tensors = {name: filled(*of, seed) for seed, (name, of) in enumerate(described.items())}
    found = read(content(tensors))
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensor) for name, tensor in tensors.items())


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.tuples(st.sampled_from(COMMON), SHAPES)))
def test_the_library_reads_what_we_write_and_we_read_what_it_writes(
    described: dict[str, tuple[torch.dtype, list[int]]],
) -> None:
    """Files go both ways between trainlab and the safetensors library."""
    described.pop("__metadata__", None)
    tensors = {name: filled(*of, seed) for seed, (name, of) in enumerate(described.items())}
    for found in (load(content(tensors)), read(save(tensors, {"format": "pt"})), read(save(tensors))):
        assert found.keys() == tensors.keys()
        assert all(same(found[name], tensor) for name, tensor in tensors.items())


def test_complex_numbers_of_the_library_are_read() -> None:
    """A plain file with complex numbers, which newer safetensors have, is read."""
    header = {"z": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}
    assert same(read(raw(header, torch.tensor([1.0, 2.0]).numpy().tobytes()))["z"], torch.tensor([1 + 2j]))


def test_tied_tensors_are_stored_once_and_read_as_one() -> None:
    """Tied weights take room once, under the first name; views that share memory in part are stored apart."""
    flat = torch.arange(12.0)
    tensors = {"a": flat, "rows": flat.view(3, 4), "columns": flat.view(3, 4).T, "part": flat[4:7], "b": flat[:]}
    data = content(tensors)
    assert load(data).keys() == {"a", "rows", "columns", "part"}
    found = read(data)
    assert all(same(found[name], tensor) for name, tensor in tensors.items())
    assert found["a"] is found["b"]
    assert found["rows"].data_ptr() != found["a"].data_ptr()


def test_lazy_views_are_stored_as_they_look() -> None:
    """Conjugated, negated and expanded tensors, and parameters, are stored as the numbers that they show."""
    z = torch.tensor([1 + 2j, 3 - 4j])
    tensors = {
        "conj": z.conj(),
        "neg": z.conj().imag,
        "both": torch._neg_view(torch.randn(2, 3, dtype=torch.complex128).conj()).T,
        "expanded": torch.ones(1).expand(3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    assert tensors["neg"].is_neg()
    found = read(content(tensors))
    assert all(same(found[name], tensor.detach().clone()) for name, tensor in tensors.items())
    assert not found["parameter"].requires_grad


def test_the_staged_form_is_the_same_file() -> None:
    """Tensors copied to the targets in a buffer give byte for byte the file of the tensors themselves."""
    tensors = {**model_state(), "empty": torch.ones(0, 3), "flag": torch.tensor(True), "z": torch.randn(3) * 1j}
    file = TensorFile(tensors)
    buffer = torch.full((file.size + 100,), 255, dtype=torch.uint8)
    for target, source in zip(file.targets(buffer), file.sources, strict=True):
        target.copy_(source)
    assert b"".join(file.pieces(buffer)) == content(tensors)
    assert len(content(tensors)) == len(file.header) + file.size
    assert len(file.header) % 8 == 0


def test_a_file_of_nothing_is_a_file() -> None:
    """A state dict without tensors is kept, too."""
    assert read(content({})) == {}
    assert b"".join(TensorFile({}).pieces(torch.empty(0, dtype=torch.uint8))) == content({})


REFUSED = {
    "a sparse tensor": ({"w": torch.eye(2).to_sparse()}, "w, a tensor of layout torch.sparse_coo"),
    "a tensor without data": ({"w": torch.empty(2, device="meta")}, "on meta"),
    "a lazy parameter": (dict(nn.LazyLinear(2).named_parameters()), "weight, a UninitializedParameter"),
    "a reserved name": ({"__metadata__": torch.ones(1)}, "a name that safetensors cannot have"),
    "half a character": ({"\ud800": torch.ones(1)}, "a name that safetensors cannot have"),
    "a dtype of few": ({"w": torch.empty(2, dtype=torch.float8_e4m3fnuz)}, "w, a tensor of torch.float8_e4m3fnuz"),
}


@pytest.mark.parametrize(("tensors", "match"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_stored_is_named(tensors: dict[str, torch.Tensor], match: str) -> None:
    """A tensor that safetensors cannot hold is refused when the file is laid out, by its name."""
    with pytest.raises(CheckpointError, match=match):
        TensorFile(tensors)


def test_the_checksum_is_compared_on_the_way() -> None:
    """A file is read and compared in one pass, and one that differs gives no tensors."""
    data = content(model_state())
    checksum = Checksum()
    checksum.update(data)
    assert read(data, checksum=checksum.text).keys() == model_state().keys()
    for position in range(len(data)):
        spoilt = bytearray(data)
        spoilt[position] ^= 1
        with pytest.raises(CheckpointDamagedError, match="the file"):
            read(bytes(spoilt), checksum=checksum.text)


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """An entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DATA = bytes(8)
HOSTILE = {
    "nothing": b"",
    "too short": b"\0" * 7,
    "a header beyond the end": (2**63).to_bytes(8, "little") + b"{}",
    "an endless header": b"\xff" * 100,
    "an empty header": raw(b""),
    "a list": raw([]),
    "leading space": raw(b" {}"),
    "no JSON": raw(b"{"),
    "deep": raw(b'{"a":' * 100_000),
    "deep and closed": raw(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    "a key twice": raw(b'{"a":1,"a":1}'),
    "metadata that is a list": raw({"__metadata__": []}),
    "metadata that is no text": raw({"__metadata__": {"a": 1}}),
    "an entry that is no object": raw({"w": 1}, DATA),
    "an entry with more": raw({"w": {**entry(), "more": 1}}, DATA),
    "a dtype that is a list": raw({"w": entry(dtype=[])}, DATA),  # type: ignore[arg-type]
    "an unknown dtype": raw({"w": entry(dtype="F4")}, DATA),
    "a shape that is no list": raw({"w": entry(shape=2)}, DATA),
    "a shape of booleans": raw({"w": entry(shape=[2, True])}, DATA),
    "a shape of floats": raw({"w": entry(shape=[2.0])}, DATA),
    "a negative shape": raw({"w": entry(shape=[-2, -1])}, DATA),
    "many dimensions": raw({"w": entry(shape=[2] + [1] * 64)}, DATA),
    "a huge shape": raw({"w": entry(shape=[2**40, 2**40])}, DATA),
    "a huge shape of nothing": raw({"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}),
    "a huge number": raw(b'{"w":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,8]}}', DATA),
    "a shape that does not fit": raw({"w": entry(shape=[3])}, DATA),
    "negative offsets": raw({"w": entry(offsets=[-8, 0])}, DATA),
    "one offset": raw({"w": entry(offsets=[8])}, DATA),
    "swapped offsets": raw({"w": entry(offsets=[8, 0])}, DATA),
    "an overlap": raw({"v": entry(), "w": entry()}, DATA),
    "a gap": raw({"v": entry(), "w": entry(offsets=[16, 24])}, DATA * 3),
    "an overlap and a gap": raw({"u": entry(), "v": entry(), "w": entry(offsets=[16, 24])}, DATA * 3),
    "a gap at the start": raw({"w": entry(offsets=[8, 16])}, DATA * 2),
    "data beyond": raw({"w": entry()}, DATA * 2),
    "data missing": raw({"w": entry()}, DATA[:-1]),
    "a boolean of 2": raw({"w": entry("BOOL", [1], [0, 1])}, b"\2"),
    "aliases that are a list": raw({"__metadata__": {"aliases": "[]"}, "w": entry()}, DATA),
    "aliases that are no JSON": raw({"__metadata__": {"aliases": "{"}, "w": entry()}, DATA),
    "an alias of nothing": raw({"__metadata__": {"aliases": '{"v": "x"}'}, "w": entry()}, DATA),
    "an alias of itself": raw({"__metadata__": {"aliases": '{"v": "v"}'}, "w": entry()}, DATA),
    "an alias over a tensor": raw({"__metadata__": {"aliases": '{"w": "w"}'}, "w": entry()}, DATA),
    "an alias of a number": raw({"__metadata__": {"aliases": '{"v": 1}'}, "w": entry()}, DATA),
    "complex integers": raw({"__metadata__": {"complex": '["w"]'}, "w": entry("I32")}, DATA),
    "a complex scalar": raw({"__metadata__": {"complex": '["w"]'}, "w": entry("F64", [])}, DATA),
    "complex threes": raw({"__metadata__": {"complex": '["w"]'}, "w": entry(shape=[3], offsets=[0, 12])}, bytes(12)),
    "complex twice": raw({"__metadata__": {"complex": '["w", "w"]'}, "w": entry()}, DATA),
    "complex nothing": raw({"__metadata__": {"complex": '["v"]'}, "w": entry()}, DATA),
    "complex that is an object": raw({"__metadata__": {"complex": '{"w": "w"}'}, "w": entry()}, DATA),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_damaged(data: bytes) -> None:
    """A file whose header lies, in whatever way, is one clear error that names the file."""
    with pytest.raises(CheckpointDamagedError, match="the file"):
        read(data)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(raw))
def test_any_bytes_are_read_or_damaged(data: bytes) -> None:
    """Any bytes are either a file of tensors or one error, and never a crash."""
    try:
        read(data)
    except CheckpointDamagedError:
        return
    assert safetensors.deserialize(data) is not None


def test_a_file_that_shrinks_or_grows_meanwhile_is_damaged() -> None:
    """A file that is not of the size that was told is found, however short it falls."""
    data = content(model_state())
    for size in (len(data) + 1, len(data) - 1, len(data) + 2**40):
        with pytest.raises(CheckpointDamagedError):
            read(data, size=size)
    with pytest.raises(CheckpointDamagedError, match="goes on after its end"):
        read(data + b"x", size=len(data))


def test_too_little_memory_is_not_called_damage() -> None:
    """A file that is larger than this machine's memory is an error that says so."""
    size = 2**60
    text = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with pytest.raises(CheckpointError, match="not enough memory to read the file") as raised:
        read(raw(text), size=8 + len(text) + size)
    assert type(raised.value) is CheckpointError


def test_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    """A file may be overwritten or deleted after it was read."""
    data = content(model_state())
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        found = read_tensors(file, size=len(data), checksum=None, name="the file")
    (tmp_path / "file").write_bytes(b"\xff" * len(data))
    assert all(same(found[name], tensor) for name, tensor in model_state().items())


def test_tensors_can_be_written_to_and_are_aligned() -> None:
    """What is read is memory like any other: writable, and each tensor where torch would have put it."""
    found = read(content({f"odd {n}": torch.ones(n, dtype=torch.uint8) for n in (1, 3, 5)} | model_state()))
    for tensor in found.values():
        assert tensor.data_ptr() % 16 == 0
        tensor.zero_()
