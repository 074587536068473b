"""UsersLog: what a program's own loggers have to say goes into the run's log, too."""

import logging
from typing import Any

__all__ = ["UsersLog"]


class UsersLog:
    """Hands each record that is made to a handler, from INFO on; until ``close``.

    It is no handler of the root logger: with one, ``logging.basicConfig`` in the program would do nothing, and
    warnings would no longer be shown where nobody has set up logging. What the program's levels hold back is not made.

    Args:
        handler: gets the records, but for those of trainlab's own loggers, which have a handler of theirs.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self._is_open = True
        self._make = logging.getLogRecordFactory()
        logging.setLogRecordFactory(self)

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a record, as whoever did so before."""
        record = self._make(*args, **kwargs)
        if self._is_open and _is_users(record):
            self._handler.handle(record)
        return record

    def close(self) -> None:
        """Hand over no more records, and close the handler."""
        self._is_open = False
        if logging.getLogRecordFactory() is self:  # whoever came later goes on by way of this one
            logging.setLogRecordFactory(self._make)
        self._handler.close()


def _is_users(record: logging.LogRecord) -> bool:
    """Tell a record of the program from trainlab's own, and from one that is made of another process's."""
    name, level = record.name, record.levelno
    if not isinstance(name, str) or not isinstance(level, int) or level < logging.INFO:
        return False
    return name != "trainlab" and not name.startswith("trainlab.")
