"""Hostile checkpoints: files changed by bytes or by structure, with checksums that are put right again."""

import copy
import json
import random
import re
import shutil
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoint.corruptions import _TO_BYTES
from tests.checkpoint.ranks import write_sharded
from tests.checkpoint.samples import described, model_state, write
from trainlab.checkpoint import Checkpoint, encode
from trainlab.checkpoint.manifest import render_manifest
from trainlab.storage import Checksum

RANKS = 3
FILES = ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]

# What takes the place of any part of a JSON text.
HOSTILE_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**19, -(2**63), 1.5, -0.0, 1e308, 10**400),
    *("", "..", "../outside", "/etc/passwd", "manifest.json", "state.json", "\0", "\ud800", "x" * 1000, "a/b", "NaN"),
    *([], [[]], [0], [-1], [2**62, 2**62], [0, 2**62, 2**62], {}, {"$": "tuple"}, {"$": 1}, {"": {"": ""}}),
    *({"$": "tensor", "v": "moment"}, {"$": "tensor", "v": "missing"}, {"$": "int", "v": "0x" + "f" * 1000}),
    *({"$": "eval", "v": "1"}, {"$": "set", "v": [[]]}, {"$": "bytes", "v": "?"}, {"$": "torch.device", "v": "cuda"}),
    {"$": "torch.Size", "v": [-1]},
    {"$": "numpy", "dtype": "object", "v": "00" * 8},
]


def sample(root: Path) -> Path:
    """A checkpoint with every kind of content."""
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "moment": shared,
        "again": shared,
        "z": torch.tensor([1 + 2j]),
        "bits": torch.tensor([True, False]),
        "half": torch.ones(3).bfloat16(),
        "unsigned": torch.arange(3, dtype=torch.int32).view(torch.uint32),
        "array": np.arange(4, dtype=np.float64),
        "number": np.float32(0.5),
        "tree": [(1, 2.5, float("inf"), None, True), {"a": b"bytes", 3: {1, 2}, (1, 2): frozenset([3])}],
        "counts": Counter("abca"),
        "ordered": OrderedDict(x=1),
        "kinds": [torch.float16, torch.device("cpu"), torch.Size([1, 2]), 1j, 2**100],
    }
    weights = {"model": {"0": {**model_state(), "tied": model_state()["layer.weight"], "phase": torch.ones(2) * 1j}}}
    weights["model"]["0"]["tied"] = weights["model"]["0"]["layer.weight"]
    return write(root, weights=weights, state=state)


def sharded_sample(root: Path) -> Path:
    """A checkpoint of several ranks, whose tensors lie in parts."""
    return write_sharded(root, RANKS)


def files_of(folder: Path) -> list[str]:
    """The files of a checkpoint."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def content(folder: Path) -> Any:
    """All that a checkpoint holds; what it raises is what opening and reading raise."""
    with Checkpoint.open(folder) as checkpoint:
        weights = {role: checkpoint.weights(role) for role in checkpoint.models}
        told = [checkpoint.progress, checkpoint.hparams, checkpoint.exp_conf, checkpoint.versions]
        states = [checkpoint.state(rank=rank, whole=True) for rank in range(checkpoint.ranks)]
        return [weights, states, told, checkpoint.sequence, checkpoint.trial_class]


def is_sound(found: Any) -> bool:
    """Whether what was read is what a checkpoint could hold: every tensor of it can be used, and it can be saved."""
    weights, state, told, _, _ = found
    held = [tensors for models in weights.values() for tensors in models.values()]
    held += [encode(part)[1] for part in (state, *told)]
    for tensors in held:
        for tensor in tensors.values():
            assert tensor.numel() * tensor.element_size() == tensor.clone().reshape(-1).nbytes
    return True


def repair(folder: Path, name: str) -> None:
    """Put the checksums right after a change of a file, as far as the manifest still is one."""
    manifest = folder / "manifest.json"
    data = manifest.read_bytes()
    if name == manifest.name:
        rest = re.sub(rb',\n "manifest_checksum": "[^"]*"', b"", data, count=1)
        end = b"\n}\n"
        rest = rest[: -len(end)] if rest.endswith(end) else rest
        checksum = Checksum()
        checksum.update(rest + end)
        manifest.write_bytes(rest + f',\n "manifest_checksum": "{checksum.text}"'.encode() + end)
        return
    content = json.loads(data)
    del content["manifest_checksum"]
    content["files"][name] = described((folder / name).read_bytes())
    manifest.write_bytes(render_manifest(content))


def mutate_bytes(folder: Path, name: str, chance: random.Random) -> None:
    """Change a file by one or more of the ways in which files get damaged."""
    data = (folder / name).read_bytes()
    for _ in range(chance.randint(1, 4)):
        if data:
            data, _ = chance.choice(list(_TO_BYTES.values()))(data, chance)
    (folder / name).write_bytes(data)


def mutate_structure(folder: Path, name: str, chance: random.Random) -> None:
    """Change the JSON in a file, which stays JSON."""
    data = (folder / name).read_bytes()
    if name.endswith(".safetensors"):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
        if "parts" in metadata and chance.random() < 0.5:
            metadata["parts"] = _mutated(json.loads(metadata["parts"]), chance).decode("utf-8", "surrogatepass")
            text = json.dumps(header).encode()
        else:
            text = _mutated(header, chance)
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    else:
        parsed = json.loads(data)
        parsed.pop("manifest_checksum", None)
        data = _mutated(parsed, chance)
        if name == "manifest.json":
            data = data.rstrip(b"}\n") + b"\n}\n"
    (folder / name).write_bytes(data)


def _mutated(parsed: Any, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 3)):
        holder, key = chance.choice(_places(parsed))
        change = chance.randrange(6)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[str(chance.choice(HOSTILE_VALUES))] = holder.pop(key)
        elif change == 2:
            other, where = chance.choice(_places(parsed))
            holder[key] = copy.deepcopy(other[where])
        elif change == 3 and isinstance(holder[key], list):
            holder[key] = holder[key] * chance.choice([0, 2, 1000])
        else:
            holder[key] = copy.deepcopy(chance.choice(HOSTILE_VALUES))
        if not _places(parsed):
            break
    text = json.dumps(parsed, indent=1)
    extra = chance.randrange(12)
    if extra == 0:  # a key twice
        text = text.replace("{", '{"x": 1, "x": 2, ', 1)
    elif extra == 1:
        text = text.replace("1", chance.choice(["NaN", "-Infinity", "1e999", "9" * 10_000]), 1)
    elif extra == 2:
        depth = chance.choice([150, 1_100, 200_000])
        text = text.replace("1", "[" * depth + "]" * depth, 1)
    return text.encode()


def _places(parsed: Any) -> list[tuple[Any, Any]]:
    """Every value in a JSON text, as its container and its key there."""
    found: list[tuple[Any, Any]] = []
    waiting = [parsed]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, (dict, list)):
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            found += [(holder, key) for key in keys]
            waiting += [holder[key] for key in keys]
    return found


def attack(whole: Path, folder: Path, seed: int) -> tuple[str, bool]:
    """Copy a whole checkpoint and make the copy hostile.

    Args:
        whole: The checkpoint.
        folder: Where the copy goes, instead of what is there.
        seed: Decides what is done.

    Returns:
        What was done, and whether the checksums were put right again.
    """
    chance = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    name = chance.choice(files_of(whole))
    by_structure, repaired = chance.random() < 0.5, chance.random() < 0.7
    (mutate_structure if by_structure else mutate_bytes)(folder, name, chance)
    if repaired:
        repair(folder, name)
    return f"{name}, {'structure' if by_structure else 'bytes'}", repaired
