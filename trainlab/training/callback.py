"""Callback, and the hooks of a run's callbacks collected once."""

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidTypeError, TrialDefinitionError

__all__ = ["Callback", "CallbackHooks"]

logger = logging.getLogger("trainlab.training")


class Callback:
    """Code of yours that runs at fixed points of a run.

    Override the hooks that you need; those that you do not override cost nothing. Return an
    instance from ``Trial.build_callbacks``. There is no need to call ``super().__init__()``.

    Source: the hooks of ``PyTorchCallback`` in Determined's PyTorch API.
    """

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        """Run first of all, before the data loaders are built.

        Args:
            first_batch_idx: index of the first batch that this fit will train, from 0.
            checkpoint_uuid: the checkpoint that the run resumes from, or None.
        """

    def on_trial_shutdown(self) -> None:
        """Run last, once, also when training raises; callbacks in reverse order."""

    def on_training_start(self) -> None:
        """Run after everything was built and restored, before the first batch."""

    def on_training_epoch_start(self, epoch_idx: int) -> None:
        """Run right before the first batch of an epoch.

        Args:
            epoch_idx: index of the epoch, from 0. Not called again for an epoch that a
                resumed run finishes.
        """

    def on_training_epoch_end(self, epoch_idx: int) -> None:
        """Run after the last batch of an epoch, before anything that is due there.

        Args:
            epoch_idx: index of the epoch that ended, from 0.
        """

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: list[dict[str, Any]]) -> None:
        """Run at every report.

        Args:
            avg_metrics: the training metrics averaged over the window, the results of the
                reducers, and ``batches`` and ``epochs`` trained so far.
            batch_metrics: what ``train_batch`` returned for each batch of the window, in
                order, on the host.
        """

    def on_validation_start(self) -> None:
        """Run before a validation, with the models still in training mode."""

    def on_validation_epoch_start(self) -> None:
        """Run before the first ``evaluate_batch`` of a validation."""

    def on_validation_epoch_end(self, outputs: list[dict[str, Any]]) -> None:
        """Run after the last ``evaluate_batch`` of a validation.

        Args:
            outputs: what ``evaluate_batch`` returned for each batch, on the host.
        """

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        """Run after a validation.

        Args:
            metrics: the reduced validation metrics.
        """

    def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
        """Run before a checkpoint's content is put into models and optimizers.

        Args:
            checkpoint: the content; changes to it are what is loaded.
        """

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        """Run before a checkpoint is written, after every callback's ``state_dict`` was asked for.

        Args:
            checkpoint: the content; changes to it are what is saved.
        """

    def on_checkpoint_write_end(self, checkpoint_dir: Path) -> None:
        """Run when the data of a checkpoint is written, before it is committed.

        Args:
            checkpoint_dir: the checkpoint's folder; files added to it become part of it.
        """

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        """Run when a checkpoint is committed.

        Args:
            uuid: names the checkpoint; usable as ``latest_checkpoint`` of a later fit.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what this callback needs to go on after a resume.

        Returns:
            Plain data and tensors; empty by default.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Args:
            state_dict: the state from the checkpoint.
        """


_OLD_WRITE_END = "on_checkpoint_end"
_STATE_NAMES = ("state_dict", "load_state_dict")
_HOOK_NAMES = tuple(name for name in vars(Callback) if name.startswith("on_"))


class CallbackHooks:
    """The overridden hooks of all callbacks, one list a hook, in the callbacks' order.

    Args:
        callbacks: the callbacks by name, as ``Trial.build_callbacks`` returned them.

    Raises:
        InvalidTypeError: not a dict of Callback objects.
        TrialDefinitionError: a callback has a hook that does not exist, or one with a wrong
            signature.
    """

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        if not isinstance(callbacks, Mapping):
            raise InvalidTypeError(
                "build_callbacks must return a dict of callbacks by name. "
                f"Received: {callbacks!r}. Return e.g. {{'stopping': MyCallback()}}."
            )
        self.by_name = dict(callbacks)
        for name, callback in self.by_name.items():
            if not isinstance(callback, Callback):
                raise InvalidTypeError(
                    f"The callback {name!r} is not a trainlab.Callback. Received: {type(callback).__qualname__}. "
                    "Derive its class from trainlab.Callback, and pass an instance."
                )
            _check_hook_names(callback)
        self.training_start = self._overridden("on_training_start")
        self.training_epoch_start = [_with_epoch(hook) for hook in self._overridden("on_training_epoch_start")]
        self.training_epoch_end = self._overridden("on_training_epoch_end")
        self.training_workload_end = self._overridden("on_training_workload_end")
        self.validation_start = self._overridden("on_validation_start")
        self.validation_epoch_start = self._overridden("on_validation_epoch_start")
        self.validation_epoch_end = self._overridden("on_validation_epoch_end")
        self.validation_end = self._overridden("on_validation_end")
        self.checkpoint_load_start = self._overridden("on_checkpoint_load_start")
        self.checkpoint_save_start = self._overridden("on_checkpoint_save_start")
        self.checkpoint_write_end = self._write_end_hooks()
        self.checkpoint_upload_end = self._overridden("on_checkpoint_upload_end")
        self._trial_startup = self._overridden("on_trial_startup")

    def startup(self, shutdown: ExitStack, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        """Start all callbacks, and see to it that each is shut down, in reverse order.

        Args:
            shutdown: the stack whose unwinding shuts the callbacks down.
            first_batch_idx: index of the first batch of this fit.
            checkpoint_uuid: the checkpoint that is resumed from, or None.
        """
        for callback in self.by_name.values():
            shutdown.callback(callback.on_trial_shutdown)
        for hook in self._trial_startup:
            hook(first_batch_idx, checkpoint_uuid)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback by its name."""
        return {name: callback.state_dict() for name, callback in self.by_name.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Give every callback its state back; a difference in names is warned of.

        Args:
            states: what ``state_dict`` returned, from the checkpoint.
        """
        for name, callback in self.by_name.items():
            if name in states:
                callback.load_state_dict(states[name])
            else:
                logger.warning("The checkpoint has no state for the callback %r: it starts fresh.", name)
        for name in states.keys() - self.by_name.keys():
            logger.warning("The checkpoint has state for a callback %r that this run does not have.", name)

    def _overridden(self, name: str) -> list[Callable[..., None]]:
        base = getattr(Callback, name)
        return [getattr(c, name) for c in self.by_name.values() if getattr(type(c), name) is not base]

    def _write_end_hooks(self) -> list[Callable[..., None]]:
        hooks = []
        for callback in self.by_name.values():
            old = getattr(callback, _OLD_WRITE_END, None)
            hooks += [old] if old is not None else []
            if type(callback).on_checkpoint_write_end is not Callback.on_checkpoint_write_end:
                hooks.append(callback.on_checkpoint_write_end)
        return hooks


def _check_hook_names(callback: Callback) -> None:
    cls = type(callback)
    for name in dir(cls):
        if name.startswith("_") or not callable(getattr(cls, name)) or name in (_OLD_WRITE_END, *_STATE_NAMES):
            continue
        meant = difflib.get_close_matches(name, _STATE_NAMES, n=1, cutoff=0.85)
        if not name.startswith("on_") and f"on_{name}" not in _HOOK_NAMES and not meant:
            continue
        if name not in _HOOK_NAMES:
            close = meant or difflib.get_close_matches(name, _HOOK_NAMES, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise TrialDefinitionError(
                f"{cls.__qualname__}.{name} is no hook of a Callback: it would never run. {hint}"
                f"The hooks are: {', '.join([*_HOOK_NAMES, *_STATE_NAMES])}. Rename it (a helper of your own: let its "
                "name begin with an underscore)."
            )
        _check_hook_signature(callback, name)


def _check_hook_signature(callback: Callback, name: str) -> None:
    wanted = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
    hook = getattr(callback, name)
    if name == "on_training_epoch_start" and not inspect.signature(hook).parameters:
        return
    by_keyword = name in ("on_training_workload_end", "on_checkpoint_upload_end")
    try:
        if by_keyword:
            inspect.signature(hook).bind(**dict.fromkeys(wanted))
        else:
            inspect.signature(hook).bind(*wanted)
    except TypeError as error:
        raise TrialDefinitionError(
            f"{type(callback).__qualname__}.{name} cannot be called as the trainer calls it: {error}. "
            f"Received: {name}{inspect.signature(hook)}. Write it as {name}({', '.join(['self', *wanted])})."
        ) from None


def _with_epoch(hook: Callable[..., None]) -> Callable[..., None]:
    if inspect.signature(hook).parameters:
        return hook
    logger.warning(
        "on_training_epoch_start without an argument is deprecated: write on_training_epoch_start(self, epoch_idx)."
    )

    def call_without_epoch(epoch_idx: int) -> None:
        hook()

    return call_without_epoch
