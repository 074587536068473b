"""Judge: which validation is the best so far."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from trainlab.errors import MetricError
from trainlab.schedule import Progress

__all__ = ["Judge", "metric_value"]

logger = logging.getLogger("trainlab.training")


class Judge:
    """Judges validations by one metric.

    Args:
        metric: the metric's name; None if no validation is better than another.
        smaller_is_better: whether a smaller value is better.
    """

    def __init__(self, metric: str | None, smaller_is_better: bool) -> None:
        self._metric = metric
        self._smaller_is_better = smaller_is_better

    def check(self, metrics: Mapping[str, Any]) -> None:
        """Find out whether a validation can be judged.

        Args:
            metrics: the validation's metrics by name.

        Raises:
            MetricError: the metric is not among them, or is not one number.
        """
        if self._metric is not None:
            metric_value(metrics, self._metric, "fit was told to judge by")

    def note(self, metrics: Mapping[str, Any], progress: Progress) -> bool:
        """Tell whether a validation is strictly better than all before, and if so write that into the progress.

        Args:
            metrics: the validation's metrics by name.
            progress: the run's counters, at the validation's batch. Which checkpoint holds the best is written there
                only when one is made.

        Returns:
            Whether it is the best so far; never without a metric, and never for NaN.

        Raises:
            MetricError: as for ``check``.
        """
        if self._metric is None:
            return False
        value, judged_by = (
            metric_value(metrics, self._metric, "fit was told to judge by"),
            f"{'min' if self._smaller_is_better else 'max'} {self._metric}",
        )
        if progress.best_judged_by not in (None, judged_by):
            logger.warning(
                "The best so far was judged by %s; from now on %s counts.", progress.best_judged_by, judged_by
            )
            progress.best_metric = progress.best_metric_batch = progress.best_checkpoint = None
        progress.best_judged_by = judged_by
        best = progress.best_metric
        if math.isnan(value):
            return False
        if best is not None and not (value < best if self._smaller_is_better else value > best):
            return False
        progress.best_metric, progress.best_metric_batch = value, progress.batches_trained
        progress.best_checkpoint = None
        return True


def metric_value(metrics: Mapping[str, Any], metric: str, why: str) -> float:
    """Look up the number that a validation is judged by.

    Args:
        metrics: the validation's metrics by name.
        metric: its name.
        why: who asks for it, for errors: "the metric 'loss', which ...".

    Returns:
        The number.

    Raises:
        MetricError: the metric is not among them, or is not one number.
    """
    if metric not in metrics:
        raise MetricError(
            f"The validation gives no metric {metric!r}, which {why}. "
            f"It gives: {', '.join(map(repr, sorted(metrics))) or 'none'}."
        )
    try:
        return float(metrics[metric])
    except (TypeError, ValueError):
        raise MetricError(
            f"The metric {metric!r}, which {why}, must be one number. Received: {metrics[metric]!r}."
        ) from None
