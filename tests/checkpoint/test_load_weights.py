import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

from tests.checkpoint.samples import same, write
from trainlab.checkpoint.warm_start import LoadedKeys, load_weights
from trainlab.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InvalidTypeError,
    InvalidValueError,
)
from trainlab.storage import open_store


class Net(nn.Module):
    """A small model with a buffer."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, classes)


class Tied(nn.Module):
    """A model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embedding.weight


def net(seed: int, **arguments: Any) -> Net:
    """A model of other weights for each seed."""
    torch.manual_seed(seed)
    return Net(**arguments)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state dict."""
    return dict(copy.deepcopy(model.state_dict()))


def saved(folder: Path, model: nn.Module) -> Path:
    """A checkpoint of a model."""
    return write(folder, weights={"model": {"0": state(model)}})


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights, bit by bit."""
    return same(state(one), state(other))


@pytest.fixture(params=["checkpoint", "file", "text", "link"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """The weights of ``net(1)`` in each of the forms that can be loaded."""
    checkpoint = saved(tmp_path, net(1))
    if request.param == "link":  # as in the cache of the Hugging Face hub
        (tmp_path / "weights.safetensors").symlink_to(checkpoint / "model.safetensors")
        return tmp_path / "weights.safetensors"
    forms = {
        "checkpoint": checkpoint,
        "file": checkpoint / "model.safetensors",
        "text": str(checkpoint / "model.safetensors"),
    }
    return forms[request.param]


def test_weights_are_loaded_from_a_checkpoint_or_a_file(source: Path | str) -> None:
    """Parameters and buffers are those of the file, bit by bit, and the keys are told."""
    model = net(2)
    keys = load_weights(model, source)
    assert equal(model, net(1))
    assert keys == LoadedKeys(loaded=list(net(1).state_dict()), missing=[], unknown=[], misshapen=[])
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_a_file_of_another_tool_is_loaded(tmp_path: Path) -> None:
    """A plain file of the safetensors library is a source like any other."""
    save_file(state(net(1)), tmp_path / "other.safetensors")
    model = net(2)
    load_weights(model, tmp_path / "other.safetensors")
    assert equal(model, net(1))


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL of files in memory, whose copies are cached in the test's folder."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    yield "memory://loading"
    open_store("memory://").remove_folder("loading")


def test_weights_are_loaded_from_a_url(memory: str) -> None:
    """A checkpoint and a plain file of another file system are loaded by their URLs."""
    path = str(write(open_store(memory), weights={"model": {"0": state(net(1))}}))
    for place in (path, f"{path}/model.safetensors"):
        model = net(2)
        load_weights(model, place)
        assert equal(model, net(1))
    with pytest.raises(CheckpointNotFoundError, match="no such file of weights"):
        load_weights(model, f"{path}/other.safetensors")


def test_all_that_does_not_fit_is_listed_and_nothing_loaded(tmp_path: Path) -> None:
    """By default one error lists missing, unknown and mis-shaped keys, and the model stays as it was."""
    source = saved(tmp_path, nn.ModuleDict({"body": net(1).body, "head": nn.Linear(4, 3), "old": nn.Linear(1, 1)}))
    model = net(2)
    model.new = nn.Linear(1, 1, bias=False)
    before = state(model)
    with pytest.raises(CheckpointMismatchError) as raised:
        load_weights(model, source)
    for part in (
        *(str(source), "into Net", "missing in the file: new.weight; unknown to the model: old.weight, old.bias;"),
        "head.weight ([3, 4] of float32 instead of [2, 4] of float32), head.bias",
        "strict=False",
    ):
        assert part in str(raised.value)
    assert same(state(model), before)


def test_what_fits_is_loaded_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """strict=False loads what fits, leaves the rest as it was, tells both, and warns of each group."""
    source = saved(tmp_path, nn.ModuleDict({"body": net(1).body, "head": nn.Linear(4, 3), "old": nn.Linear(1, 1)}))
    model = net(2)
    model.new = nn.Linear(1, 1, bias=False)
    before = state(model)
    keys = load_weights(model, source, strict=False)
    body = [key for key in before if key.startswith("body")]
    assert keys == (body, ["new.weight"], ["old.weight", "old.bias"], ["head.weight", "head.bias"])
    assert equal(model.body, net(1).body)
    assert all(same(value, before[key]) for key, value in state(model).items() if not key.startswith("body"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("7 of 10 keys", "missing in the file: new.weight;", "unknown to the model: old", "shape: head.weight"):
        assert part in record.getMessage()


def test_weights_of_which_none_fits_are_an_error_even_then(tmp_path: Path) -> None:
    """A wrong file is not loaded as nothing, whatever is asked for."""
    with pytest.raises(CheckpointMismatchError, match="None of the weights fit.*missing in the file: body"):
        load_weights(net(2), saved(tmp_path, nn.Linear(9, 9)), strict=False)


def test_prefixes_are_renamed_the_longest_first(tmp_path: Path) -> None:
    """A mapping renames by prefix: that of a part wins over that of the whole, and other keys stay."""
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"body": net(1).body, "classifier": net(1).head})})
    source = saved(tmp_path, wrapped)
    model = net(2)
    load_weights(model, source, rename={"module.": "", "module.classifier.": "head."})
    assert equal(model, net(1))
    with pytest.raises(InvalidValueError, match="No key begins with the prefixes of rename. Received: 'modul.'"):
        load_weights(model, source, rename={"module.": "", "module.classifier.": "head.", "modul.": ""})


def test_a_function_renames_and_leaves_out(tmp_path: Path) -> None:
    """A function gives each key its name in the model, and None drops it without a word about it later."""
    source = saved(tmp_path, nn.ModuleDict({"net": net(1), "extra": nn.Linear(1, 1)}))
    model = net(2)
    keys = load_weights(model, source, rename=lambda key: key[4:] if key.startswith("net.") else None)
    assert equal(model, net(1))
    assert keys.unknown == []


def test_misuse_of_rename_is_said(source: Path | str) -> None:
    """Two keys of one name, and what is no name, are errors that tell the keys."""
    for collide in ({"body.0.": "x.", "head.": "x."}, lambda key: key.rpartition(".")[2]):
        with pytest.raises(InvalidValueError, match="rename gives several keys the same name. Received: '(x.)?weight'"):
            load_weights(net(2), source, rename=collide)
    for wrong in ({"body.": None}, {1: "x"}, "body", lambda key: 3):
        with pytest.raises(InvalidTypeError, match="rename"):
            load_weights(net(2), source, rename=wrong)


def test_other_dtypes_are_cast_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights of another precision get that of the model, and the log names the keys."""
    source = saved(tmp_path, net(1).double())
    model = net(2).bfloat16()
    with caplog.at_level(logging.INFO):
        load_weights(model, source)
    assert equal(model, net(1).double().bfloat16())
    assert "cast to the dtypes of the model: body.0.weight" in caplog.text


def test_a_cast_that_would_lose_more_than_precision_is_none(tmp_path: Path) -> None:
    """Complex numbers are not cut to their real parts, nor fractions to integers."""
    for source, target in ((torch.complex64, torch.float32), (torch.float32, torch.int64)):
        path = write(tmp_path / str(source), weights={"model": {"0": {"w": torch.ones(1, dtype=source)}}})
        model = nn.Module()
        model.register_buffer("w", torch.ones(1, dtype=target))
        names = [str(dtype).removeprefix("torch.") for dtype in (source, target)]
        with pytest.raises(CheckpointMismatchError, match=r"w \(\[1\] of {} instead of \[1\] of {}\)".format(*names)):
            load_weights(model, path)


def test_several_models_are_chosen_by_name(tmp_path: Path) -> None:
    """Of a checkpoint of several models one is named; without a name, or with a wrong one, they are listed."""
    weights = {"model": {"G": state(net(1)), "D": state(net(3))}, "ema": {"G": state(net(4))}}
    source = write(tmp_path, weights=weights)
    model = net(2)
    load_weights(model, source, name="D")
    assert equal(model, net(3))
    load_weights(model, source, role="ema")
    assert equal(model, net(4))
    with pytest.raises(CheckpointMismatchError, match=r"several models. Pass name=..., one of: 'G', 'D'"):
        load_weights(model, source)
    with pytest.raises(CheckpointMismatchError, match="no model of this name. Received: 'E'. It holds: 'G', 'D'"):
        load_weights(model, source, name="E")
    with pytest.raises(CheckpointMismatchError, match="Received: 'swa'. It holds: 'model', 'ema'"):
        load_weights(model, source, role="swa")
    with pytest.raises(InvalidValueError, match="single file"):
        load_weights(model, source / "ema.safetensors", name="D")


def test_only_the_weights_asked_for_are_read(tmp_path: Path) -> None:
    """A checkpoint whose state or other models are damaged still gives the weights that are whole."""
    source = write(tmp_path, weights={"model": {"G": state(net(1)), "D": state(net(3))}})
    for other in ("model.1.safetensors", "state.json", "state.safetensors"):
        content = bytearray((source / other).read_bytes())
        content[-1] ^= 1
        (source / other).write_bytes(content)
    model = net(2)
    load_weights(model, source, name="G")
    assert equal(model, net(1))
    with pytest.raises(CheckpointDamagedError, match=r"model\.1\.safetensors"):
        load_weights(model, source, name="D")


def test_a_damaged_file_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """A flipped bit in the last byte of a checkpoint's weights is found before the first is copied."""
    source = saved(tmp_path, net(1))
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (source / "model.safetensors").write_bytes(content)
    model = net(2)
    with pytest.raises(CheckpointDamagedError):
        load_weights(model, source)
    assert equal(model, net(2))


@pytest.mark.parametrize("kept", ["embedding.weight", "out.weight", "both"])
def test_tied_weights_need_one_of_their_keys(tmp_path: Path, kept: str) -> None:
    """A file that has tied weights once, as other tools write it, is complete for a model that ties them."""
    torch.manual_seed(1)
    first, model = Tied(), Tied()
    weights = state(first)
    if kept != "both":
        weights = {kept: weights[kept]}
    keys = load_weights(model, write(tmp_path, weights={"model": {"0": weights}}))
    assert equal(model, first)
    assert model.out.weight is model.embedding.weight
    assert keys == (["embedding.weight", "out.weight"], [], [], [])


def test_different_values_for_tied_weights_are_an_error(tmp_path: Path) -> None:
    """Two values for one tensor are not loaded one over the other."""
    weights = {"embedding.weight": torch.zeros(5, 3), "out.weight": torch.ones(5, 3)}
    with pytest.raises(CheckpointMismatchError, match=r"embedding\.weight and out\.weight are one tensor"):
        load_weights(Tied(), write(tmp_path, weights={"model": {"0": weights}}))


def test_weights_tied_in_the_file_are_apart_in_a_model_that_does_not_tie_them(tmp_path: Path) -> None:
    """Each key gets the value, in memory of its own."""
    model = Tied()
    model.out.weight = nn.Parameter(torch.zeros(5, 3))
    tied = Tied()
    load_weights(model, saved(tmp_path, tied))
    assert same(model.out.weight.detach(), tied.out.weight.detach())
    assert model.out.weight.data_ptr() != model.embedding.weight.data_ptr()


def test_compiled_models_and_parts_have_the_keys_of_what_was_compiled(tmp_path: Path) -> None:
    """A compiled model, or one with a compiled part, loads what a plain one saved, and the other way round."""
    plain = saved(tmp_path / "plain", net(1))
    whole = torch.compile(net(2), backend="eager")
    part = net(2)
    part.body = torch.compile(part.body, backend="eager")
    for model in (whole, part):
        keys = load_weights(model, plain)
        assert keys.loaded == list(net(1).state_dict())
        assert same(list(model.state_dict().values()), list(state(net(1)).values()))
        again = net(3)
        load_weights(again, saved(tmp_path / type(model).__name__, model))
        assert equal(again, net(1))


def test_a_parametrized_model_is_loaded_by_its_own_keys(tmp_path: Path) -> None:
    """Weight norm and its like are loaded as they are saved, and compute the same."""
    first, model = (parametrizations.weight_norm(net(seed).head) for seed in (1, 2))
    load_weights(model, saved(tmp_path, first))
    assert torch.equal(model(torch.ones(1, 4)), first(torch.ones(1, 4)))


def test_a_model_without_memory_is_refused(source: Path | str) -> None:
    """Models on the meta device and lazy modules are said to need memory first, by their keys."""
    with torch.device("meta"):
        model = Net()
    with pytest.raises(InvalidValueError, match="no memory yet for: body.0.weight"):
        load_weights(model, source)
    with pytest.raises(InvalidValueError, match="no memory yet for: weight, bias"):
        load_weights(nn.LazyLinear(2), source)


def test_what_is_no_source_or_model_is_said(tmp_path: Path) -> None:
    """Missing paths, files of torch.save and things that are no module are answered by what they are."""
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"Files of torch\.save are not read"):
        load_weights(net(1), tmp_path / "model.pt")
    for missing in ("missing", "missing.safetensors"):
        with pytest.raises(CheckpointNotFoundError, match=missing):
            load_weights(net(1), tmp_path / missing)
    with pytest.raises(InvalidTypeError, match="Received: dict"):
        load_weights({}, tmp_path / "missing")  # type: ignore[arg-type]
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(net(1), tmp_path / "folder.safetensors")


@pytest.mark.cuda
def test_weights_go_to_the_models_device(tmp_path: Path) -> None:
    """A model on a GPU is loaded there."""
    model = net(2).cuda()
    load_weights(model, saved(tmp_path, net(1)))
    assert equal(model.cpu(), net(1))
