"""load_trial_from_checkpoint_path: a trained Trial, ready to be used, from a checkpoint."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from trainlab.checkpoint import Checkpoint
from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.precision import Precision
from trainlab.training.checkpointing import load_weights_of
from trainlab.training.context import TrialContext
from trainlab.training.session import Session
from trainlab.training.trial import Trial

__all__ = ["load_trial_from_checkpoint_path"]


def load_trial_from_checkpoint_path(
    path: str | os.PathLike[str],
    trial_class: type[Trial] | None = None,
    trial_kwargs: Mapping[str, Any] | None = None,
    torch_load_kwargs: Mapping[str, Any] | None = None,
    *,
    hparams: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    context_class: type[TrialContext] = TrialContext,
) -> Trial:
    """Build a Trial with the hyperparameters of a checkpoint, and load its models' weights.

    No code comes from the checkpoint, and none is imported because it names it.

    Args:
        path: the checkpoint's folder, or its URL.
        trial_class: the Trial's class. Default: the class that the checkpoint names, if the module that
            defines it is imported already.
        trial_kwargs: further keyword arguments of the class. Default none.
        torch_load_kwargs: only ``map_location``, the device to load to. Default: the CPU.
        hparams: hyperparameters that take the place of the checkpoint's, by name: of one that looks like a secret
            (``api_token``, but ``pad_token`` as well) a checkpoint has the name alone. Default none.
        storage_options: what the file system of a URL asks for, as fsspec has it. Default none.
        context_class: the class of the context to make.

    Returns:
        The Trial; its models hold the trained weights, in training mode as built.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CheckpointDamagedError: a file of it is not as it was written.
        CheckpointMismatchError: the weights do not fit the Trial's models.
        InvalidValueError: the class is not given and not imported, or an option is not known.

    Source: ``determined.pytorch.load_trial_from_checkpoint_path``.
    """
    options = dict(torch_load_kwargs or {})
    device = torch.device(options.pop("map_location", None) or "cpu")
    if options:
        raise InvalidValueError(
            f"torch_load_kwargs may only hold 'map_location': weights are read from safetensors, not by torch.load. "
            f"Received: {sorted(options)}."
        )
    with Checkpoint.open(path, verify=False, storage_options=storage_options) as checkpoint:
        return _loaded(checkpoint, trial_class, trial_kwargs, hparams, device, context_class)


def _loaded(
    checkpoint: Checkpoint,
    trial_class: type[Trial] | None,
    trial_kwargs: Mapping[str, Any] | None,
    hparams: Mapping[str, Any] | None,
    device: torch.device,
    context_class: type[TrialContext],
) -> Trial:
    trial_class = _named_class(checkpoint) if trial_class is None else trial_class
    if not (isinstance(trial_class, type) and issubclass(trial_class, Trial)):
        raise InvalidTypeError(f"trial_class must be a subclass of trainlab.Trial. Received: {trial_class!r}.")
    context = context_class(
        hparams=checkpoint.hparams if hparams is None else {**(checkpoint.hparams or {}), **hparams},
        exp_conf=checkpoint.exp_conf,
        distributed=DistributedContext(),
        seed=0,
        aggregation_frequency=1,
        precision=Precision("fp32", device),
        uneven="scale",
        session=Session(None, progress=False, enable_tensorboard_logging=False),
    )
    trial = trial_class(context, **(trial_kwargs or {}))
    load_weights_of(checkpoint, context)
    return trial


def _named_class(checkpoint: Checkpoint) -> Any:
    module, _, name = checkpoint.trial_class.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Trial)):
        raise InvalidValueError(
            f"The checkpoint {checkpoint.path} was made by the Trial {checkpoint.trial_class!r}, which "
            f"is not imported here, "
            "and loading a checkpoint imports nothing. Pass trial_class=."
        )
    return found
