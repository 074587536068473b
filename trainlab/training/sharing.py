"""SharedStep: one batch of training on one of several ranks, which has a piece of the global batch."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from trainlab.data import BatchStream
from trainlab.distributed import preserved_rng
from trainlab.errors import DataError
from trainlab.metrics import MetricStates, RunningMetrics
from trainlab.training.trial import checked_length, overrides

if TYPE_CHECKING:
    from trainlab.training.context import TrialContext
    from trainlab.training.trial import Trial

__all__ = ["SharedStep", "buffers_kept", "uncounted", "weighted"]


class SharedStep:
    """Trains this rank's piece of a global batch, with the weight that it has among the ranks' pieces.

    Gradients are averaged over the ranks. So that the average is that of the records, each rank's loss is multiplied
    by its records times the ranks over the records of the global batch. A rank without a record trains one all the
    same, at weight 0, for the others wait for its gradients.

    Args:
        trial: the user's Trial.
        context: its context.
        stream: the training batches.
        window: the training metrics, which are told of each batch's weight.
    """

    def __init__(self, trial: "Trial", context: "TrialContext", stream: BatchStream, window: RunningMetrics) -> None:
        self._train_batch = trial.train_batch
        self._get_batch_length = trial.get_batch_length
        self._count = trial.get_batch_length if overrides(trial, "get_batch_length") else None
        self._context = context
        self._stream = stream
        self._window = window
        self._ranks = context.distributed.data_size
        self.counted_here = 0

    def __call__(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        """Train one batch.

        Args:
            batch: this rank's piece.
            epoch_idx: as for ``Trial.train_batch``.
            batch_idx: as for ``Trial.train_batch``.

        Returns:
            What ``train_batch`` returned.
        """
        context = self._context
        counts = self._ranks == 1 or self._weigh()
        ends_group = (batch_idx + 1) % context.aggregation_frequency == 0
        context.parallel.begin_batch(ends_group or batch_idx + 1 == context.exchanges_at)
        try:
            if counts:
                return self._train_batch(batch=batch, epoch_idx=epoch_idx, batch_idx=batch_idx)
            with uncounted(context):
                return self._train_batch(batch=batch, epoch_idx=epoch_idx, batch_idx=batch_idx)
        except (RuntimeError, ValueError) as error:
            told = _told_of_norm(error) or context.parallel.translate(error)
            if told is error:
                raise
            raise told from error

    def _weigh(self) -> int:
        """Set the weight of this rank's piece, and give its records."""
        local, of_all = self._stream.local_records, self._stream.global_records
        share = local * self._ranks
        self._context.loss_weight = 1.0 if share == of_all else share / of_all
        self._window.note_records(local)
        return local

    def count_records(self, batch: Any) -> int:
        """Count the records of the global batch; those that a hook of the user's counts are added up at the report.

        Args:
            batch: this rank's piece of it.

        Returns:
            Those of all ranks that are known by now.
        """
        if self._ranks == 1:
            return self._get_batch_length(batch)
        if self._count is None:
            return self._stream.global_records
        if self._stream.local_records:
            self.counted_here += checked_length(self._count(batch))
        return 0

    def take_count(self) -> int:
        """Add up what a hook of the user's has counted on all ranks since the last report.

        Returns:
            The records that are not in the progress yet.
        """
        if self._count is None or self._ranks == 1:
            return 0
        counted, self.counted_here = self.counted_here, 0
        return sum(self._context.distributed.allgather(counted))


def _told_of_norm(error: Exception) -> DataError | None:
    if "Expected more than 1 value per channel" not in str(error):
        return None
    return DataError(
        "A BatchNorm layer cannot train on a single record, and this rank's piece of the global batch has no more. Set "
        "drop_last=True in the loader, choose a batch size whose last batch gives each rank two records, or use a "
        f"layer that does not look at the batch, such as GroupNorm. torch says: {error}"
    )


def weighted(loss: torch.Tensor, weight: float) -> torch.Tensor:
    """Give a rank's loss the weight of its piece of the global batch.

    Args:
        loss: the loss, of any shape.
        weight: 0 if the piece does not count; then nothing of it may reach the gradients, whatever it is.

    Returns:
        The product.
    """
    if weight == 0.0:
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0) * 0.0
    return loss * weight


@contextlib.contextmanager
def uncounted(context: "TrialContext") -> Iterator[None]:
    """Let a batch be trained or evaluated, because other ranks need its exchanges, such that it does not count.

    Args:
        context: the context, whose generators, buffers and metrics are put back afterwards.
    """
    with contextlib.ExitStack() as kept:
        kept.enter_context(preserved_rng())
        kept.enter_context(buffers_kept(context.models))
        kept.enter_context(context.reducers.preserved())
        for one in context.stateful.values():
            if isinstance(one, MetricStates):
                kept.enter_context(one.preserved())
        yield


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
