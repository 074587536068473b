"""SupervisedTrial: a ready Trial made of a model, data sets, a loss and an optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from trainlab.data import DataLoader
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.training.context import TrialContext
from trainlab.training.trial import Trial

__all__ = ["SupervisedTrial"]


class SupervisedTrial(Trial):
    """Trains a model on batches of (input, target), with nothing to write.

    Args:
        context: what ``trainlab.init`` gave.
        model: maps a batch of inputs to outputs.
        training_set: a data set of (input, target).
        loss: a function of (output, target) that gives a 0-dimensional tensor, the mean over the batch.
        optimizer: a function of the model (on its device) that gives the optimizer.
        batch_size: records in a batch, over all ranks.
        validation_set: a data set of (input, target). Default: nothing is validated.
        metrics: functions of (output, target) by name, each a mean over the batch, given for validation
            beside the loss. Default none.
        lr_scheduler: a function of the optimizer that gives what ``build_lr_scheduler`` may. Default none.
        collate_fn: as in ``DataLoader``. Default: torch's.
        num_workers: worker processes of each loader. Default 0.
        clip_norm: the largest norm of all gradients together. Default: not clipped.

    Raises:
        InvalidTypeError: a part is not what it should be.
        InvalidValueError: metrics without a validation set.

    Source: ``ArtefactsConfig`` of DDPW.
    """

    def __init__(
        self,
        context: TrialContext,
        *,
        model: nn.Module,
        training_set: Any,
        loss: Callable[[Any, Any], torch.Tensor],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        batch_size: int,
        validation_set: Any = None,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        lr_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        clip_norm: float | None = None,
    ) -> None:
        for name, part in (("loss", loss), ("optimizer", optimizer), *(metrics or {}).items()):
            if not callable(part) or isinstance(part, torch.optim.Optimizer):
                raise InvalidTypeError(f"{name} must be a function. Received: {part!r}.")
        if metrics and validation_set is None:
            raise InvalidValueError(
                f"metrics need a validation_set. Received: metrics {sorted(metrics)} and no validation_set."
            )
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self._sets = {"training": training_set, "validation": validation_set}
        self._loader_options: dict[str, Any] = {
            "batch_size": batch_size,
            "collate_fn": collate_fn,
            "num_workers": num_workers,
        }
        self._loss = loss
        self._metrics = dict(metrics or {})
        self._clip_norm = clip_norm
        super().__init__(context)

    def build_model(self) -> nn.Module:
        """Return the given model."""
        model: nn.Module = self._parts["model"]
        return model

    def build_optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return what the given function makes of the model.

        Args:
            model: the wrapped model.
        """
        optimizer: torch.optim.Optimizer = self._parts["optimizer"](model)
        return optimizer

    def build_lr_scheduler(self, optimizer: Any) -> Any:
        """Return what the given function makes of the optimizer, or None.

        Args:
            optimizer: the wrapped optimizer.

        Raises:
            InvalidValueError: it is a ReduceLROnPlateau, which needs a metric.
        """
        make = self._parts["lr_scheduler"]
        scheduler = None if make is None else make(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise InvalidValueError(
                "SupervisedTrial cannot step a ReduceLROnPlateau, which needs a metric. Subclass "
                "it, return the scheduler "
                "from build_lr_scheduler, and step it in a callback's on_validation_end."
            )
        return scheduler

    def build_training_data_loader(self) -> DataLoader:
        """Return a shuffled loader of the training set."""
        return DataLoader(self._sets["training"], shuffle=_is_map_style(self._sets["training"]), **self._loader_options)

    def build_validation_data_loader(self) -> DataLoader | None:
        """Return a loader of the validation set, in order; None without one."""
        if self._sets["validation"] is None:
            return None
        return DataLoader(self._sets["validation"], **self._loader_options)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        """Train one batch of (input, target).

        Args:
            batch: the batch.
            epoch_idx: index of the epoch.
            batch_idx: index of the batch.

        Returns:
            The loss.
        """
        inputs, target = batch
        loss = self._loss(self.model(inputs), target)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer, clip_grads=None if self._clip_norm is None else self._clip)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Evaluate one batch of (input, target).

        Args:
            batch: the batch.
            batch_idx: index of the batch.

        Returns:
            The loss and the given metrics.
        """
        inputs, target = batch
        output = self.model(inputs)
        return {"loss": self._loss(output, target)} | {n: metric(output, target) for n, metric in self._metrics.items()}

    def _clip(self, parameters: list[torch.Tensor]) -> None:
        assert self._clip_norm is not None  # train_batch passes this function only then
        nn.utils.clip_grad_norm_(parameters, self._clip_norm)


def _is_map_style(data_set: Any) -> bool:
    return not isinstance(data_set, torch.utils.data.IterableDataset)
