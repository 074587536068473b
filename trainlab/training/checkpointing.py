"""Checkpointing: collects the whole state of a run, and puts it back."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainlab.checkpoint import Checkpoint, allot, match_keys, write_checkpoint
from trainlab.data import BatchStream
from trainlab.distributed import RngState, preserved_rng
from trainlab.errors import CheckpointDamagedError, CheckpointMismatchError
from trainlab.optim import load_optimizer_state, optimizer_state_dict
from trainlab.schedule import Progress
from trainlab.training.callback import CallbackHooks
from trainlab.training.context import TrialContext, inner_module
from trainlab.training.init import versions
from trainlab.training.trial import Trial

__all__ = ["Checkpointing", "content_of", "load_weights_of", "weights_loaded_for_a_while"]

_PARTS = {
    "models_extra_state": list,
    "optimizers_state_dict": list,
    "optimizer_names": list,
    "lr_schedulers_state_dict": list,
    "gradients": list,
    "stateful": dict,
    "stream": dict,
    "recording": dict,
    "callbacks": dict,
    "rng_state": dict,
    "progress": dict,
    "made_with": dict,
}
_ENTRIES = {
    "models_extra_state": dict,
    "optimizers_state_dict": dict,
    "optimizer_names": str,
    "lr_schedulers_state_dict": dict,
    "gradients": dict,
}

logger = logging.getLogger("trainlab.training")


class Checkpointing:
    """Saves a run into checkpoints and restores it from one.

    Args:
        trial: the user's Trial.
        context: its context, with everything that is wrapped.
        hooks: the callbacks' hooks, whose states are saved too.
        loader: the training loader.
        stream: its batches, whose position is saved.
        root: the folder of the checkpoints.
    """

    def __init__(
        self, trial: Trial, context: TrialContext, hooks: CallbackHooks, loader: Any, stream: BatchStream, root: Path
    ) -> None:
        self._trial = trial
        self._context = context
        self._hooks = hooks
        self._loader = loader
        self._stream = stream
        self._root = root

    def save(self) -> Path:
        """Write a checkpoint of this instant; the progress is marked once it is committed.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: it could not be written.
        """
        progress = self._context.progress
        folder = allot(self._root, progress.batches_trained)
        marked = progress.copy()
        marked.last_checkpoint_batch = progress.batches_trained
        if progress.best_metric_batch == progress.batches_trained:
            marked.best_checkpoint = folder.name
        content = self._content()
        content["progress"] = marked.state_dict()
        models = content.pop("models_state_dict")
        written = write_checkpoint(
            self._root,
            batches_trained=progress.batches_trained,
            weights={"model": dict(zip(self._context.model_names, models, strict=True))},
            state=content,
            details=self._details(marked.state_dict()),
            before_commit=self._run_write_end_hooks if self._hooks.checkpoint_write_end else None,
        )
        progress.load_state_dict(marked.state_dict())
        _run_apart(self._hooks.checkpoint_upload_end, uuid=str(written))
        return written

    def restore(self, checkpoint: Checkpoint, content: dict[str, Any]) -> None:
        """Put a checkpoint's content back into everything but the generators, the stream and the recording.

        Args:
            checkpoint: the opened checkpoint.
            content: what ``content_of`` read from it; callbacks may change it.

        Raises:
            CheckpointMismatchError: it does not fit what is wrapped.
        """
        self._warn_of_differences(content["made_with"])
        with _named(checkpoint):
            content["models_state_dict"] = _models_of(checkpoint, content, self._context)
            for hook in self._hooks.checkpoint_load_start:
                hook(content)
            _load_models(content, self._context)
            self._load_optimizers(content)
            self._load_scaler(content.get("scaler_state_dict"))
            self._hooks.load_state_dict(content["callbacks"])
            self._load_stateful(content["stateful"])
            self._load_gradients(content["gradients"])
            self._context.progress.load_state_dict(content["progress"])

    def _content(self) -> dict[str, Any]:
        context = self._context
        states = [inner_module(model).state_dict() for model in context.models]
        content: dict[str, Any] = {
            "models_state_dict": [_tensors(state) for state in states],
            "models_extra_state": [_others(state) for state in states],
            "optimizers_state_dict": [optimizer_state_dict(o) for o in context.optimizers],
            "optimizer_names": list(context.wrapped_optimizers),
            "lr_schedulers_state_dict": [s.state_dict() for s in context.lr_schedulers],
            "gradients": [_gradients(model) for model in context.models],
            "stateful": {name: stateful.state_dict() for name, stateful in context.stateful.items()},
            "stream": self._stream.state_dict(),
            "recording": context.session.recorder.state_dict(),
            "callbacks": self._hooks.state_dict(),
            "made_with": self._made_with(),
        }
        if context.scaler is not None:
            content["scaler_state_dict"] = context.scaler.state_dict()
        content["rng_state"] = ours = RngState.capture().state_dict()
        for hook in self._hooks.checkpoint_save_start:
            hook(content)
        if self._hooks.checkpoint_save_start and content.get("rng_state") is ours:
            content["rng_state"] = RngState.capture().state_dict()
        return content

    def _details(self, progress: dict[str, Any]) -> dict[str, Any]:
        trial_class = type(self._trial)
        return {
            "progress": progress,
            "trial_class": f"{trial_class.__module__}:{trial_class.__qualname__}",
            "hparams": self._context.given_hparams,
            "exp_conf": self._context.given_exp_conf,
            "versions": versions(),
        }

    def _made_with(self) -> dict[str, Any]:
        """What decides the order of the data and the steps, and may not change if a resume is to be exact."""
        try:
            records = len(self._loader.dataset)
        except (AttributeError, TypeError, NotImplementedError):
            records = None
        return {
            "seed": self._context.get_trial_seed(),
            "aggregation_frequency": self._context.aggregation_frequency,
            "records in the training data set": records,
        }

    def _warn_of_differences(self, made_with: Mapping[str, Any]) -> None:
        now = self._made_with()
        for what in now.keys() & made_with.keys():
            if made_with[what] != now[what]:
                logger.warning(
                    "The resumed run goes on otherwise than it was begun: %s was %r and is %r. Its "
                    "order of data and its "
                    "steps are not those of an uninterrupted run.",
                    what,
                    made_with[what],
                    now[what],
                )

    def _run_write_end_hooks(self, folder: Path) -> None:
        _run_apart(self._hooks.checkpoint_write_end, folder)

    def _load_optimizers(self, content: Mapping[str, Any]) -> None:
        context = self._context
        wrapped = list(context.wrapped_optimizers)
        if content["optimizer_names"] != wrapped:
            raise _names_differ("optimizers", content["optimizer_names"], wrapped)
        for optimizer, state in zip(context.optimizers, content["optimizers_state_dict"], strict=True):
            load_optimizer_state(optimizer, state)
        states = content["lr_schedulers_state_dict"]
        if len(states) != len(context.lr_schedulers):
            raise CheckpointMismatchError(
                f"The checkpoint holds {len(states)} learning rate schedulers, and this Trial wraps "
                f"{len(context.lr_schedulers)}. Wrap the same ones in the same order."
            )
        for scheduler, state in zip(context.lr_schedulers, states, strict=True):
            scheduler.load_state_dict(state)

    def _load_scaler(self, state: Any) -> None:
        scaler = self._context.scaler
        if scaler is None and state is not None:
            logger.warning(
                "The checkpoint holds the state of a gradient scaler, and this run has none: it is left out."
            )
        elif scaler is not None and state is None:
            logger.warning(
                "This run has a gradient scaler, and the checkpoint holds no state for one: it starts fresh."
            )
        elif scaler is not None and state:
            scaler.load_state_dict(state)

    def _load_stateful(self, states: Mapping[str, Any]) -> None:
        stateful = self._context.stateful
        if states.keys() != stateful.keys():
            raise _names_differ("registered stateful objects", list(states), list(stateful))
        for name, one in stateful.items():
            one.load_state_dict(states[name])

    def _load_gradients(self, gradients: list[dict[str, torch.Tensor]]) -> None:
        for model, saved in zip(self._context.models, gradients, strict=True):
            for name, parameter in inner_module(model).named_parameters():
                gradient = saved.get(name)
                parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)


def load_weights_of(checkpoint: Checkpoint, context: TrialContext) -> None:
    """Load the weights of a checkpoint into the wrapped models, and nothing else.

    Args:
        checkpoint: the opened checkpoint.
        context: the context whose models are loaded.

    Raises:
        CheckpointMismatchError: the models' names, keys or shapes differ.
    """
    content = content_of(checkpoint)
    with _named(checkpoint):
        content["models_state_dict"] = _models_of(checkpoint, content, context)
        _load_models(content, context)


@contextmanager
def weights_loaded_for_a_while(checkpoint: Checkpoint, context: TrialContext) -> Iterator[None]:
    """Put the weights of a checkpoint into the wrapped models for the time of a block.

    Args:
        checkpoint: the opened checkpoint.
        context: the context whose models are meant.

    Raises:
        CheckpointMismatchError: as for ``load_weights_of``; the weights are as they were then.
    """
    modules = [inner_module(model) for model in context.models]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    try:
        load_weights_of(checkpoint, context)
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the state of a checkpoint, which has to hold every part that this version writes.

    Args:
        checkpoint: the opened checkpoint.

    Returns:
        The parts by name, without the models' weights.

    Raises:
        CheckpointDamagedError: a part is missing, or is not what it should be.
    """
    content = checkpoint.state()
    if not isinstance(content, dict):
        raise CheckpointDamagedError(
            f"The state in the checkpoint {checkpoint.path} is no dict but {type(content).__name__}."
        )
    wrong = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
    wrong += [
        name
        for name, kind in _ENTRIES.items()
        if name not in wrong and not all(isinstance(entry, kind) for entry in content[name])
    ]
    if not wrong and len(content["optimizers_state_dict"]) != len(content["optimizer_names"]):
        wrong = ["optimizers_state_dict", "optimizer_names"]
    wrong += [f"{part}[{key!r}]" for part, key in _lacking(content)] if not wrong else []
    if wrong:
        raise CheckpointDamagedError(
            f"The state in the checkpoint {checkpoint.path} lacks parts, or they are not what they should be: {wrong}. "
            "It was not written by this version of trainlab, or changed since. Use another one."
        )
    Progress().load_state_dict(content["progress"])
    return content


def _lacking(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    needed = [("recording", "files")]
    if content["stream"]:
        needed += [("stream", "held"), ("stream", "source")]
    return [(part, key) for part, key in needed if key not in content[part]]


@contextmanager
def _named(checkpoint: Checkpoint) -> Iterator[None]:
    """Name the checkpoint in errors that only know what does not fit."""
    try:
        yield
    except CheckpointMismatchError as error:
        raise CheckpointMismatchError(f"{checkpoint.path}: {error}") from error


def _models_of(
    checkpoint: Checkpoint, content: Mapping[str, Any], context: TrialContext
) -> list[dict[str, torch.Tensor]]:
    weights = checkpoint.weights("model")
    if sorted(weights) != sorted(context.model_names):
        raise _names_differ("models", list(weights), context.model_names)
    if not len(weights) == len(content["models_extra_state"]) == len(content["gradients"]):
        raise CheckpointDamagedError(
            f"The checkpoint {checkpoint.path} holds {len(weights)} models, and its state is of another number."
        )
    return [dict(weights[name]) for name in context.model_names]


def _load_models(content: Mapping[str, Any], context: TrialContext) -> None:
    for model, state, extra, name in zip(
        context.models, content["models_state_dict"], content["models_extra_state"], context.model_names, strict=True
    ):
        module = inner_module(model)
        match_keys(_tensors(module.state_dict()), state, f"model {name!r} ({type(module).__qualname__})")
        module.load_state_dict({**state, **extra})


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _others(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in inner_module(model).named_parameters() if p.grad is not None}


def _run_apart(hooks: list[Callable[..., None]], *args: Any, **kwargs: Any) -> None:
    """Run hooks that come after the state was collected: a resumed run must not miss the numbers that they draw."""
    if hooks:
        with preserved_rng():
            for hook in hooks:
                hook(*args, **kwargs)


def _names_differ(what: str, found: list[str], wrapped: list[str]) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"The checkpoint's {what} are not those of this Trial. In the checkpoint: {found}. In the Trial: {wrapped}. "
        "Wrap the same ones under the same names."
    )
