"""Evaluator: one validation, whole or of a single batch."""

import contextlib
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import torch

from trainlab.data import BatchStream
from trainlab.errors import MetricError
from trainlab.metrics import ValidationMetrics, check_full_dataset
from trainlab.recording import Display, NoDisplay
from trainlab.training.callback import CallbackHooks
from trainlab.training.context import TrialContext
from trainlab.training.sharing import buffers_kept, uncounted
from trainlab.training.trial import Trial, checked_length, overrides, takes_batch_idx

__all__ = ["Evaluator"]

_NONE: Any = object()


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
        self.loader = loader
        self.stream = stream
        self._by_batch = overrides(trial, "evaluate_batch")
        self._distributed = context.distributed
        # Where a forward pass is an exchange among the ranks, each has to make as many of them.
        self._in_step = context.parallel.collective_forward
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
        with self._evaluation():
            metrics = self._evaluate_by_batch(limit) if self._by_batch else self._evaluate_at_once(self.loader)
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
        with self._evaluation(), buffers_kept(self._context.models):
            if self._by_batch:
                metrics = self._collect(1, NoDisplay()).result(
                    self._trial.evaluation_reducer(), self._distributed.exchange
                )
                self.stream.close()
            else:
                metrics = self._evaluate_at_once(_FirstBatch(self.loader))
        metrics = self._with_reducers(metrics)
        self._context.reset_reducers()
        return metrics

    def close(self) -> None:
        """End the loader's worker processes."""
        self.stream.close()

    def _evaluate_by_batch(self, limit: int | None) -> dict[str, Any]:
        for hook in self._hooks.validation_epoch_start:
            hook()
        collected = self._collect(limit, self._context.session.display)
        if self._hooks.validation_epoch_end:
            outputs = collected.outputs()
            for hook in self._hooks.validation_epoch_end:
                hook(outputs)
        return dict(collected.result(self._trial.evaluation_reducer(), self._distributed.exchange))

    def _evaluate_at_once(self, loader: Any) -> dict[str, Any]:
        """Evaluate on the chief, while the others wait as long as it lives; where no rank can do it alone, on all."""
        if self._distributed.size == 1:
            return self._evaluated_here(loader)
        if self._in_step:
            # What the chief's reducers are given counts, as where it evaluates alone.
            with contextlib.nullcontext() if self._distributed.is_chief else uncounted(self._context):
                metrics = self._evaluated_here(loader)
            return self._distributed.broadcast(metrics)
        here = self._evaluated_here(loader) if self._distributed.is_chief else None
        # Not an exchange with a time limit: the chief may take as long as it likes, as long as it lives.
        told = self._context.channel("validation").broadcast(None if here is None else pickle.dumps(here))
        return dict(pickle.loads(told))

    def _evaluated_here(self, loader: Any) -> dict[str, Any]:
        return check_full_dataset(self._trial.evaluate_full_dataset(data_loader=loader), self._context.rules.metrics)

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[None]:
        with self._context.parallel.evaluating(), evaluation_mode(self._context.models), torch.no_grad():
            yield

    def _collect(self, limit: int | None, display: Display) -> ValidationMetrics:
        collected = ValidationMetrics(self._context.rules.metrics)
        self.stream.start_epoch(0)
        total = self.stream.epoch_length
        display.validation_start(total if limit is None or total is None else min(limit, total))
        shared = self._distributed.data_size > 1
        for done, batch in enumerate(self._in_rounds(itertools.islice(self.stream, limit))):
            if batch is _NONE:
                with uncounted(self._context):
                    self._evaluated(self.stream.stand_in(), 0)
                continue
            number = self.stream.batch_number if shared else done
            metrics = self._evaluated(batch, number)
            collected.add(metrics, checked_length(self._trial.get_batch_length(batch)), number)
            display.validation_step(done + 1)
        return collected

    def _in_rounds(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Give the batches; where a forward pass needs all ranks, ``_NONE`` for each that only others still have."""
        if not self._in_step:
            yield from batches
            return
        exchange = self._distributed.exchange
        while True:
            batch = next(batches, _NONE)
            (some_rank_has_one,) = exchange.maximum([int(batch is not _NONE)])
            if not some_rank_has_one:
                return
            yield batch

    def _evaluated(self, batch: Any, batch_idx: int) -> Any:
        if self._takes_batch_idx:
            return self._trial.evaluate_batch(batch=batch, batch_idx=batch_idx)
        return self._trial.evaluate_batch(batch=batch)  # type: ignore[call-arg]

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
