"""RunStatus: where a run stands, where its files are, and whether it is to stop."""

import os
from pathlib import Path
from typing import Any

from trainlab.checkpoint import Checkpoint
from trainlab.data import BatchStream
from trainlab.errors import InvalidStateError, InvalidTypeError
from trainlab.schedule import Progress
from trainlab.training.session import Session

__all__ = ["RunStatus"]


class RunStatus:
    """What a Trial may ask of its context about the run; a part of ``TrialContext``, which sets the attributes.

    Attributes:
        progress: every counter of the run.
        session: the run's open files.
        training_stream: the training batches; None before training.
        initial_batch: batches trained before this ``fit``.
        stop_asked: whether a stop is asked for on this rank.
        stop_requested: what the loop obeys, which several ranks agree on first.
        signalled: whether a signal asked, which ``set_stop_requested(False)`` cannot take back.
        stops_at_once: whether a stop can be obeyed at once.
    """

    progress: Progress
    session: Session
    training_stream: BatchStream | None
    initial_batch: int
    stop_asked: bool
    stop_requested: bool
    signalled: bool
    stops_at_once: bool

    # -- where the run stands ----------------------------------------------------------------

    def current_train_epoch(self) -> int:
        """Return the index of the epoch that is being trained, from 0.

        Raises:
            InvalidStateError: training has not begun.
        """
        self._stream("current_train_epoch")
        return self.progress.epochs_trained

    def current_train_batch(self) -> int:
        """Return the index of the batch that is being trained, from 0 since the run's beginning.

        Raises:
            InvalidStateError: training has not begun.
        """
        self._stream("current_train_batch")
        return self.progress.batches_trained

    def is_epoch_start(self) -> bool:
        """Tell whether the batch being trained is the first of its epoch.

        Raises:
            InvalidStateError: training has not begun.
        """
        self._stream("is_epoch_start")
        return self.progress.batches_in_epoch == 0

    def is_epoch_end(self) -> bool:
        """Tell whether the batch being trained is the last of its epoch.

        Where the loader's length is unknown the next batch is fetched to answer.

        Raises:
            InvalidStateError: training has not begun.
        """
        return self._stream("is_epoch_end").exhausted()

    def get_initial_batch(self) -> int:
        """Return how many batches were trained before this ``fit``."""
        return self.initial_batch

    def get_stop_requested(self) -> bool:
        """Tell whether a stop was asked for, by you or by a signal; on one rank of several, by it or by all of them."""
        return self.stop_asked or self.stop_requested

    def set_stop_requested(self, stop_requested: bool) -> None:
        """Ask for a stop: the batch is finished, what is due is done, a checkpoint is made, ``fit`` returns.

        Of several ranks one may ask; all stop at the same batch, within about a second.

        Args:
            stop_requested: True asks, False takes it back.

        Raises:
            InvalidTypeError: it is no bool.
        """
        if not isinstance(stop_requested, bool):
            raise InvalidTypeError(f"set_stop_requested takes a bool. Received: {stop_requested!r}.")
        self.ask_to_stop(stop_requested or self.signalled)

    def ask_to_stop(self, is_asked: bool = True) -> None:
        """Note that a stop is asked for, or no more; safe in a signal's handler. The Trainer calls it.

        Args:
            is_asked: whether it is. Default True.
        """
        self.stop_asked = is_asked
        if self.stops_at_once:
            self.stop_requested = is_asked

    # -- the run's folder and TensorBoard ----------------------------------------------------

    @property
    def run_dir(self) -> Path:
        """The run's folder.

        Raises:
            InvalidStateError: this context has none (it only loads a Trial).
        """
        return self.session.folder.path

    def open_checkpoint(self, path: str | os.PathLike[str]) -> Checkpoint:
        """Open a checkpoint, of this run or another; its files are compared with their checksums as they are read.

        Args:
            path: its folder, or its URL; a URL is opened with the ``storage_options`` of this run.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        is_remote = "://" in os.fspath(path)
        options = self.session.storage_options if is_remote else None
        return Checkpoint.open(path, verify=False, storage_options=options)

    @property
    def latest_checkpoint(self) -> Path | str | None:
        """The newest valid checkpoint of the run: a path, a URL on a remote store, or None."""
        return self.session.latest_checkpoint

    def get_tensorboard_path(self) -> Path:
        """Return the folder of the run's TensorBoard files."""
        return self.session.folder.tensorboard

    def get_tensorboard_writer(self) -> Any:
        """Return the run's ``SummaryWriter``, one a context, for series of your own.

        For a Trial that is only loaded from a checkpoint, and so has no run, it writes nothing.
        """
        return self.session.writer

    def get_enable_tensorboard_logging(self) -> bool:
        """Tell whether trainlab writes its own series to TensorBoard."""
        return self.session.tensorboard.enabled

    def set_enable_tensorboard_logging(self, enable_tensorboard_logging: bool) -> None:
        """Switch trainlab's own TensorBoard series on or off.

        Args:
            enable_tensorboard_logging: True or False.

        Raises:
            InvalidTypeError: it is no bool.
        """
        if not isinstance(enable_tensorboard_logging, bool):
            raise InvalidTypeError(
                f"set_enable_tensorboard_logging takes a bool. Received: {enable_tensorboard_logging!r}."
            )
        self.session.tensorboard.enabled = enable_tensorboard_logging

    def _stream(self, asked: str) -> BatchStream:
        if self.training_stream is None:
            raise InvalidStateError(
                f"{asked} has no answer before training has begun. Call it in train_batch or later."
            )
        return self.training_stream
