"""Session: the open files of a run, held from ``trainlab.init`` to the context's end."""

import atexit
import logging
from pathlib import Path

from trainlab.checkpoint import latest_checkpoint, remove_rubbish
from trainlab.errors import InvalidStateError
from trainlab.experiments import RunFolder
from trainlab.recording import JsonlBackend, Recorder, TensorBoardBackend, make_display

__all__ = ["Session"]

logger = logging.getLogger("trainlab.training")


class Session:
    """A run's folder, its recorder and its display, opened together and closed together.

    Args:
        folder: the run's folder, locked by this process; None for a context that only loads a Trial.
        progress: whether to show a bar or lines.
        enable_tensorboard_logging: whether trainlab writes its own TensorBoard series.

    Attributes:
        latest_checkpoint: the newest valid checkpoint, or None.
        display: what a person sees.
        recorder: what is written.
        ended_by: what ended the last fit, if it did not end well.
    """

    def __init__(self, folder: RunFolder | None, *, progress: bool, enable_tensorboard_logging: bool) -> None:
        self._folder = folder
        self.latest_checkpoint: Path | None = None
        self.display = make_display(progress)
        self.ended_by: BaseException | None = None
        self._closed = folder is None
        if folder is None:
            return
        remove_rubbish(folder.checkpoints)
        self.latest_checkpoint = latest_checkpoint(folder.checkpoints)
        self._tensorboard = TensorBoardBackend(folder.tensorboard)
        self._tensorboard.enabled = enable_tensorboard_logging
        self.recorder = Recorder(folder.path, [JsonlBackend(folder.metrics_file), self._tensorboard])
        folder.attach_log()
        atexit.register(self.close)

    @property
    def folder(self) -> RunFolder:
        """The run's folder.

        Raises:
            InvalidStateError: there is none.
        """
        if self._folder is None:
            raise InvalidStateError(
                "This context has no run folder: it was made to load a Trial. Make one with trainlab.init() to train."
            )
        return self._folder

    @property
    def tensorboard(self) -> TensorBoardBackend:
        """The run's TensorBoard files.

        Raises:
            InvalidStateError: there is no run folder.
        """
        _ = self.folder
        return self._tensorboard

    @property
    def is_open(self) -> bool:
        """Whether the run can still be trained: it has a folder and was not closed."""
        return not self._closed

    def close(self, error: BaseException | None = None) -> None:
        """Close the files and the lock, and write down how the run ended.

        Args:
            error: what ended the run, if it did not end well.
        """
        if self._closed:
            return
        self._closed = True
        error = self.ended_by if error is None else error
        atexit.unregister(self.close)
        try:
            self.display.close()
            self.recorder.close()
            self.folder.write_record(
                status=_status(error), error=None if error is None else f"{type(error).__name__}: {error}"
            )
        finally:
            self.folder.close()


def _status(error: BaseException | None) -> str:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    return "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
