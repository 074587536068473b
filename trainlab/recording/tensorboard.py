"""TensorBoardBackend: the run's series as TensorBoard event files; TorchWriter: a writer for one's own scalars."""

import importlib
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import MissingDependencyError
from trainlab.recording.record import Record, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardBackend", "TorchWriter"]

# How long events may wait in the writer's queue before they reach the disk.
_FLUSH_SECONDS = 10
# Long enough that the training thread never waits for the writer's thread.
_QUEUE = 1000


class TensorBoardBackend:
    """Writes records as scalars: ``train/<name>``, ``validation/<name>``, ``optim/<name>``, ``perf/<name>``.

    TensorBoard is imported with the first write, or when the writer is first asked for.

    Args:
        folder: the folder of the event files.

    Attributes:
        enabled: whether records are written (default True); the writer works either way.
    """

    def __init__(self, folder: Path) -> None:
        self.enabled = True
        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> "SummaryWriter":
        """The one writer of this folder, for the user's own series too.

        Raises:
            MissingDependencyError: TensorBoard is not installed.
        """
        if self._writer is None:
            self._writer = _open_writer(self._folder)
        return self._writer

    def write(self, record: Record) -> None:
        """Write a record's scalars, as one event; what has no value is left out.

        Args:
            record: the record.

        Raises:
            MissingDependencyError: TensorBoard is not installed.
        """
        if not self.enabled:
            return
        writer = self.writer
        summary_class = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        summary = summary_class(
            value=[summary_class.Value(tag=tag, simple_value=value) for tag, value in scalars(record)]
        )
        writer._get_file_writer().add_summary(summary, record.batch, record.time)  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Hand all events to the operating system, those of every writer in this folder."""
        for writer in self._open_writers():
            writer.flush()

    def files(self) -> list[Path]:
        """List the event files, in subfolders too.

        Returns:
            Their paths, sorted.
        """
        return sorted(path for path in self._folder.rglob("*tfevents*") if path.is_file())

    def close(self) -> None:
        """Close every writer in this folder; a later write opens a new file."""
        for writer in self._open_writers():
            try:
                writer.close()
            finally:
                # It does so itself, unless the disk is full: then it would go on with a thread that has died.
                writer.file_writer = writer.all_writers = None

    def _open_writers(self) -> "list[SummaryWriter]":
        folder = self._folder.resolve()
        others = [other.writer for other in tuple(_torch_writers) if other.is_open and other.folder == folder]
        return others if self._writer is None else [self._writer, *others]


class TorchWriter:
    """A TensorBoard writer for one's own scalars.

    Args:
        log_dir: the folder of its event files; None (default): ``tensorboard`` in the current folder.
    """

    def __init__(self, log_dir: str | Path | None = None) -> None:
        self.folder = Path("tensorboard" if log_dir is None else log_dir).resolve()
        self._writer: SummaryWriter | None = None
        _torch_writers.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it has been written to, or asked for its writer."""
        return self._writer is not None

    @property
    def writer(self) -> "SummaryWriter":
        """Torch's own writer, for everything that is no scalar.

        Raises:
            MissingDependencyError: TensorBoard is not installed.
        """
        if self._writer is None:
            self._writer = _open_writer(self.folder)
        return self._writer

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        """Write one number.

        Args:
            name: the tag.
            value: a number, or a tensor or an array with one element.
            step: its step.

        Raises:
            MissingDependencyError: TensorBoard is not installed.
        """
        self.writer.add_scalar(name, value, step)

    def reset(self) -> None:
        """Write all events out and close the file; the next write opens a new one."""
        if self._writer is not None:
            self._writer.close()


# A checkpoint's position counts what is on disk, so the backend has to reach the writers that share its folder.
_torch_writers: "weakref.WeakSet[TorchWriter]" = weakref.WeakSet()


def _open_writer(folder: Path) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            f"TensorBoard's event files need the package tensorboard. Received: {error}. "
            "Install it with `pip install tensorboard`, or pass enable_tensorboard_logging=False to trainlab.init()."
        ) from error
    return SummaryWriter(str(folder), max_queue=_QUEUE, flush_secs=_FLUSH_SECONDS)
