"""Where Determined decides otherwise than trainlab: each decision is one method that overrides the core's."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainlab.checkpoint import Retention
from trainlab.data import DataLoader
from trainlab.errors import InvalidStateError, MetricError
from trainlab.metrics import Column, MetricRules, Reducer, Shares, Values, host_array, real_column
from trainlab.training import TrainingRules

__all__ = ["DeterminedMetricRules", "DeterminedRules"]

logger = logging.getLogger("trainlab.compat")


class DeterminedMetricRules(MetricRules):
    """Metrics as Determined takes them: of any shape, with gaps and text, averaged by batches.

    Numbers come as ``numpy.float64``, which is a ``float`` too, so that ``.item()`` works on them.
    """

    def check_training(self, name: str, value: Any) -> None:
        """Take anything.

        Args:
            name: the metric's name.
            value: what ``train_batch`` returned under it.
        """

    def average(self, name: str, values: Values) -> float | None:
        """Average all elements of all batches, None left out.

        Args:
            name: the metric's name.
            values: host values, one a batch.

        Returns:
            The mean; None for what has none, such as text.
        """
        if not isinstance(values, np.ndarray):
            values = [value for value in values if value is not None]
        try:
            mean = super().average(name, values)
        except MetricError:
            return None
        return None if mean is None else np.float64(mean)

    def check_validation(self, name: str, value: Any) -> None:
        """Take numbers of any shape; what is none is found when the batches are reduced.

        Args:
            name: the metric's name.
            value: what ``evaluate_batch`` returned under it.
        """

    def weight(self, records: int) -> float:
        """Weigh every batch the same, and every rank's part of a training batch.

        Args:
            records: how many records the batch, or the part, had.

        Returns:
            1, so that the average is the mean over the batches, or the ranks.
        """
        return 1.0

    def to_send(self, name: str, values: Values) -> Column | None:
        """Prepare the values of a training window for the other ranks.

        Args:
            name: the metric's name.
            values: host values, one a batch.

        Returns:
            The values in float64, with None where it was None; None for all that have no mean, such as text.
        """
        try:
            numbers = real_column(name, [value for value in values if value is not None])
        except MetricError:
            return None
        if len(numbers) == len(values):
            return numbers
        rest = iter(numbers)
        return [None if value is None else next(rest) for value in values]

    def over_ranks(self, name: str, columns: Sequence[Column | None], shares: Shares) -> Values:
        """Average the parts of each training batch over the ranks, None left out.

        Args:
            name: the metric's name.
            columns: what ``to_send`` gave on each rank.
            shares: each rank's share in each batch, of shape ``(ranks, batches)``; 0 for one that takes no part.

        Returns:
            Host values, one a batch: the mean, of the values' shape; all elements of all ranks, of shape
            ``(elements,)``, where the shapes differ; None where there is nothing.
        """
        try:
            return super().over_ranks(name, columns, shares)
        except MetricError:
            parts = [column for column in columns if column is not None]
        if len(parts) < len(columns):
            return [None] * shares.shape[1]
        return [
            _mean([part[i] for part, share in zip(parts, shares, strict=True) if share[i] and part[i] is not None])
            for i in range(shares.shape[1])
        ]

    def reduce(self, name: str, values: Values, reducer: Reducer, weights: Sequence[float]) -> float:
        """Reduce as the core does.

        Args:
            name: the metric's name.
            values: host values, one a batch, all of one shape.
            reducer: how to reduce them.
            weights: one for each batch.

        Returns:
            The number.

        Raises:
            MetricError: a value holds anything but real numbers, or the shapes differ.
        """
        number: float = np.float64(super().reduce(name, values, reducer, weights))
        return number

    def full_dataset(self, name: str, value: Any) -> Any:
        """Take anything but None.

        Args:
            name: the metric's name.
            value: what ``evaluate_full_dataset`` returned under it.

        Returns:
            The value; a tensor as an array.

        Raises:
            MetricError: it is None.
        """
        if value is None:
            raise MetricError(
                f"The validation metric {name!r} has no value. Received: None. Return a number from "
                "evaluate_full_dataset, or leave the name out."
            )
        return host_array(value) if isinstance(value, torch.Tensor) else value

    def reduced(self, name: str, value: Any) -> Any:
        """Take anything that a wrapped reducer gave.

        Args:
            name: the metric's name.
            value: the reducer's result under it.

        Returns:
            The value; a tensor as an array.
        """
        return host_array(value) if isinstance(value, torch.Tensor) else value


def _mean(values: list[Any]) -> npt.NDArray[np.float64] | None:
    if len({value.shape for value in values}) == 1:
        mean: npt.NDArray[np.float64] = np.mean(np.stack(values), axis=0)
        return mean
    return np.concatenate([value.ravel() for value in values]) if values else None


class DeterminedRules(TrainingRules):
    """How Determined trains, where trainlab does otherwise."""

    metrics = DeterminedMetricRules()
    cuts_epochs_by_len = True
    tries_validation = False
    tries_checkpoint = False
    retention = Retention(keep_last=None)
    writes_beside_training = False

    def checkpoint_policy(self, policy: str, metric: str | None) -> str:
        """Turn "best" into "all" where no metric says what is best, with a warning.

        Args:
            policy: "best", "all" or "none", as given to ``fit``.
            metric: the metric named to ``fit``, or None.

        Returns:
            The policy in force.
        """
        if policy != "best" or metric is not None:
            return policy
        logger.warning(
            "checkpoint_policy='best' without a metric: a checkpoint is made after every validation, as with 'all'. "
            "To keep the best, name the metric: fit(metric='loss', smaller_is_better=True, ...)."
        )
        return "all"

    def check_loader(self, loader: Any, *, checks_enabled: bool) -> None:
        """Refuse a loader whose order cannot be reproduced, unless that was asked for.

        Args:
            loader: what a build hook returned.
            checks_enabled: False after ``experimental.disable_dataset_reproducibility_checks()``.

        Raises:
            InvalidStateError: it is no ``DataLoader`` of this module or of trainlab.
        """
        if checks_enabled and not isinstance(loader, DataLoader):
            kind = type(loader)
            raise InvalidStateError(
                f"The order of this data loader could not be reproduced after a resume. Received: "
                f"{kind.__module__}.{kind.__qualname__}. Return a pytorch.DataLoader, which takes the same arguments; "
                "or you can disable this check by calling "
                "context.experimental.disable_dataset_reproducibility_checks() in the Trial's __init__."
            )

    def configure_apex_amp(self, models: Any, optimizers: Any, enabled: bool) -> tuple[Any, Any]:
        """Give models and optimizers back untouched where apex is switched off.

        Args:
            models: one model or a list.
            optimizers: one optimizer or a list.
            enabled: as given by the caller.

        Returns:
            The same models and optimizers.

        Raises:
            InvalidStateError: apex is switched on.
        """
        return super().configure_apex_amp(models, optimizers, enabled) if enabled else (models, optimizers)
