"""RunLog: what is logged while a run is open goes into its log."""

import logging
from contextlib import ExitStack
from pathlib import Path

from trainlab.runs.folder_lock import unusable
from trainlab.runs.masking import Masking
from trainlab.runs.users_log import UsersLog

__all__ = ["RunLog"]

# The runs' handlers of each logger; the last one writes.
_handlers: dict[logging.Logger, list[logging.Handler]] = {}
# The loggers that had no level before a run's handler came.
_given_level: set[logging.Logger] = set()


class RunLog:
    """A run's log file, once something is attached to it, until ``close``.

    Args:
        file: the file.
        masking: what keeps secrets out of it.
    """

    def __init__(self, file: Path, masking: Masking) -> None:
        self._file, self._masking = file, masking
        self._attached: list[tuple[logging.Logger, logging.Handler]] = []
        self._users_log: UsersLog | None = None

    def attach(self, source: logging.Logger) -> None:
        """Write what a logger logs, from INFO on; the second time this does nothing.

        Args:
            source: the logger. If it has no level of its own, it has INFO meanwhile.

        Raises:
            RunFolderError: the file cannot be written.
        """
        if any(attached is source for attached, _ in self._attached):
            return
        handler = self._handler()
        _attach(source, handler)
        self._attached.append((source, handler))

    def attach_users(self) -> None:
        """Write what the program's own loggers have to say, from INFO on; the second time this does nothing.

        Raises:
            RunFolderError: the file cannot be written.
        """
        if self._users_log is None:
            self._users_log = UsersLog(self._handler())

    def close(self) -> None:
        """Write no more.

        Raises:
            OSError: the last lines could not be written; all is closed nevertheless.
        """
        with ExitStack() as closing:
            while self._attached:
                closing.callback(_detach, *self._attached.pop(0))
            if self._users_log is not None:
                closing.callback(self._users_log.close)

    def _handler(self) -> logging.Handler:
        try:
            handler = logging.FileHandler(self._file, encoding="utf-8")
        except OSError as error:
            raise unusable(self._file, "opened", error) from error
        handler.setLevel(logging.INFO)
        handler.setFormatter(_Formatter(self._masking))
        return handler


class _Formatter(logging.Formatter):
    """The form of a log's lines, without the run's secrets: in messages, and in tracebacks."""

    def __init__(self, masking: Masking) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._masking = masking

    def format(self, record: logging.LogRecord) -> str:
        return self._masking.text(super().format(record))


def _attach(source: logging.Logger, handler: logging.Handler) -> None:
    handlers = _handlers.setdefault(source, [])
    handler.addFilter(lambda _: handlers[-1:] == [handler])
    handlers.append(handler)
    if source.level == logging.NOTSET:
        source.setLevel(logging.INFO)
        _given_level.add(source)
    source.addHandler(handler)


def _detach(source: logging.Logger, handler: logging.Handler) -> None:
    handlers = _handlers[source]
    handlers.remove(handler)
    source.removeHandler(handler)
    if not handlers:
        del _handlers[source]
        if source in _given_level:
            _given_level.remove(source)
            # Another level is one that the user chose meanwhile.
            if source.level == logging.INFO:
                source.setLevel(logging.NOTSET)
    handler.close()
