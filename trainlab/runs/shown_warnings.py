"""ShownWarnings: trainlab's warnings are shown where the program has set up no logging."""

import logging
from collections.abc import Callable

__all__ = ["ShownWarnings"]

# Those of this process, of which the last one shows.
_open: list["ShownWarnings"] = []


class ShownWarnings(logging.Handler):
    """Shows what Python's last resort does not show beside ``log.txt``, until ``close``.

    Of several that are open, the last one shows.

    Args:
        say: shows a line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        self._say = say
        _open.append(self)
        logging.getLogger("trainlab").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        if _open[-1:] == [self] and not logging.getLogger().handlers:
            try:
                self._say(self.format(record))
            except Exception:  # nobody reads it: a closed terminal, a full disk
                self.handleError(record)

    def close(self) -> None:
        """Show no more."""
        if self in _open:
            _open.remove(self)
        logging.getLogger("trainlab").removeHandler(self)
        super().close()
