"""load_weights: weights from a checkpoint, or from a file of another's, into a model."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from trainlab.checkpoint.layout import split_location
from trainlab.checkpoint.matching import compare_keys, shown
from trainlab.checkpoint.parts import Parts
from trainlab.checkpoint.reader import Checkpoint
from trainlab.checkpoint.sharding import place_like, shared_key, without_parts
from trainlab.checkpoint.tensor_file import read_tensors
from trainlab.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InvalidTypeError,
    InvalidValueError,
)
from trainlab.storage import open_store

__all__ = ["LoadedKeys", "load_weights"]

_SUFFIX = ".safetensors"
# What torch.compile puts into the keys of a module.
_COMPILED = "_orig_mod."

_logger = logging.getLogger("trainlab.checkpoint")

Rename = Callable[[str], str | None] | Mapping[str, str]
Weights = dict[str, torch.Tensor]
# As they are in a checkpoint, some perhaps in parts.
Stored = dict[str, torch.Tensor | Parts]


class LoadedKeys(NamedTuple):
    """What ``load_weights`` did, by the model's keys, without what ``torch.compile`` adds to them.

    Attributes:
        loaded: those that got their values from the file.
        missing: those of the model that are not in the file, and were left as they were.
        unknown: those of the file that are not in the model.
        misshapen: those whose shape differs, or whose dtype cannot be cast, and which were left as they were.
    """

    loaded: list[str]
    missing: list[str]
    unknown: list[str]
    misshapen: list[str]


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    strict: bool = True,
    rename: Rename | None = None,
    *,
    role: str = "model",
    name: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LoadedKeys:
    """Load weights into a model: to start training from them, or to use them.

    Of a model whose weights are distributed (DTensors) each rank calls this, and reads its own part; the checkpoint may
    have been written by as many ranks or by others.

    Everything is read and checked before the first value is copied. Values go to the devices and dtypes that the
    model has. Compiled models have the keys of what was compiled. What is no tensor in a state dict
    (``get_extra_state``) stays as it is.

    Args:
        model: The module.
        path: A checkpoint's folder or URL, or a ``.safetensors`` file's path or URL.
        strict: Whether all keys have to fit. False loads what fits, and logs a warning of what does not; that
            nothing fits is an error even then. Default True.
        rename: How keys are called in the model: a function from the file's key to the model's, or to None to leave
            the key out; or a mapping from a prefix to another, of which the longest that fits is used. Default: the
            same.
        role: Which weights of a checkpoint; default "model".
        name: Whose weights, in a checkpoint of several models. Default: those of its only one.
        storage_options: For the file system of a URL, as fsspec takes them; default none.

    Returns:
        The keys that were loaded, and with ``strict=False`` those that were not.

    Raises:
        CheckpointMismatchError: Keys do not fit; it lists them. The model is as it was.
        CheckpointDamagedError: A file is not what was written. The model is as it was.
        CheckpointNotFoundError: There is nothing at ``path``.
        CheckpointError: What is there cannot be read.
        InvalidValueError: The model has no memory yet, or prefixes of ``rename`` fit no key.
        InvalidTypeError: An argument has the wrong type.
    """
    actual = _keys_of(model)
    expected = {key: value for key, (_, value) in actual.items()}
    what = f"{os.fspath(path)} into {type(model).__qualname__}"
    with _opened(path, role, name, storage_options) as read:
        found = _renamed({_plain(key): value for key, value in read.items()}, rename)
        keys = _compared(expected, found)
        _judge(keys, expected, found, strict=strict, what=what)
        _check_ties(keys, expected, found, what)
        cast = [key for key in keys.loaded if key in found and found[key].dtype != expected[key].dtype]
        placed = {actual[key][0]: place_like(found[key], expected[key]) for key in keys.loaded if key in found}
    if cast:
        _logger.info("Loading %s, cast to the dtypes of the model: %s.", what, shown(cast))
    try:
        model.load_state_dict(placed, strict=False)
    except RuntimeError as error:
        raise CheckpointMismatchError(f"The model refuses the weights of {what}: {error}") from error
    return keys


def _keys_of(model: nn.Module) -> dict[str, tuple[str, torch.Tensor]]:
    """The keys of a model's tensors without what compiling adds; for each the true key, and the tensor."""
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"Weights are loaded into an nn.Module. Received: {type(model).__qualname__}.")
    state = {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)}
    without = [key for key, value in state.items() if is_lazy(value) or value.is_meta]
    if without:
        raise InvalidValueError(
            f"The model has no memory yet for: {shown(without)}. Run a batch through its lazy modules, or give it "
            "memory with model.to_empty(device=...), before weights are loaded."
        )
    return {_plain(key): (key, value.detach()) for key, value in state.items()}


def _plain(key: str) -> str:
    return key.replace(_COMPILED, "")


@contextmanager
def _opened(
    path: str | os.PathLike[str], role: str, name: str | None, storage_options: Mapping[str, Any] | None
) -> Iterator[Stored]:
    """The weights, of which parts can be read in the block."""
    if os.fspath(path).endswith(_SUFFIX):
        if role != "model" or name is not None:
            raise InvalidValueError(
                f"role and name choose among the weights of a checkpoint, and this is a single file. "
                f"Received: {os.fspath(path)} with role={role!r}, name={name!r}."
            )
        yield {**_read_file(path, storage_options)}
        return
    with Checkpoint.open(path, verify=False, storage_options=storage_options) as checkpoint:
        models = checkpoint.models.get(role, [])
        if name is None and len(models) > 1:
            raise CheckpointMismatchError(
                f"The checkpoint {checkpoint.path} holds the weights of several models. Pass name=..., one of: "
                f"{', '.join(map(repr, models))}."
            )
        weights = list(checkpoint.stored_weights(role, None if name is None else [name]).values())
        if not weights:
            raise CheckpointMismatchError(f"The checkpoint {checkpoint.path} holds no weights of the role {role!r}.")
        yield weights[0]


def _read_file(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Weights:
    parent, file_name = split_location(path)
    store = open_store(parent, storage_options)
    where = str(store.location(file_name))
    try:
        size = store.size(file_name)
        if store.is_local:
            with store.open(file_name, size=size, checksum="") as file:
                return read_tensors(file, size=size, checksum=None, name=where)
        # Without a checksum there is no telling whether a copy in the cache is the same file.
        return read_tensors(BytesIO(store.read(file_name, size)), size=size, checksum=None, name=where)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"There is no such file of weights. Received: {where}.") from error
    except OSError as error:
        raise CheckpointError(
            f"The file {where} cannot be read: {str(error.strerror or error).rstrip('.')}. Make it readable."
        ) from error


def _renamed(found: Stored, rename: Rename | None) -> Stored:
    if rename is None:
        return found
    names = _by_prefix(found, rename) if isinstance(rename, Mapping) else _by_function(found, rename)
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        sources = [key for key, name in names.items() if name == twice[0]]
        raise InvalidValueError(
            f"rename gives several keys the same name. Received: {twice[0]!r} for {shown(map(repr, sources))}."
        )
    return {name: found[key] for key, name in names.items()}


def _by_prefix(found: Stored, rename: Mapping[str, str]) -> dict[str, str]:
    wrong = [item for item in rename.items() if not all(isinstance(part, str) for part in item)]
    if wrong:
        raise InvalidTypeError(f"rename maps prefixes to prefixes, which are texts. Received: {wrong[0]!r}.")
    names, used = {}, set()
    for key in found:
        prefix = max((prefix for prefix in rename if key.startswith(prefix)), key=len, default=None)
        names[key] = key if prefix is None else rename[prefix] + key[len(prefix) :]
        used.add(prefix)
    unused = [prefix for prefix in rename if prefix not in used]
    if unused:
        raise InvalidValueError(
            f"No key begins with the prefixes of rename. Received: {shown(map(repr, unused))}. "
            f"The keys are: {shown(found) or 'none'}."
        )
    return names


def _by_function(found: Stored, rename: Callable[[str], str | None]) -> dict[str, str]:
    if not callable(rename):
        raise InvalidTypeError(f"rename is a function or a mapping. Received: {rename!r}.")
    names = {}
    for key in found:
        name = rename(key)
        if name is not None and not isinstance(name, str):
            raise InvalidTypeError(f"rename gives a key or None. Received: {name!r} for {key!r}.")
        if name is not None:
            names[key] = name
    return names


def _compared(expected: Weights, found: Stored) -> LoadedKeys:
    differences = compare_keys(expected, found)
    uncastable = {key for key in differences.retyped if not torch.can_cast(found[key].dtype, expected[key].dtype)}
    unfit = {*differences.misshapen, *uncastable}
    fitting = {key for key in expected if key in found and key not in unfit}
    # Other tools leave all but one of tied weights out of a file.
    present = {shared_key(expected[key]) for key in fitting} - {None}
    tied = {key for key in differences.missing if shared_key(expected[key]) in present}
    return LoadedKeys(
        loaded=[key for key in expected if key in fitting or key in tied],
        missing=[key for key in differences.missing if key not in tied],
        unknown=differences.unknown,
        misshapen=[key for key in expected if key in unfit],
    )


def _judge(keys: LoadedKeys, expected: Weights, found: Stored, *, strict: bool, what: str) -> None:
    """Raise or tell what does not fit."""
    misshapen = [f"{key} ({_form(found[key])} instead of {_form(expected[key])})" for key in keys.misshapen]
    groups = {"missing in the file": keys.missing, "unknown to the model": keys.unknown, "of another shape": misshapen}
    left_out = "; ".join(f"{kind}: {shown(group)}" for kind, group in groups.items() if group)
    if strict and left_out:
        raise CheckpointMismatchError(
            f"The weights do not fit: {what}. Keys are {left_out}. Nothing was loaded. Pass rename=... if they are "
            "called otherwise, or strict=False to load those that fit."
        )
    if not strict and not keys.loaded:
        raise CheckpointMismatchError(
            f"None of the weights fit: {what}. Keys are {left_out or 'none'}. Pass rename=... if they are called "
            "otherwise."
        )
    if left_out:
        _logger.warning(
            "Loading %s, %d of %d keys. Left out are keys %s.", what, len(keys.loaded), len(expected), left_out
        )


def _form(tensor: torch.Tensor | Parts) -> str:
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _check_ties(keys: LoadedKeys, expected: Weights, found: Stored, what: str) -> None:
    """Of two values for one memory the last would win."""
    first: dict[Any, str] = {}
    for key in keys.loaded:
        memory = shared_key(expected[key])
        if memory is None or key not in found:
            continue
        other = first.setdefault(memory, key)
        if found[other] is not found[key] and not _same_bits(*map(without_parts, (found[other], found[key]))):
            raise CheckpointMismatchError(
                f"The weights do not fit: {what}. {other} and {key} are one tensor in the model, and differ in the "
                "file. Untie them in the model, or leave one out with rename."
            )


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    flat = flat if flat.is_contiguous() and flat.numel() != 1 else flat.clone(memory_format=torch.contiguous_format)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)
