"""Evaluator: one validation, whole or of a single batch."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from trainlab.data import BatchStream
from trainlab.errors import MetricError
from trainlab.metrics import ValidationMetrics, check_full_dataset
from trainlab.recording import Display, NoDisplay
from trainlab.training.callback import CallbackHooks
from trainlab.training.context import TrialContext
from trainlab.training.trial import Trial, checked_length, overrides, takes_batch_idx

__all__ = ["Evaluator"]


class Evaluator:
    """Runs a Trial's evaluation hook over the validation set.

    Args:
        trial: the user's Trial; it overrides one of the two evaluation hooks.
        context: its context.
        hooks: the callbacks' hooks.
        loader: what ``build_validation_data_loader`` returned.
        stream: the loader's batches on the device.
    """

    def __init__(
        self, trial: Trial, context: TrialContext, hooks: CallbackHooks, loader: Any, stream: BatchStream
    ) -> None:
        self._trial = trial
        self._context = context
        self._hooks = hooks
        self._loader = loader
        self._stream = stream
        self._by_batch = overrides(trial, "evaluate_batch")
        self._takes_batch_idx = takes_batch_idx(trial)

    def run(self, limit: int | None = None) -> dict[str, Any]:
        """Validate, with the callbacks' hooks.

        Args:
            limit: evaluate at most so many batches. Default: all.

        Returns:
            The reduced metrics by name.
        """
        for hook in self._hooks.validation_start:
            hook()
        self._context.reset_reducers()
        with evaluation_mode(self._context.models), torch.no_grad():
            metrics = self._evaluate_by_batch(limit) if self._by_batch else self._evaluate_at_once(self._loader)
        metrics = self._with_reducers(metrics)
        for hook in self._hooks.validation_end:
            hook(dict(metrics))  # a hook of the user's may change what it gets
        return metrics

    def try_first_batch(self) -> dict[str, Any]:
        """Evaluate the first batch alone, without callbacks, so that mistakes are found before training.

        Returns:
            The metrics that a validation will have.
        """
        self._context.reset_reducers()
        with evaluation_mode(self._context.models), buffers_kept(self._context.models), torch.no_grad():
            if self._by_batch:
                metrics = self._collect(1, NoDisplay()).result(self._trial.evaluation_reducer())
                self._stream.close()
            else:
                metrics = self._evaluate_at_once(_FirstBatch(self._loader))
        metrics = self._with_reducers(metrics)
        self._context.reset_reducers()
        return metrics

    def close(self) -> None:
        """End the loader's worker processes."""
        self._stream.close()

    def _evaluate_by_batch(self, limit: int | None) -> dict[str, Any]:
        for hook in self._hooks.validation_epoch_start:
            hook()
        collected = self._collect(limit, self._context.session.display)
        if self._hooks.validation_epoch_end:
            outputs = collected.outputs()
            for hook in self._hooks.validation_epoch_end:
                hook(outputs)
        return dict(collected.result(self._trial.evaluation_reducer()))

    def _evaluate_at_once(self, loader: Any) -> dict[str, Any]:
        return check_full_dataset(self._trial.evaluate_full_dataset(data_loader=loader), self._context.rules.metrics)

    def _collect(self, limit: int | None, display: Display) -> ValidationMetrics:
        collected = ValidationMetrics(self._context.rules.metrics)
        self._stream.start_epoch(0)
        total = self._stream.epoch_length
        display.validation_start(total if limit is None or total is None else min(limit, total))
        for batch_idx, batch in enumerate(itertools.islice(self._stream, limit)):
            if self._takes_batch_idx:
                metrics = self._trial.evaluate_batch(batch=batch, batch_idx=batch_idx)
            else:
                metrics = self._trial.evaluate_batch(batch=batch)  # type: ignore[call-arg]
            collected.add(metrics, checked_length(self._trial.get_batch_length(batch)))
            display.validation_step(batch_idx + 1)
        return collected

    def _with_reducers(self, metrics: dict[str, Any]) -> dict[str, Any]:
        reduced = self._context.reduce_metrics(for_training=False)
        if twice := sorted(metrics.keys() & reduced.keys()):
            raise MetricError(f"A reducer and the evaluation hook both give the metrics {twice}. Rename one of them.")
        return {**metrics, **reduced}


class _FirstBatch:
    """A loader cut after its first batch, everything else as it is."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.islice(iter(self._loader), 1)

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


@contextlib.contextmanager
def evaluation_mode(models: list[torch.nn.Module]) -> Iterator[None]:
    """Put models into evaluation mode, and every part of them back into its own mode afterwards.

    Args:
        models: the models.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def buffers_kept(models: list[torch.nn.Module]) -> Iterator[None]:
    """Put every buffer back afterwards, the object and its content: a forward pass may count or average in one.

    Args:
        models: the models.
    """
    modules = [module for model in models for module in model.modules()]
    kept = [(m, n, b, b.detach().clone()) for m in modules for n, b in m.named_buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, content in kept:
                setattr(module, name, buffer)
                buffer.copy_(content)
