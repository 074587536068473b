"""What a run that is a trial of a search takes from it, and tells it, without a line in the Trial."""

import logging
from collections.abc import Mapping
from typing import Any

from trainlab.runs.current import current_run
from trainlab.schedule import Epoch, Plan, Progress, TrainUnit
from trainlab.training.context import TrialContext
from trainlab.training.judging import metric_value

__all__ = ["Searched", "length_of_search"]

logger = logging.getLogger("trainlab.training")


class Searched:
    """Tells the search of this run's validations; on the chief alone, which is asked to prune; nothing without one.

    Args:
        context: the run's context.
        plan: how long is trained.
        is_try: whether the run is only tried.

    Attributes:
        is_pruned: whether the search ends the run here.
    """

    def __init__(self, context: TrialContext, plan: Plan, *, is_try: bool) -> None:
        run = current_run()
        self._search = None if run is None or is_try or not context.distributed.is_chief else run.searched
        self._context, self._plan = context, plan
        self.is_pruned = False

    def check(self, metrics: Mapping[str, Any]) -> None:
        """Find out whether a validation has what the search looks at.

        Args:
            metrics: the validation's metrics by name.

        Raises:
            MetricError: the metric is not one number; or it is not among them, and the search prunes by it. Else it may
                be one of what the main function returns.
        """
        if self._search is not None and self._value(metrics) is None:
            logger.info("No validation gives %r: the search takes it from what main returns.", self._search.metric)

    def note(self, metrics: Mapping[str, Any], progress: Progress) -> None:
        """Report a validation, and ask for a stop if the search prunes.

        Args:
            metrics: the validation's metrics by name.
            progress: the run's counters. Steps are epochs where the length is in epochs, so that batch sizes may
                differ.

        Raises:
            MetricError: as for ``check``.
        """
        value = self._value(metrics)
        if self._search is None or value is None:
            return
        in_epochs = isinstance(self._plan.max_length, Epoch)
        if self._search.report(value, progress.epochs_trained if in_epochs else progress.batches_trained):
            self.is_pruned = True
            self._context.ask_to_stop()

    def _value(self, metrics: Mapping[str, Any]) -> float | None:
        """The search's metric; None without a search, or where the validation has none, and none is needed."""
        if self._search is None or (self._search.metric not in metrics and not self._search.prunes):
            return None
        return metric_value(metrics, self._search.metric, "the search looks at")


def length_of_search(context: TrialContext) -> TrainUnit | None:
    """How long to train where ``fit`` is not told; the chief's search says it for all ranks.

    Args:
        context: the run's context.

    Returns:
        The length; None if there is no search, or it does not say.
    """
    run = current_run()
    searched = None if run is None else run.searched
    told: TrainUnit | None = context.distributed.broadcast(None if searched is None else searched.max_length)
    return told
