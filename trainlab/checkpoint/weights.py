"""Safetensors files: tied tensors are stored once, and every tensor read owns its memory."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainlab.checkpoint.tree import memory_key
from trainlab.errors import CheckpointDamagedError, CheckpointError

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file.

    Args:
        path: The file.
        tensors: By name, of any shape and device. Of those that share all their memory the first is stored, and the
            others are named in the file's metadata, ``aliases``, a JSON object from name to stored name. Complex ones
            are stored as pairs of numbers and named in ``complex``, a JSON array.

    Raises:
        CheckpointError: A tensor is of a kind that safetensors does not hold.
        SafetensorError: The file cannot be written.
        OSError: The same.
    """
    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise _not_storable(name, f"a tensor of layout {tensor.layout} on {tensor.device}")
        key = memory_key(tensor)
        if key is not None and key in first:
            aliases[name] = first[key]
            continue
        if key is not None:
            first[key] = name
        own = _contiguous(tensor.detach())
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()  # two views of one memory, which safetensors refuses
        storages.add(own.untyped_storage().data_ptr())
        stored[name] = own
    metadata = {"format": "pt"}
    if aliases:
        metadata["aliases"] = json.dumps(aliases)
    if any(tensors[name].is_complex() for name in stored):
        metadata["complex"] = json.dumps([name for name in stored if tensors[name].is_complex()])
    try:
        save_file(stored, path, metadata=metadata)
    except (KeyError, ValueError) as error:
        kinds = sorted({str(tensor.dtype) for tensor in stored.values()})
        raise _not_storable(path.name, f"tensors of {', '.join(kinds)} ({error})") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read what ``write_tensors`` wrote.

    Args:
        path: The file.

    Returns:
        The tensors by name, on the CPU; tied ones are one object.

    Raises:
        CheckpointDamagedError: The file is missing, or is none that ``write_tensors`` writes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, for what safe_open gives is mapped from the file: it would change with it, and is aligned as it is
            # there, which may change the last bit of what is computed from it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no dict)
        for name in json.loads(metadata.get("complex", "[]")):
            tensors[name] = torch.view_as_complex(tensors[name])
        for name, stored in json.loads(metadata.get("aliases", "{}")).items():
            tensors[name] = tensors[stored]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointDamagedError(
            f"A file of a checkpoint cannot be read: {error}. Received: {path}. Use another checkpoint."
        ) from error
    return tensors


def _not_storable(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"A checkpoint cannot hold these weights. Received: {name}, {what}. "
        "Keep it out of the state dict (register_buffer with persistent=False), or convert it to a dense tensor."
    )


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj().resolve_neg())
    return tensor.resolve_neg().cpu().contiguous()
