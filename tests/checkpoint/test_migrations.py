import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.samples import rewrite, same
from trainlab.checkpoint import Checkpoint, latest_checkpoint
from trainlab.checkpoint.manifest import FORMAT_VERSION
from trainlab.checkpoint.migrations import MIGRATIONS
from trainlab.errors import CheckpointDamagedError

# A checkpoint as trainlab 0.1.0 wrote it at the fifth batch of a run with Adam.
VERSION_1 = Path(__file__).parent / "version_1" / "batch-0000005"
# One as trainlab wrote it before several processes could write one together.
VERSION_2 = Path(__file__).parent / "version_2" / "batch-0000005"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint of version 1, to be spoilt."""
    return Path(shutil.copytree(VERSION_1, tmp_path / VERSION_1.name))


def rewrite_version_1(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and give it the checksum that version 1 has."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["manifest_sha256"]
    change(manifest)
    rest = json.dumps(manifest, indent=1).encode() + b"\n"
    manifest["manifest_sha256"] = hashlib.sha256(rest).hexdigest()
    (folder / "manifest.json").write_bytes(json.dumps(manifest, indent=1).encode() + b"\n")


def test_every_earlier_version_has_its_step() -> None:
    """There is one migration for each version before the present one."""
    assert sorted(MIGRATIONS) == list(range(1, FORMAT_VERSION))


def test_a_checkpoint_of_version_1_is_read() -> None:
    """A checkpoint that the first version wrote is found whole, and its weights, state and details are as they were."""
    with Checkpoint.open(VERSION_1) as checkpoint:
        assert (checkpoint.sequence, checkpoint.trial_class) == (1, "__main__:TwoLayers")
        assert checkpoint.created.startswith("2026-11-21T")
        assert checkpoint.progress["batches_trained"] == 5
        assert same(checkpoint.hparams, {"lr": 0.01, "betas": (0.9, 0.99), "none": None})
        assert checkpoint.exp_conf == {"name": "version 1"}
        weights = checkpoint.weights()["0"]
        state = checkpoint.state()
    stored = load_file(VERSION_1 / "model.safetensors")
    assert all(same(weights[key], value) for key, value in stored.items() if key != "phase")
    assert same(weights["phase"], torch.tensor([1 + 2j, 3 - 1j]))
    assert weights["tied.weight"] is weights["second.weight"]
    adam = state["optimizers_state_dict"][0]
    assert same(adam["param_groups"][0]["betas"], (0.9, 0.99))
    assert same(adam["state"][0]["step"], torch.tensor(5.0))
    assert adam["state"][0]["exp_avg"].shape == (4, 2)
    assert state["rng_state"]["numpy"]["state"]["key"].shape == (624,)
    assert same(state["progress"], checkpoint.progress)
    assert latest_checkpoint(VERSION_1.parent) == VERSION_1


def test_a_checkpoint_of_version_2_is_read() -> None:
    """A checkpoint that the second version wrote is whole, of one process, and holds what it held."""
    with Checkpoint.open(VERSION_2) as checkpoint:
        assert (checkpoint.sequence, checkpoint.trial_class, checkpoint.ranks) == (1, "__main__:TwoLayers", 1)
        assert checkpoint.progress["batches_trained"] == 5
        assert same(checkpoint.hparams, {"lr": 0.01, "betas": (0.9, 0.99), "none": None})
        assert checkpoint.exp_conf == {"name": "version 2"}
        weights = checkpoint.weights()["0"]
        state = checkpoint.state()
    stored = load_file(VERSION_2 / "model.safetensors")
    assert all(same(weights[key], value) for key, value in stored.items() if key != "phase")
    assert same(weights["phase"], torch.tensor([1 + 2j, 3 - 1j]))
    assert weights["tied.weight"] is weights["second.weight"]
    adam = state["optimizers_state_dict"][0]
    assert same(adam["param_groups"][0]["betas"], (0.9, 0.99))
    assert same(adam["state"][0]["step"], torch.tensor(5.0))
    assert adam["state"][0]["exp_avg"].shape == (4, 2)
    assert same(state["progress"], checkpoint.progress)
    assert latest_checkpoint(VERSION_2.parent) == VERSION_2


def test_a_manifest_of_version_2_has_no_ranks(tmp_path: Path) -> None:
    """A manifest of the second version that lists ranks, which it could not, is damaged."""
    copy = Path(shutil.copytree(VERSION_2, tmp_path / VERSION_2.name))
    rewrite(copy, lambda manifest: manifest.update(ranks=[]))
    with pytest.raises(CheckpointDamagedError, match="no manifest of format version 2"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "state.json", "state.safetensors"])
def test_damage_of_version_1_is_found(copy: Path, name: str) -> None:
    """The checksums of the first version are compared, too."""
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=name):
        Checkpoint.open(copy)


HOSTILE = {
    "files are a list": lambda m: m.update(files=[]),
    "no files": lambda m: m.pop("files"),
    "an entry that is no object": lambda m: m["files"].update({"state.json": 3}),
    "an entry without a checksum": lambda m: m["files"]["state.json"].pop("sha256"),
    "a checksum of the later version": lambda m: m["files"]["state.json"].update(checksum="xxh3_128:" + "0" * 32),
    "a checksum that is no text": lambda m: m["files"]["state.json"].update(sha256=3),
    "no place for a state of data sets": lambda m: m.pop("data_set_state"),
    "a state of data sets": lambda m: m.update(data_set_state="state.json"),
    "a member too many": lambda m: m.update(more=1),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_of_version_1_is_damaged(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """An old version number is no way around the checks."""
    rewrite_version_1(copy, change)
    with pytest.raises(CheckpointDamagedError, match=r"manifest\.json"):
        Checkpoint.open(copy)


def test_the_new_form_is_not_taken_for_the_old(copy: Path) -> None:
    """A manifest that calls itself of the second version needs the second version's checksum."""
    rewrite_version_1(copy, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(CheckpointDamagedError, match="its own checksum"):
        Checkpoint.open(copy)
