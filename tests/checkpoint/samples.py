"""What the tests of checkpoints read, written without the writer, and how they compare what they read."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainlab.checkpoint import encode, list_checkpoints
from trainlab.checkpoint.manifest import render_manifest
from trainlab.checkpoint.tensor_file import TensorFile
from trainlab.storage import Checksum, Store, open_store

DETAILS = {
    "progress": {"batches_trained": 5, "best_metric": float("inf")},
    "trial_class": "digits:DigitsTrial",
    "hparams": {"lr": 1e-3, "betas": (0.9, 0.999)},
    "exp_conf": {"name": "digits"},
    "versions": {"torch": str(torch.__version__)},
}


def model_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with several dtypes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(4, 3, generator=generator),
        "layer.bias": torch.randn(4, generator=generator).bfloat16(),
        "norm.count": torch.tensor(seed),
    }


def sample_state(batches: int = 5) -> dict[str, Any]:
    """A state of several kinds of values."""
    return {"step": batches, "moment": torch.full((3,), float(batches)), "betas": (0.9, 0.999)}


def write(
    place: Path | Store,
    batches: int = 5,
    *,
    weights: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]] | None = None,
    state: Any = None,
    details: Mapping[str, Any] = DETAILS,
    others: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a small checkpoint of everything as the format has it; its name is that of ``batches``."""
    store = open_store(place) if isinstance(place, Path) else place
    weights = {"model": {"0": model_state(batches)}} if weights is None else weights
    structure, tensors = encode(sample_state(batches) if state is None else state)
    named = {
        role: {
            name: f"{role}.{number}.safetensors" if number else f"{role}.safetensors" for number, name in enumerate(of)
        }
        for role, of in weights.items()
    }
    contents: dict[str, Iterable[bytes | memoryview]] = {
        file: TensorFile(weights[role][name]).pieces() for role, of in named.items() for name, file in of.items()
    }
    contents["state.safetensors"] = TensorFile(tensors).pieces()
    contents["state.json"] = [json.dumps(structure).encode()]
    contents.update({file: [data] for file, data in (others or {}).items()})
    name = f"batch-{batches:07d}"
    sequence = 1 + len(list_checkpoints(store))
    store.make_folder(name)
    files = {}
    for file, pieces in contents.items():
        content = b"".join(pieces)
        files[file] = described(content)
        if "/" in file:
            store.make_folder(f"{name}/{file.rpartition('/')[0]}")
        store.write(f"{name}/{file}", [content])
    manifest = {
        "format": "trainlab-checkpoint",
        "format_version": 3,
        "sequence": sequence,
        "created": "2026-01-01T00:00:00+00:00",
        "files": files,
        "weights": named,
        "state": {"structure": "state.json", "tensors": "state.safetensors"},
        "ranks": [],
        **{key: value if key == "trial_class" else encode(value)[0] for key, value in details.items()},
    }
    store.publish(f"{name}/manifest.json", render_manifest(manifest))
    return Path(store.location(name)) if store.is_local else store.location(name)  # type: ignore[return-value]


def described(content: bytes) -> dict[str, Any]:
    """A file's entry in a manifest."""
    checksum = Checksum()
    checksum.update(content)
    return {"size": len(content), "checksum": checksum.text}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as someone would who knows how to give it a checksum."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["manifest_checksum"]
    change(manifest)
    (folder / "manifest.json").write_bytes(render_manifest(manifest))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Change a file, and the manifest with it."""
    (folder / name).write_bytes(content)
    rewrite(folder, lambda manifest: manifest["files"].update({name: described(content)}))


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _ordered(value: Any) -> str:
    """The repr, with the elements of sets in one order."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(_ordered, value))}"
    return f"tuple{list(map(_ordered, value))}" if type(value) is tuple else repr(value)


def same(one: Any, other: Any) -> bool:
    """Whether two trees agree in types, order, dtypes, shapes and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        factories_agree = not isinstance(one, defaultdict) or one.default_factory is other.default_factory
        return factories_agree and same(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return one == other and _ordered(one) == _ordered(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one.hex() == other.hex() and math.copysign(1, one) == math.copysign(1, other)
    return repr(one) == repr(other)
