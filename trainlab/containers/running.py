"""The context of the running experiment, and what its parameters say of devices and checkpoints."""

import threading
from pathlib import Path
from typing import Any, cast

import torch

from trainlab.checkpoint import load_checkpoint, newest_of_run
from trainlab.containers.container import Container, ContextObject
from trainlab.data import to_device
from trainlab.distributed import choose_device, get_num_processes, init_distributed
from trainlab.errors import InvalidStateError
from trainlab.runs.current import CurrentRun, current_run

__all__ = ["place_on_correct_device", "run_context", "transform"]

_lock = threading.Lock()
# One warning for each type that cannot be moved, and not one a batch; none for these, which no one expects to move.
_warned: set[type] = {str, type(None)}


def run_context() -> ContextObject:
    """Return the context of the running experiment, made at the first call; the same in all threads.

    Raises:
        InvalidStateError: no experiment is running.
    """
    run = current_run()
    if run is None:
        raise InvalidStateError(
            "trainlab.context is that of the running experiment, and none is running. Use it in the main function of "
            "an experiment (@trainlab.experiment), or make one of your own: trainlab.ContextObject()."
        )
    with _lock:
        if run.context is None:
            run.context = ContextObject()
    return cast(ContextObject, run.context)


def place_on_correct_device(*args: Any) -> list[Any]:
    """Move things to where the running experiment trains: a GPU if its ``cuda`` says so and there is one.

    Args:
        *args: Tensors, arrays of numbers (they become tensors), modules, what else has ``to``, and dicts, lists,
            tuples and dataclasses of these. All else comes back as it is.

    Returns:
        The moved things, as a list. Outside of an experiment they are on the device that TRAINLAB_DEVICE names, or on
        a GPU if there is one.

    Source: ``pystematic.torch.place_on_correct_device``.
    """
    device = _correct_device(current_run())
    return [to_device(one, device, warned=_warned) for one in args]


def _correct_device(run: CurrentRun | None) -> torch.device:
    if run is None or "cuda" not in run.params:
        return choose_device()
    return torch.device("cuda" if run.params["cuda"] and torch.cuda.is_available() else "cpu")


def transform(container: Container, run: CurrentRun) -> None:
    """Do what the parameters of a run say; see ``Container.autotransform``.

    Args:
        container: what to load, move and share.
        run: the run.
    """
    is_alone = get_num_processes() == 1
    checkpoint = _to_load(run) if is_alone else init_distributed().on_chief(lambda: _to_load(run))
    if checkpoint is not None:
        container.load_state_dict(load_checkpoint(checkpoint))
    if run.params.get("cuda") and torch.cuda.is_available():
        container.cuda()
    if run.params.get("distributed"):
        container.ddp()


def _to_load(run: CurrentRun) -> Path | str | None:
    """Find what to begin with: the given checkpoint until the run has saved one of its own after it, then the newest.

    ``trainlab resume`` gives again what the run was begun with.
    """
    given: str | None = run.params.get("checkpoint")
    folder = run.folder
    if folder is None or not (given or folder.resumes):
        return given
    newest = newest_of_run(run.output_dir)
    begun_from = {"given": given, "newest": None if newest is None else Path(newest).name}
    before = folder.record.get("begun_from", {})
    has_saved = newest is not None and before.get("given") == given and before != begun_from
    if folder.resumes and has_saved:
        return newest
    folder.write_record(begun_from=begun_from)
    return given or newest
