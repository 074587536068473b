"""Checkpointing: collects the whole state of a run, and puts it back."""

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainlab.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Entry,
    Snapshot,
    WriteAbortedError,
    classes_in,
    match_keys,
    place_like,
    place_tree,
)
from trainlab.checkpoint.classes import class_name
from trainlab.data import BatchStream
from trainlab.distributed import RngState, preserved_rng
from trainlab.errors import CheckpointDamagedError, CheckpointError, CheckpointMismatchError, PeerFailedError
from trainlab.optim import load_optimizer_state, optimizer_state_dict
from trainlab.parallel import users_module
from trainlab.runs.hidden_values import without_secrets
from trainlab.schedule import Progress
from trainlab.training.callback import CallbackHooks
from trainlab.training.context import TrialContext
from trainlab.training.differences import made_with, warn_of_differences
from trainlab.training.init import versions
from trainlab.training.rank_state import own_of, own_parts
from trainlab.training.trial import Trial

__all__ = ["Checkpointing", "content_of", "load_weights_of", "reading", "weights_loaded_for_a_while"]

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
        writer: where checkpoints go.
        is_try: whether they are only tried, and the run does not have them.
    """

    def __init__(
        self,
        trial: Trial,
        context: TrialContext,
        hooks: CallbackHooks,
        loader: Any,
        stream: BatchStream,
        writer: CheckpointWriter,
        *,
        is_try: bool,
    ) -> None:
        self._trial = trial
        self._context = context
        self._hooks = hooks
        self._loader = loader
        self._stream = stream
        self._writer = writer
        self._is_try = is_try
        # The progress in the checkpoint that is being written, which names it already.
        self._marked = context.progress
        if context.state_classes is None:
            context.state_classes = self._classes()

    def try_in_memory(self, *, before_the_end: bool) -> None:
        """Lay out a checkpoint without writing it, so that a state that none can hold is found now.

        Args:
            before_the_end: whether checkpoints are due before the end, for which memory is then taken.

        Raises:
            CheckpointError: the state cannot be saved; it names the path to it.
        """
        with preserved_rng():
            content = self._content()
        content["progress"] = self._context.progress.state_dict()
        snapshot = self._snapshot(content)
        if before_the_end and not self._hooks.checkpoint_write_end:
            self._writer.reserve(snapshot)

    def save(self, *, final: bool) -> None:
        """Make a checkpoint of this instant: training is held while tensors are copied, and not while they are written.

        The progress is marked once it is durable, at the latest when ``settle`` is told to wait.

        Args:
            final: whether to return only when it is durable, and to raise if it cannot be written.

        Raises:
            CheckpointError: the state cannot be saved, or it is final and could not be written.
        """
        begun = time.monotonic()
        must_wait = self._writer.is_busy
        self.settle(wait=True)
        if must_wait and not final:
            seconds = time.monotonic() - begun
            logger.log(
                logging.WARNING if seconds > 1 else logging.INFO,
                "Training waited %.1f s for the checkpoint before, which was still being written: checkpoints are due "
                "more often than they can be written.",
                seconds,
            )
        progress = self._context.progress
        name, recording = self._context.distributed.on_chief(lambda: self._begun(final=final))
        if recording is None:
            return
        marked = progress.copy()
        marked.last_checkpoint_batch = progress.batches_trained
        if progress.best_metric_batch == progress.batches_trained:
            marked.best_checkpoint = name
        if not self._is_try:
            self._stream.warn_of_inexactness()
        content = self._content(recording=recording)
        if self._hooks.checkpoint_save_start:
            # The others wait without a limit: a hook may take its time.
            self._context.distributed.on_chief(lambda: self._run_save_start_hooks(content))
        content["progress"] = marked.state_dict()
        self._marked = marked
        self._writer.start(
            self._snapshot(content),
            Entry.of(name, 0, marked.state_dict()),
            before_commit=self._run_write_end_hooks if self._hooks.checkpoint_write_end else None,
            wait=final,
        )
        self.settle(final=final)

    def settle(self, *, wait: bool = False, final: bool = False) -> None:
        """Take note of a checkpoint that was written beside the training, or could not be.

        Args:
            wait: whether to wait for one that is being written.
            final: whether to raise if it could not be written; otherwise that is logged, and the next one is tried.

        Raises:
            CheckpointError: see ``final``.
        """
        write = self._writer.settle(wait=wait)
        if write is None:
            return
        if write.error is not None:
            if final or not isinstance(write.error, CheckpointError):
                raise write.error
            if isinstance(write.error, WriteAbortedError):
                logger.warning("The checkpoint at batch %d was not finished.", self._marked.batches_trained)
                return
            self._tell_of_loss(self._marked, write.error)
            return
        progress, marked = self._context.progress, self._marked
        progress.last_checkpoint_batch = marked.last_checkpoint_batch
        if marked.best_checkpoint == write.entry.name and progress.best_metric_batch == marked.best_metric_batch:
            progress.best_checkpoint = marked.best_checkpoint
        if not self._is_try:
            self._context.session.latest_checkpoint = self._context.session.last_checkpoint = write.location
            logger.info("Checkpoint %s.", write.location)
        _run_apart(self._hooks.checkpoint_upload_end, uuid=str(write.location))

    @property
    def is_settled(self) -> bool:
        """Whether a checkpoint that was being written is done, as this rank sees it, and nobody took note of it yet."""
        return self._writer.is_done

    def _begun(self, *, final: bool) -> tuple[str, dict[str, Any] | None]:
        """What the chief decides of a checkpoint: its name, and where the series are."""
        return self._writer.next_name(self._context.progress.batches_trained), self._recording(final=final)

    def _recording(self, *, final: bool) -> dict[str, Any] | None:
        """Where the series are; None if they cannot be written, so that no checkpoint may be ahead of them."""
        try:
            return self._context.session.series.state_dict()
        except OSError as error:
            lost = CheckpointError(
                f"What was recorded cannot be written, and no checkpoint is made without it: {error}. "
                f"Received: {self._context.session.folder.place}. Make room there, or make it writable."
            )
            if final:
                raise lost from error
            self._tell_of_loss(self._context.progress, lost)
            return None

    def _tell_of_loss(self, progress: Progress, error: Exception) -> None:
        logger.error(
            "A checkpoint at batch %d was lost, and training goes on; the next one is tried. The last good one is "
            "%s. %s",
            progress.batches_trained,
            self._context.latest_checkpoint,
            error,
        )

    def read_back(self) -> None:
        """Read the checkpoint that was written last, to see that it can be read."""
        for name in self._writer.names[-1:]:
            with Checkpoint.open(self._writer.location(name)) as checkpoint:
                content_of(checkpoint, self._context.state_classes, self._context)

    def close(self, error: BaseException | None) -> None:
        """Wait for what is being written; but give it up if the program is being aborted.

        Args:
            error: what ended training, if it did not end well.
        """
        if isinstance(error, KeyboardInterrupt | PeerFailedError):
            self._writer.abort()
        try:
            self.settle(wait=True)
        except PeerFailedError as failure:
            logger.warning("The checkpoint at batch %d was not finished: %s", self._marked.batches_trained, failure)
        finally:
            self._writer.close()

    def best(self) -> Path | str | None:
        """The checkpoint that holds the best so far, if it is there."""
        name = self._context.progress.best_checkpoint
        return self._writer.location(name) if name in self._writer.names else None

    def restore(self, checkpoint: Checkpoint, content: dict[str, Any]) -> None:
        """Put a checkpoint's content back into everything but the generators, the stream and the recording.

        Args:
            checkpoint: the opened checkpoint.
            content: what ``content_of`` read from it; callbacks may change it.

        Raises:
            CheckpointMismatchError: it does not fit what is wrapped.
        """
        warn_of_differences(content["made_with"], made_with(self._trial, self._context, self._loader))
        with _named(checkpoint):
            content["models_state_dict"] = _models_of(checkpoint, self._context)
            self._tell_of_other_ranks(checkpoint)
            if not len(self._context.models) == len(content["models_extra_state"]) == len(content["gradients"]):
                raise CheckpointDamagedError(f"{checkpoint.path}: its weights and its state are of other numbers.")
            for hook in self._hooks.checkpoint_load_start:
                hook(content)
            _load_models(content["models_state_dict"], content["models_extra_state"], self._context)
            self._load_optimizers(content)
            self._load_scaler(content.get("scaler_state_dict"))
            if self._context.distributed.size > 1 or checkpoint.ranks > 1:
                self._place(content)
            self._hooks.load_state_dict(content["callbacks"])
            self._load_stateful(content["stateful"])
            with reading(checkpoint, "gradients"):
                self._load_gradients(content["gradients"])
            self._context.progress.load_state_dict(content["progress"])

    def _place(self, content: dict[str, Any]) -> None:
        """Give what holds parts of tensors its part, or the whole of those that are not sharded here."""
        shards, stateful = self._context.parallel.shards, self._context.stateful
        like = self._hooks.state_dict() if shards else None
        content["callbacks"] = place_tree(content["callbacks"], like)
        for name, state in content["stateful"].items():
            one = stateful[name].state_dict() if shards and name in stateful else None
            content["stateful"][name] = place_tree(state, one)

    def _tell_of_other_ranks(self, checkpoint: Checkpoint) -> None:
        if checkpoint.ranks != self._context.distributed.size:
            logger.info(
                "The run goes on with %d ranks, and had %d: each has other random numbers from here on.",
                self._context.distributed.size,
                checkpoint.ranks,
            )

    def _content(self, recording: dict[str, Any] | None = None) -> dict[str, Any]:
        context = self._context
        states = [users_module(model).state_dict() for model in context.models]
        content: dict[str, Any] = {
            "models_state_dict": [_tensors(state) for state in states],
            "models_extra_state": [_others(state) for state in states],
            "optimizers_state_dict": [optimizer_state_dict(o) for o in context.optimizers],
            "optimizer_names": list(context.wrapped_optimizers),
            "lr_schedulers_state_dict": [s.state_dict() for s in context.lr_schedulers],
            "gradients": [_gradients(model) for model in context.models],
            "stateful": {name: stateful.state_dict() for name, stateful in context.stateful.items()},
            "stream": self._stream.state_dict(),
            "recording": recording or {},
            "callbacks": self._hooks.state_dict(),
            "made_with": made_with(self._trial, context, self._loader),
        }
        if context.scaler is not None:
            content["scaler_state_dict"] = context.scaler.state_dict()
        content["rng_state"] = RngState.capture().state_dict()
        return content

    def _run_save_start_hooks(self, content: dict[str, Any]) -> None:
        ours = content["rng_state"]
        for hook in self._hooks.checkpoint_save_start:
            hook(content)
        if self._hooks.checkpoint_save_start and content.get("rng_state") is ours:
            content["rng_state"] = RngState.capture().state_dict()

    def _snapshot(self, content: dict[str, Any]) -> Snapshot:
        models = content.pop("models_state_dict")
        ranks = self._context.distributed
        return Snapshot(
            weights={"model": dict(zip(self._context.model_names, models, strict=True))},
            state=content if ranks.is_chief else own_of(content, shards=self._context.parallel.shards),
            details={
                "progress": content["progress"],
                "trial_class": class_name(type(self._trial)),
                "hparams": without_secrets(self._context.given_hparams, self._context.session.folder.masking),
                "exp_conf": self._context.given_exp_conf,
                "versions": versions(),
            },
            classes=self._context.state_classes,
            rank=ranks.rank,
            ranks=ranks.size,
        )

    def _classes(self) -> dict[str, type]:
        """The classes of values that the objects of a fresh run have: those of a checkpoint may be of these.

        Their attributes are looked at, and no state is asked for, which may come into being only with the training.
        """
        modules = [module for model in self._context.models for module in users_module(model).modules()]
        owners = [*self._hooks.by_name.values(), *self._context.stateful.values(), *modules]
        return classes_in([getattr(owner, "__dict__", {}) for owner in owners])

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
            for name, parameter in users_module(model).named_parameters():
                gradient = saved.get(name)
                if gradient is not None:
                    gradient = place_like(gradient, parameter).to(parameter.device, copy=True)
                parameter.grad = gradient


def load_weights_of(checkpoint: Checkpoint, context: TrialContext) -> None:
    """Load the weights of a checkpoint into the wrapped models, and nothing else.

    Args:
        checkpoint: the opened checkpoint.
        context: the context whose models are loaded.

    Raises:
        CheckpointMismatchError: the models' names, keys or shapes differ.
    """
    states = [users_module(model).state_dict() for model in context.models]
    extra: list[dict[str, Any]] = [{} for _ in states]
    if any(_others(state) for state in states):  # rare, and the state is larger than the weights
        extra = content_of(checkpoint, classes_in(states))["models_extra_state"]
    with _named(checkpoint):
        _load_models(_models_of(checkpoint, context), extra, context)


@contextmanager
def weights_loaded_for_a_while(path: str | os.PathLike[str], context: TrialContext) -> Iterator[None]:
    """Put the weights of a checkpoint into the wrapped models for the time of a block.

    Args:
        path: the checkpoint.
        context: the context whose models are meant.

    Raises:
        CheckpointError: it cannot be read.
        CheckpointMismatchError: as for ``load_weights_of``; the weights are as they were then.
    """
    modules = [users_module(model) for model in context.models]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    try:
        with context.open_checkpoint(path) as checkpoint:
            load_weights_of(checkpoint, context)
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)


def content_of(
    checkpoint: Checkpoint, classes: Mapping[str, type] | None, context: TrialContext | None = None
) -> dict[str, Any]:
    """Read the state of a checkpoint, which has to hold every part that this version writes.

    Args:
        checkpoint: the opened checkpoint.
        classes: the enums, named tuples and dataclasses that it may hold, besides registered ones.
        context: whose rank's own parts are wanted. Default: those of rank 0.

    Returns:
        The parts by name, without the models' weights.

    Raises:
        CheckpointDamagedError: a part is missing, or is not what it should be.
    """
    content = checkpoint.state(classes)
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
    if context is not None and (context.distributed.size > 1 or checkpoint.ranks > 1):
        with reading(checkpoint, "the parts of the ranks"):
            content.update(own_parts(checkpoint, classes, content, context))
    return content


def _lacking(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    needed = [("recording", "files")]
    if content["stream"]:
        needed += [("stream", "held"), ("stream", "source")]
    return [(part, key) for part, key in needed if key not in content[part]]


@contextmanager
def reading(checkpoint: Checkpoint, part: str) -> Iterator[None]:
    """Say which part of which checkpoint is not what trainlab writes, where its use goes wrong.

    Args:
        checkpoint: the opened checkpoint.
        part: the part's name.

    Raises:
        CheckpointDamagedError: the block raised what values of other kinds raise.
    """
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointDamagedError(
            f"The state in the checkpoint {checkpoint.path} is not what trainlab writes: {part}: {error}. "
            "Use another checkpoint."
        ) from error


@contextmanager
def _named(checkpoint: Checkpoint) -> Iterator[None]:
    """Name the checkpoint in errors that only know what does not fit."""
    try:
        yield
    except CheckpointMismatchError as error:
        raise CheckpointMismatchError(f"{checkpoint.path}: {error}") from error


def _models_of(checkpoint: Checkpoint, context: TrialContext) -> list[dict[str, torch.Tensor]]:
    like = None
    if context.parallel.shards and set(checkpoint.models.get("model", ())) == set(context.model_names):
        states = (_tensors(users_module(model).state_dict()) for model in context.models)
        like = dict(zip(context.model_names, states, strict=True))
    weights = checkpoint.weights("model", like=like)
    if sorted(weights) != sorted(context.model_names):
        raise _names_differ("models", list(weights), context.model_names)
    return [dict(weights[name]) for name in context.model_names]


def _load_models(states: list[dict[str, Any]], extra: list[dict[str, Any]], context: TrialContext) -> None:
    for model, state, others, name in zip(context.models, states, extra, context.model_names, strict=True):
        module = users_module(model)
        match_keys(_tensors(module.state_dict()), state, f"model {name!r} ({type(module).__qualname__})")
        module.load_state_dict({**state, **others})


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _others(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in users_module(model).named_parameters() if p.grad is not None}


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
