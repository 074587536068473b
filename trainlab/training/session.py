"""Session: the open files of a run, held from ``trainlab.init`` to the context's end."""

import atexit
import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.checkpoint import latest_checkpoint, remove_rubbish
from trainlab.distributed import DistributedContext
from trainlab.distributed.failure import is_consequence
from trainlab.errors import InvalidStateError, RunFolderError, TrainlabError
from trainlab.recording import (
    Backend,
    JsonlBackend,
    LineDisplay,
    NoDisplay,
    Series,
    TensorBoardBackend,
    make_display,
)
from trainlab.runs import FolderLock, RankOutput, RunFolder, take_lock
from trainlab.runs.ending import status_of, told_error
from trainlab.runs.plain_numbers import plain_numbers
from trainlab.runs.shown_warnings import ShownWarnings
from trainlab.schedule import Progress
from trainlab.storage import Store, open_store
from trainlab.training.requeue import requeue
from trainlab.training.signals import EarlySignals

__all__ = ["Session"]

logger = logging.getLogger("trainlab.training")


class Session:
    """A run's folder, its series and its display, opened together and closed together.

    Of several ranks the chief has them all; the others have a log, and nothing that writes or shows anything else.

    Args:
        folder: the run's folder, locked by the chief; None for a context that only loads a Trial.
        distributed: who this process is among the run's processes. Default: alone.
        progress: whether to show a bar or lines.
        enable_tensorboard_logging: whether trainlab writes its own TensorBoard series.
        checkpoint_storage: where the checkpoints are; None for the folder's own place.
        storage_options: for a place that is a URL, what its file system asks for.
        signals: what notes the signals that come while no ``fit`` trains; closed with the rest.

    Attributes:
        checkpoints: the store of the checkpoints.
        latest_checkpoint: the newest valid checkpoint, or None.
        last_checkpoint: the one that the last fit went on from or made, or None.
        display: what a person sees.
        series: what is written.
        ended_by: what ended the last fit, if it did not end well.
        progress: the counters of the run, once a context has them.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        distributed: DistributedContext | None = None,
        progress: bool,
        enable_tensorboard_logging: bool,
        checkpoint_storage: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        signals: EarlySignals | None = None,
    ) -> None:
        self._folder = folder
        self._signals = signals
        self.storage_options = storage_options
        self.latest_checkpoint: Path | str | None = None
        self.last_checkpoint: Path | str | None = None
        self._distributed = DistributedContext() if distributed is None else distributed
        self.is_chief = self._distributed.is_chief
        self.display = make_display(progress) if self.is_chief else NoDisplay()
        self.ended_by: BaseException | None = None
        self.progress: Progress | None = None
        self._closed = folder is None
        self._pid = os.getpid()
        if folder is None:
            return
        place = folder.checkpoints_place if checkpoint_storage is None else checkpoint_storage
        self.checkpoints = open_store(place, storage_options if "://" in os.fspath(place) else None)
        self._storage_lock: FolderLock | None = None
        self.latest_checkpoint = self._distributed.on_chief(self._take_storage)
        self._tensorboard = TensorBoardBackend(folder.tensorboard)
        self._tensorboard.enabled = enable_tensorboard_logging
        backends: list[Backend] = [JsonlBackend(folder.metrics_file), self._tensorboard] if self.is_chief else []
        self.series = Series(folder.path, backends)
        folder.attach_log()
        self._output = RankOutput.open(folder.path, self._distributed.rank, folder.masking)
        shown = LineDisplay() if self.is_chief and not progress else self.display
        self._warnings = ShownWarnings(shown.say)
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
    def writer(self) -> Any:
        """The run's ``SummaryWriter``; one that writes nothing without a run, and on the other ranks than the chief."""
        return self._tensorboard.writer if self._folder is not None and self.is_chief else _NoWriter()

    @property
    def is_open(self) -> bool:
        """Whether the run can still be trained: it has a folder and was not closed."""
        return not self._closed

    def secure_series(self) -> None:
        """Bring what was recorded so far to the disk, or to the run's store: a checkpoint must not be ahead of it.

        Called beside the training; the series were flushed when the checkpoint was taken.

        Raises:
            OSError: it cannot be done.
        """
        for path in self.series.files():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                os.fsync(file.fileno())
        self.folder.push()

    def _take_storage(self) -> Path | str | None:
        """Lock the folder of checkpoints, tidy it up, and find the newest that is whole."""
        self._storage_lock = _lock_of(self.checkpoints, self.folder)
        try:
            remove_rubbish(self.checkpoints)
            return latest_checkpoint(self.checkpoints)
        except BaseException:
            if self._storage_lock is not None:
                self._storage_lock.release()
            raise

    def note_failure(self, told: str) -> None:
        """Write down at once that the run has failed: this process may not come to its end in order.

        Args:
            told: what went wrong.
        """
        try:
            self.folder.note_failure(told)
        except (OSError, TrainlabError) as error:  # what went wrong is told elsewhere, too
            logger.info("The run's record could not be written: %s", error)

    def note_fit(self, stop_reason: str) -> None:
        """Write down how far a fit that has come to its end has brought the run.

        Args:
            stop_reason: why it has ended.
        """
        try:
            self.folder.write_record(**self._progress_made(), stop_reason=stop_reason)
        except (OSError, TrainlabError) as error:  # it is tried again when the run is closed
            logger.warning("The run's record could not be written: %s", error)

    def _progress_made(self) -> dict[str, Any]:
        """What the record says of the training; nothing where nothing was trained."""
        progress = self.progress
        if progress is None or progress.batches_trained == 0:
            return {}
        return {
            "batches_trained": progress.batches_trained,
            "epochs_trained": progress.epochs_trained,
            "metrics": plain_numbers(progress.validation_metrics),
            "best_metric": progress.best_metric,
        }

    def close(self, error: BaseException | None = None) -> None:
        """Close the files and the lock, and write down how the run ended.

        Args:
            error: what ended the run, if it did not end well.
        """
        if self._closed or os.getpid() != self._pid:
            return  # a forked child that ends has nothing to say about its parent's run
        self._closed = True
        error = self.ended_by if error is None else error
        is_requeued = self._requeued(error)
        atexit.unregister(self.close)
        self._warnings.close()
        try:
            try:
                self.display.close()
                self.series.close()
                status = "preempted" if is_requeued else status_of(error)
                self.folder.write_record(**self._progress_made(), status=status, error=told_error(error))
            finally:
                if self._storage_lock is not None:
                    self._storage_lock.release()
                if self._output is not None:
                    self._output.close()  # before its last lines are copied to a store
                self.folder.close()
        except (OSError, TrainlabError) as failure:
            if error is None:
                raise
            # What ended the run is what a person must see; this may be its consequence (a full disk).
            logger.error("The run's files could not be closed properly: %s", failure)
        finally:
            if self._signals is not None and not is_requeued:  # SLURM sends another one then
                self._signals.close()

    def _requeued(self, error: BaseException | None) -> bool:
        """Requeue the job of a run that fails once SLURM has announced the end: the signal may have caused the failure.

        It goes to the program's subprocesses, too. What another rank has failed by is no such failure.
        """
        if self._signals is None or not self.is_chief or error is None or status_of(error) != "failed":
            return False
        number, first = self._signals.take(), self._distributed.watchdog.failure
        if number is None or is_consequence(error) or (first is not None and first.rank != self._distributed.rank):
            return False
        return requeue(number, failed=True)


class _NoWriter:
    """In place of a SummaryWriter where there is no run: a Trial that asks for one can be loaded all the same."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def _lock_of(store: Store, folder: RunFolder) -> FolderLock | None:
    """The lock of a folder of checkpoints that is not in the run's own, which is locked already."""
    path = store.location()
    if not isinstance(path, Path) or path == folder.checkpoints:
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"The folder of checkpoints cannot be made: {error.strerror}. Received: {path}. Pass another "
            "checkpoint_storage, or make this place writable."
        ) from error
    return take_lock(path, path, "folder of checkpoints", "checkpoint_storage")
