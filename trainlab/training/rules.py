"""The few decisions that a port of another framework's code may want taken differently."""

from typing import Any

from trainlab.checkpoint import Retention
from trainlab.data import DataLoader
from trainlab.errors import InvalidStateError
from trainlab.metrics import MetricRules

__all__ = ["TrainingRules"]


class TrainingRules:
    """How trainlab decides where frameworks differ; a subclass of TrialContext may name other rules.

    Attributes:
        metrics: what a metric may be, and how the values of batches become one number.
        cuts_epochs_by_len: whether an epoch ends after ``len(loader)`` batches, with one
            iterator going on over the epochs, rather than when the loader ends.
        tries_validation: whether one validation batch is tried before training.
        tries_checkpoint: whether a checkpoint is laid out, and not written, after the first optimizer step.
        retention: which checkpoints are kept if ``fit`` is not told.
        writes_beside_training: whether checkpoints may be written while training goes on.
    """

    metrics: MetricRules = MetricRules()
    cuts_epochs_by_len: bool = False
    tries_validation: bool = True
    tries_checkpoint: bool = True
    retention: Retention = Retention()
    writes_beside_training: bool = True

    def checkpoint_policy(self, policy: str, metric: str | None) -> str:
        """Return the policy in force.

        Args:
            policy: "best", "all" or "none", as given to ``fit``.
            metric: the metric named to ``fit``, or None.
        """
        return policy

    def check_loader(self, loader: Any, *, checks_enabled: bool) -> None:
        """Refuse a loader that may not be trained from; trainlab itself takes any.

        Args:
            loader: what a build hook returned.
            checks_enabled: False after ``experimental.disable_dataset_reproducibility_checks()``.
        """

    def warns_of_foreign_loader(self, loader: Any, *, checks_enabled: bool) -> bool:
        """Tell whether a loader that cannot resume exactly is worth a warning.

        Args:
            loader: what a build hook returned.
            checks_enabled: False after ``experimental.disable_dataset_reproducibility_checks()``.
        """
        return checks_enabled and not isinstance(loader, DataLoader)

    def configure_apex_amp(self, models: Any, optimizers: Any, enabled: bool) -> tuple[Any, Any]:
        """Answer a call for NVIDIA's apex, which is no longer maintained.

        Args:
            models: one model or a list.
            optimizers: one optimizer or a list.
            enabled: as given by the caller.

        Returns:
            The models and the optimizers, from rules that let such a call pass.

        Raises:
            InvalidStateError: always.
        """
        raise InvalidStateError(
            "apex is no longer maintained, and trainlab does not use it. "
            "Give trainlab.init(precision='bf16') or precision='fp16' instead of configure_apex_amp."
        )
