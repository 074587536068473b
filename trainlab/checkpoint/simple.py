"""save_checkpoint and load_checkpoint: the format of checkpoints for those who write their training loop themselves."""

import itertools
import logging
import math
import operator
import os
import platform
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, SupportsIndex

import numpy
import torch
from torch import nn

from trainlab import __version__
from trainlab.checkpoint.classes import parts_of
from trainlab.checkpoint.encoding import path_text
from trainlab.checkpoint.layout import has_lost_its_manifest, is_unfinished, split_location
from trainlab.checkpoint.manifest import LARGEST_MANIFEST, MANIFEST, read_sequence
from trainlab.checkpoint.reader import Checkpoint
from trainlab.checkpoint.sharding import only_parts
from trainlab.checkpoint.snapshot import Snapshot
from trainlab.checkpoint.together import Together
from trainlab.checkpoint.writer import Target, commit, write_files
from trainlab.distributed import DistributedContext, get_num_processes, init_distributed
from trainlab.errors import CheckpointError, InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.runs.current import current_run
from trainlab.storage import Store, open_store

__all__ = ["load_checkpoint", "newest_of_run", "save_checkpoint"]

_ONLY_MODEL = "model"
_NUMBERED = re.compile(r"checkpoint--?[0-9]+")
_logger = logging.getLogger("trainlab.checkpoint")
# Those of several ranks, which make them in the same order.
_saves = itertools.count(1)


def save_checkpoint(
    state: Any,
    path: str | os.PathLike[str] | int | None = None,
    *,
    id: str | os.PathLike[str] | int | None = None,
    weights: nn.Module | Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Path | str:
    """Write a checkpoint, in a training loop of one's own.

    It is there whole and durable when this returns, or not at all. Nothing is ever overwritten. ``latest_checkpoint``
    looks only at folders named like ``batch-0000500``, ``trainlab checkpoint list`` at all.

    With a process group of several ranks every rank calls this, and all have the same outcome: the first rank's state
    and weights are saved, and of DTensors in them each rank saves its own part.

    Args:
        state: What to save: an object with ``state_dict``, such as a ``ContextObject`` or a model; or dicts, lists and
            tuples of plain data, tensors and arrays, and of models, optimizers and the like their ``state_dict()``.
        path: The checkpoint's folder, a path or a URL such as ``s3://bucket/run/batch-0000500``, of any name. Nothing
            may be there; the folders above it are made. In a running experiment a bare name lies in the run's folder,
            and an int ``n`` is ``checkpoint-n`` there: also in the place of one that cannot be read, which is moved
            aside.
        id: The same as ``path``, as pystematic calls it.
        weights: What ``load_weights`` and other programs are to read, as safetensors: a module or its state dict, or
            several of them by name. Default none.
        storage_options: For the file system of a URL, as fsspec takes them; default none.

    Returns:
        The checkpoint's path, absolute, or its URL.

    Raises:
        CheckpointError: There is something at ``path``, it cannot be written, or ``state`` holds what a checkpoint
            cannot; nothing of it is left then.
        InvalidTypeError: ``state`` holds an object in place of its state dict, ``weights`` are none, or ``path`` is no
            place.
        InvalidStateError: ``path`` is a number, and no experiment is running.
    """
    if get_num_processes() > 1:
        return _save_together(state, (path, id), weights, storage_options, init_distributed())
    snapshot = _laid_out(_state_of(state), weights)
    parent, name = split_location(_place(_path_of(path, id)))
    store = open_store(parent, storage_options)
    _make_room(store, name)
    return _written(Target(store, name, _next_sequence(store)), snapshot)


def newest_of_run(folder: str | os.PathLike[str]) -> Path | str | None:
    """Find the newest checkpoint that ``save_checkpoint`` has written under a number in a run's folder.

    Args:
        folder: The run's folder.

    Returns:
        Its path; None if there is none that is whole. Others are told in the log.
    """
    store = open_store(folder, None)
    numbered = [name for name in store.folders() if _NUMBERED.fullmatch(name)]
    sequences = {name: _sequence_of(store, name) for name in numbered}
    # Those that do not tell their number come first, so that they are told.
    for name in sorted(numbered, key=lambda name: sequences[name] or math.inf, reverse=True):
        try:
            Checkpoint.open_in(store, name).close()
        except CheckpointError as error:
            _logger.error("A checkpoint is passed over. %s", error)
        else:
            return store.location(name)
    return None


def _save_together(
    state: Any,
    place: tuple[Any, Any],
    weights: Any,
    storage_options: Mapping[str, Any] | None,
    context: DistributedContext,
) -> Path | str:
    """As ``save_checkpoint``, of several ranks: what goes wrong on one is raised on all."""
    rank, ranks = context.rank, context.size
    snapshot, error = None, None
    try:
        state = _state_of(state)
        snapshot = _laid_out(only_parts(state) if rank else state, weights, rank=rank, ranks=ranks)
        parent, name = split_location(_place(_path_of(*place)))
        store = open_store(parent, storage_options)
    except Exception as raised:
        error = raised
    told: list[dict[str, Any]] = context.exchange.allgather(
        {"error": "" if error is None else str(error), "parts": snapshot is not None and bool(snapshot.told_parts())}
    )
    if error is not None or snapshot is None:
        raise error or CheckpointError("A checkpoint cannot be laid out.")
    failed = [(number, one["error"]) for number, one in enumerate(told) if one["error"]]
    if failed:
        raise CheckpointError(f"Rank {failed[0][0]}: {failed[0][1]}")
    context.on_chief(lambda: _make_room(store, name))
    sequence = context.on_chief(lambda: _next_sequence(store))
    target, laid_out = Target(store, name, sequence), snapshot
    if not any(one["parts"] for one in told):
        context.on_chief(lambda: _written(target, laid_out))
        return target.location
    # A write takes as long as it takes, and an exchange has a time limit.
    with closing(context.channel(f"save_checkpoint {next(_saves)}")) as channel:
        Together(channel, rank, ranks).write(
            target,
            snapshot,
            snapshot.contents(),
            before_commit=None,
            before_publish=lambda: None,
            is_aborted=lambda: False,
            after_commit=list,
        )
    return target.location


def _laid_out(state: Any, weights: Any, *, rank: int = 0, ranks: int = 1) -> Snapshot:
    models = _weights_of(weights)
    named = {"model": models} if models else {}
    try:
        return Snapshot(weights=named, state=state, details={"versions": _versions()}, rank=rank, ranks=ranks)
    except CheckpointError as error:
        raise _told_to_pass_a_state_dict(state) or error from None


def _written(target: Target, snapshot: Snapshot) -> Path | str:
    """Write a checkpoint of one process."""
    try:
        files = write_files(target, snapshot.contents())
    except CheckpointError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise CheckpointError(
                f"There is something already where the checkpoint is to be, and nothing is overwritten. "
                f"Received: {target.location}. Give each checkpoint a name of its own, such as one with the number of "
                "the step. A folder without a manifest.json is what a killed save has left, and can be removed."
            ) from error
        raise
    commit(target, snapshot, files)
    return target.location


def load_checkpoint(
    path: str | os.PathLike[str] | int,
    *,
    map_location: str | torch.device | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Read what was saved by ``save_checkpoint``, compared with its checksums; nothing of it is ever executed.

    Weights that were saved apart are read by ``load_weights``. Of a checkpoint that a Trainer wrote this gives the
    whole state of the run but the weights.

    Args:
        path: The checkpoint's folder, or its URL. In a running experiment a bare name is looked for in the run's folder
            if there is nothing of that name in the current one, and an int ``n`` is ``checkpoint-n`` there.
        map_location: The device that all tensors are put on. Default: the CPU, wherever they were.
        storage_options: For the file system of a URL, as fsspec takes them; default none.

    Returns:
        The state, every value of the type it had.

    Raises:
        CheckpointNotFoundError: There is no checkpoint at ``path``.
        CheckpointDamagedError: It is not what was written.
        CheckpointError: What is there cannot be read.
        InvalidTypeError: ``map_location`` is neither a text nor a device, or ``path`` is no place.
        InvalidValueError: There is no such device.
        InvalidStateError: ``path`` is a number, and no experiment is running.
    """
    path = _place(path, is_read=True)
    device = None if map_location is None else _device(map_location)
    with Checkpoint.open(path, verify=False, storage_options=storage_options) as checkpoint:
        state = checkpoint.state(whole=True)
    if device is not None:
        _move(state, device)
    return state


def _state_of(state: Any) -> Any:
    """The state of an object at the top; anything else as it is."""
    if isinstance(state, type) or not callable(getattr(state, "state_dict", None)):
        return state
    return state.state_dict()


def _path_of(path: Any, id: Any) -> Any:
    """What the caller of ``save_checkpoint`` gave, under either name."""
    if (path is None) == (id is None):
        raise InvalidTypeError(
            f"A checkpoint is saved at one place: a path, or a number in an experiment. Received: {path!r}"
            f"{'' if id is None else f' and id={id!r}'}. Pass one of them."
        )
    return id if path is None else path


def _place(path: str | os.PathLike[str] | int, *, is_read: bool = False) -> str | os.PathLike[str]:
    """Where a checkpoint lies, with what the running experiment says."""
    run = current_run()
    if isinstance(path, bool) or not isinstance(path, str | os.PathLike | SupportsIndex):
        raise InvalidTypeError(f"A checkpoint's place is a path, a URL or an int. Received: {path!r}.")
    if isinstance(path, SupportsIndex):
        if run is None:
            raise InvalidStateError(
                f"A checkpoint with a number lies in the folder of the running experiment, and none is running. "
                f"Received: {path}. Pass a path."
            )
        return run.output_dir / f"checkpoint-{operator.index(path)}"
    if run is None:
        return path
    name = os.fspath(path)
    is_bare = bool(name) and os.path.basename(name) == name and name not in (".", "..", "~")
    if not is_bare or (is_read and os.path.lexists(name) and not os.path.lexists(run.output_dir / name)):
        return path
    return run.output_dir / name


def _make_room(store: Store, name: str) -> None:
    """Make room where the same run has left what is no checkpoint any more, or never became one."""
    run = current_run()
    if run is None or store.location() != run.output_dir or name not in store.folders():
        return
    if is_unfinished(store, name):
        store.remove_folder(name)
        _logger.warning("Removed %s, a checkpoint that was never finished.", store.location(name))
    elif (error := _damage(store, name)) is not None:
        names = (f"{name}.damaged-{number}" for number in itertools.count(1))
        aside = next(one for one in names if not os.path.lexists(run.output_dir / one))
        os.rename(run.output_dir / name, run.output_dir / aside)
        _logger.error("Moved a checkpoint that cannot be read to %s, for its place is needed. %s", aside, error)


def _damage(store: Store, name: str) -> CheckpointError | None:
    """Why a checkpoint cannot be read; None if it can, or is something else."""
    if not os.path.lexists(store.location(f"{name}/{MANIFEST}")) and not has_lost_its_manifest(store, name):
        return None
    try:
        Checkpoint.open_in(store, name).close()
    except CheckpointError as error:
        return error
    return None


def _weights_of(weights: Any) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts by the models' names."""
    if weights is None:
        return {}
    if isinstance(weights, Mapping) and not any(isinstance(value, torch.Tensor) for value in weights.values()):
        return {_name(name): _tensors(one, f"weights[{name!r}]") for name, one in weights.items()}
    return {_ONLY_MODEL: _tensors(weights, "weights")}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidTypeError(f"A model's name must be a text. Received: {name!r} in weights.")
    return name


def _tensors(model: Any, where: str) -> dict[str, torch.Tensor]:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping):
        raise InvalidTypeError(
            f"Weights are those of a module or of its state dict. Received: {where}, a {type(state).__qualname__}. "
            "Put other things into the state."
        )
    others = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if others:
        raise InvalidTypeError(
            f"Weights are tensors by name. Received: {where}, with {others[0]!r}: "
            f"{type(state[others[0]]).__qualname__}. Put what is no tensor into the state."
        )
    return dict(state)


def _told_to_pass_a_state_dict(state: Any) -> InvalidTypeError | None:
    """The error of a state that holds a model or an optimizer, if it is that."""
    seen: set[int] = set()
    waiting: list[tuple[Any, list[Any]]] = [(state, [])]
    while waiting:
        value, path = waiting.pop()
        if callable(getattr(value, "state_dict", None)):
            return InvalidTypeError(
                f"A checkpoint holds data and no objects. Received at {path_text(path) or 'the top'}: a "
                f"{type(value).__qualname__}. Pass its state_dict(), and give that to load_state_dict() of a new one."
            )
        if id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Mapping):
                waiting += [(item, [*path, key if type(key) is str else ("/", key)]) for key, item in value.items()]
            elif isinstance(value, list | tuple):
                waiting += [(item, [*path, ("[]", index)]) for index, item in enumerate(value)]
    return None


def _next_sequence(store: Store) -> int:
    """One more than the greatest of all checkpoints beside the new one, whatever their names."""
    greatest = 0
    try:
        folders = store.folders()
    except NotADirectoryError:  # which writing says, too, with the path
        return 1
    except OSError as error:
        raise CheckpointError(
            f"The folder that the checkpoint is to be in cannot be read: {str(error.strerror or error).rstrip('.')}. "
            f"Received: {store.url}. Pass another one, or make it readable."
        ) from error
    for folder in folders:
        greatest = max(greatest, _sequence_of(store, folder))
    return greatest + 1


def _sequence_of(store: Store, name: str) -> int:
    """The number of a checkpoint; 0 for what is none, or none that anyone can read."""
    try:
        return read_sequence(store.read(f"{name}/{MANIFEST}", LARGEST_MANIFEST)) or 0
    except OSError:
        return 0


def _versions() -> dict[str, str]:
    return {
        "trainlab": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def _device(wanted: Any) -> torch.device:
    if not isinstance(wanted, str | torch.device):
        raise InvalidTypeError(
            f"map_location must be a device or its name, such as 'cuda:0', or None for the CPU. Received: {wanted!r}."
        )
    try:
        device = torch.device(wanted)
        # What `_move` does with each tensor.
        torch.empty(0).data = torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidValueError(
            f"Tensors cannot be put there: {str(error).splitlines()[0].rstrip('.')}. Received: map_location={wanted!r}."
        ) from error
    return device


def _move(tree: Any, device: torch.device) -> None:
    """Put all tensors of a tree on a device; each stays the object that it is, in all of its places."""
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            value.data = value.data.to(device)
        else:
            waiting.extend(parts_of(value))
