"""TorchWriter, as old as it is in Determined."""

import warnings
from pathlib import Path

from trainlab.recording import TorchWriter as RecordingWriter

__all__ = ["TorchWriter"]


class TorchWriter(RecordingWriter):
    """A TensorBoard writer of one's own; ``context.get_tensorboard_writer()`` is the one to use now.

    Args:
        log_dir: the folder of its files. Default: "tensorboard".
    """

    def __init__(self, log_dir: str | Path | None = None) -> None:
        warnings.warn(
            "TorchWriter is deprecated. Use context.get_tensorboard_writer(), which writes into the run's folder.",
            FutureWarning,
            stacklevel=2,
        )
        super().__init__(log_dir)
