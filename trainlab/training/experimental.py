"""ExperimentalContext: switches that may go away."""

from typing import TYPE_CHECKING

from trainlab.errors import InvalidStateError
from trainlab.precision import Precision

if TYPE_CHECKING:
    from trainlab.training.context import TrialContext

__all__ = ["ExperimentalContext"]


class ExperimentalContext:
    """Switches that may go away; reached as ``context.experimental``.

    Args:
        context: the context that they act on.
    """

    def __init__(self, context: "TrialContext") -> None:
        self._context = context

    def use_amp(self) -> None:
        """Train in half precision with a gradient scaler: the same as ``trainlab.init(precision="fp16")``.

        Raises:
            InvalidStateError: it comes after ``wrap_model``, or together with ``wrap_scaler``.
        """
        context = self._context
        if context.models:
            raise InvalidStateError("use_amp must be called before wrap_model.")
        if context.scaler is not None:
            raise InvalidStateError("use_amp cannot be used together with a gradient scaler that is in use already.")
        context.precision = Precision("fp16", context.device)
        context.set_scaling()

    def disable_dataset_reproducibility_checks(self) -> None:
        """Take any data loader without a warning; what it cannot do (exact resume) stays so."""
        self._context.checks_loaders = False

    def disable_auto_to_device(self) -> None:
        """Hand batches to the Trial as they come, without moving them to the device."""
        self._context.moves_batches = False
