"""What a Recorder writes: its series, its pictures and its parameters, in one folder."""

import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidStateError
from trainlab.recording.console import ConsoleBackend
from trainlab.recording.csv import CsvBackend
from trainlab.recording.earlier import keep_before
from trainlab.recording.exclusion import Exclusion
from trainlab.recording.jsonl import JsonlBackend
from trainlab.recording.params_file import ParamsFile
from trainlab.recording.pictures import PictureFiles
from trainlab.recording.record import Record
from trainlab.recording.series import Backend, Series
from trainlab.recording.tensorboard import TensorBoardBackend
from trainlab.runs.yaml_text import to_yaml

__all__ = ["BACKENDS", "Output"]

_MAKE: dict[str, Callable[[Path], Backend]] = {
    "console": lambda folder: ConsoleBackend(),
    "csv": lambda folder: CsvBackend(folder / "scalars.csv"),
    "jsonl": lambda folder: JsonlBackend(folder / "scalars.jsonl"),
    "tensorboard": lambda folder: TensorBoardBackend(folder / "events"),
}
BACKENDS = tuple(_MAKE)

# Two in one folder would cut each other's files; those of other processes are excluded by a lock.
_open: "weakref.WeakValueDictionary[Path, Output]" = weakref.WeakValueDictionary()


class Output:
    """The files of one folder.

    Where earlier ones lie there, nothing is written until it is known what becomes of them: ``begin`` begins anew,
    ``go_on`` leaves them as they are, ``restore`` cuts them back.

    Args:
        folder: the folder.
        backends: names.

    Raises:
        InvalidStateError: another recorder writes there.
    """

    def __init__(self, folder: Path, backends: list[str]) -> None:
        if folder in _open:
            raise InvalidStateError(
                f"Another Recorder writes to this folder. Received: {folder}. Use that one, close it, or pass an "
                "output_dir of its own."
            )
        writes_files = bool(backends) and backends != ["console"]
        self._exclusion = Exclusion(folder) if writes_files else None
        made = {name: _MAKE[name](folder) for name in backends}
        self._series = Series(folder, list(made.values()))
        tensorboard = made.get("tensorboard")
        self._tensorboard = tensorboard if isinstance(tensorboard, TensorBoardBackend) else None
        self._pictures = PictureFiles(folder) if {"csv", "jsonl"} & set(backends) else None
        self._params_file = ParamsFile(folder) if writes_files else None
        self._pid = os.getpid()
        self._folder = folder
        self._is_open = True
        self._waiting: list[Callable[[], None]] | None = [] if self._finds_earlier() else None
        self._gathered: dict[str, Any] = {}
        self._gathered_at = 0
        self._gathered_time = 0.0
        _open[folder] = self

    def scalar(self, count: int, tag: str, value: Any) -> None:
        """Take in a number; those of one count are written together.

        Args:
            count: when it was recorded.
            tag: its tag.
            value: a float, or a tensor of one.
        """
        if self._gathered and (count != self._gathered_at or tag in self._gathered):
            self.write_gathered()
        if not self._gathered:
            self._gathered_at, self._gathered_time = count, time.time()
        self._gathered[tag] = value

    def write_gathered(self) -> None:
        """Write the numbers of the last count."""
        gathered, self._gathered = self._gathered, {}
        if gathered:
            record = Record("recorded", self._gathered_at, 0, 0, self._gathered_time, metrics=gathered)
            self._do(lambda: self._series.record(record))

    def picture(self, kind: str, count: int, tag: str, array: Any) -> None:
        """Write a picture.

        Args:
            kind: "images" or "figures".
            count: when it was recorded.
            tag: its tag.
            array: uint8 of shape (H, W, C).
        """
        self._do(lambda: self._write_picture(kind, count, tag, array))

    def params(self, count: int, params: Mapping[str, Any]) -> None:
        """Write parameters, unless they are those that are there.

        Args:
            count: when they were recorded.
            params: by name.
        """
        text = to_yaml(params)
        self._do(lambda: self._write_params(count, text))

    def position(self) -> dict[str, Any] | None:
        """Give how far the files are written, after a flush; None while nothing may be written yet."""
        if self._waiting is not None:
            return None
        self.write_gathered()
        return self._series.state_dict()

    def begin(self, count: int) -> None:
        """Begin anew, unless something was written: what earlier processes recorded from a count on is removed.

        Args:
            count: the first that is recorded now.
        """
        if self._waiting is None:
            self._series.go_on()
            return
        if count:
            paths = {path.relative_to(self._folder).as_posix(): path for path in self._series.files()}
            self._series.restore({"files": {name: keep_before(path, count) for name, path in paths.items()}})
        else:
            self._series.restore(None)
        if self._pictures is not None:
            self._pictures.cut(count - 1 if count else None)
        if self._params_file is not None:
            self._params_file.remove()
        self.go_on()

    def forget(self) -> None:
        """Forget what waits, so that closing writes none of it."""
        self._waiting, self._gathered = [], {}

    def go_on(self) -> None:
        """Write after what is there."""
        self._series.go_on()
        waiting, self._waiting = self._waiting, None
        for write in waiting or ():
            write()

    def restore(self, position: Mapping[str, Any], count: int) -> None:
        """Cut everything back to where a checkpoint was made, and write after it.

        Args:
            position: what ``position`` gave.
            count: the count at that time.
        """
        self.write_gathered()
        self._series.restore(position)
        if self._pictures is not None:
            self._pictures.cut(count)
        self.go_on()

    def flush(self) -> None:
        """Hand everything to the operating system that may be written."""
        self.write_gathered()
        self._series.flush()

    def close(self) -> None:
        """Write everything and close the files; further calls do nothing."""
        if not self._is_open or os.getpid() != self._pid:
            return
        self._is_open = False
        _open.pop(self._folder, None)
        try:
            self.write_gathered()
            self.go_on()
            self._series.close()
        finally:
            if self._exclusion is not None:
                self._exclusion.end()

    def _do(self, write: Callable[[], None]) -> None:
        if self._waiting is None:
            write()
        else:
            self._waiting.append(write)

    def _finds_earlier(self) -> bool:
        has_params = self._params_file is not None and self._params_file.exists()
        return bool(has_params or self._series.files() or (self._pictures is not None and self._pictures.files()))

    def _write_picture(self, kind: str, count: int, tag: str, array: Any) -> None:
        if (pictures := self._pictures) is not None:
            self._series.attempt(pictures, lambda: pictures.write(kind, tag, count, array))
        if (board := self._tensorboard) is not None:
            self._series.attempt(board, lambda: board.writer.add_image(tag, array, count, dataformats="HWC"))

    def _write_params(self, count: int, text: str) -> None:
        if (file := self._params_file) is None or file.holds(text):
            return
        self._series.attempt(file, lambda: file.write(text))
        if (board := self._tensorboard) is not None:
            self._series.attempt(board, lambda: board.writer.add_text("params", f"```yaml\n{text}```", count))
