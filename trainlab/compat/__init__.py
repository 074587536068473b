"""Ways in for code that was written for other libraries."""

from trainlab.compat import determined

__all__ = ["determined"]
