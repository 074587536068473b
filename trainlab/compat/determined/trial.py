"""PyTorchTrial: a Trial in the one style that Determined has."""

from typing import Any

from trainlab.compat.determined.context import PyTorchTrialContext
from trainlab.compat.determined.loader import data_length
from trainlab.errors import TrialDefinitionError
from trainlab.training import Trial

__all__ = ["PyTorchTrial"]


class PyTorchTrial(Trial):
    """A model, its data and its steps; its ``__init__`` wraps models and optimizers itself.

    Args:
        context: what ``init`` gave.

    Attributes:
        context: the same.
    """

    context: PyTorchTrialContext

    # These are no hooks here: a Trial may use these names, and names like them, for methods of its own.
    def build_model(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: this class builds nothing by itself.

        Args:
            *args: not used.
            **kwargs: not used.

        Raises:
            TrialDefinitionError: always.
        """
        raise _no_hook("build_model")

    def build_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: this class builds nothing by itself.

        Args:
            *args: not used.
            **kwargs: not used.

        Raises:
            TrialDefinitionError: always.
        """
        raise _no_hook("build_optimizer")

    def build_lr_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: this class builds nothing by itself.

        Args:
            *args: not used.
            **kwargs: not used.

        Raises:
            TrialDefinitionError: always.
        """
        raise _no_hook("build_lr_scheduler")

    def __init__(self, context: PyTorchTrialContext) -> None:
        self.context = context

    def get_batch_length(self, batch: Any) -> int:
        """Count the records of a batch.

        Args:
            batch: a batch as ``train_batch`` gets it.

        Returns:
            ``data_length(batch)``.
        """
        return data_length(batch)


def _no_hook(name: str) -> TrialDefinitionError:
    return TrialDefinitionError(
        f"PyTorchTrial has no {name}. Make the object in __init__ and wrap it with the context, or derive your class "
        "from trainlab.Trial."
    )
