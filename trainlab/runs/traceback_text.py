"""An error's traceback as its user wants to see it. No torch."""

import contextlib
import os
import re
import runpy
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from trainlab.runs.masking import Masking

__all__ = ["hide", "reason_of", "told_message", "told_text", "told_traceback", "users_frames"]

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
# Of the error itself, or of a group of errors, whose lines have a margin.
_TRACEBACK = re.compile(r"^(?:  \+ Exception Group )?Traceback \(most recent call last\):$", re.MULTILINE)
_MARGIN = "  | "
_LONGEST = 300
# What runs a script or a block for us.
_AROUND = {runpy.__file__, "<frozen runpy>", contextlib.__file__}
# Of all runs of this process: an error is told when the one that it came out of has ended.
_masking = Masking()


def hide(secrets: Iterable[str]) -> None:
    """Keep secrets out of all that this process tells others of its errors.

    Args:
        secrets: the texts.
    """
    _masking.add(secrets)


def told_traceback(error: BaseException) -> str:
    """The traceback of an error from the user's first line on, without the secrets of this process's runs.

    Args:
        error: What was raised.

    Returns:
        As Python prints it, without the calls of trainlab's that lead to the user's program.
    """
    return told_text("".join(traceback.format_exception(type(error), error, users_frames(error))))


def told_message(error: BaseException) -> str:
    """The last lines of that traceback: the error's class and message.

    Args:
        error: What was raised.
    """
    return told_text("".join(traceback.format_exception_only(type(error), error)).strip())


def told_text(text: str) -> str:
    """A text without the secrets of this process's runs.

    Args:
        text: Such as that of a ``sys.exit("text")``.
    """
    return _masking.text(text)


def reason_of(text: str) -> str:
    """What a traceback comes to, in a line.

    Args:
        text: The traceback; or only what was said of the error.

    Returns:
        The error's class and message, shortened, as in "ValueError: no such thing"; "" for nothing.
    """
    headers = list(_TRACEBACK.finditer(text))
    lines = text[headers[-1].end() :].splitlines() if headers else text.splitlines()
    lines = [line.removeprefix(_MARGIN) for line in lines]
    # Calls are indented, the error is not; what a group holds follows with a deeper margin.
    first = next((number for number, line in enumerate(lines) if line and not line[0].isspace()), 0)
    told: list[str] = []
    for line in lines[first:]:
        if line.startswith("  +-"):
            break
        told.extend(line.split())
    reason = " ".join(told)
    return reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"


def users_frames(error: BaseException) -> TracebackType | None:
    """The frames of an error without the calls of trainlab's that lead to the user's program.

    Args:
        error: What was raised.

    Returns:
        All of its frames where none is the user's.
    """
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames or error.__traceback__


def _is_ours(file: str) -> bool:
    return file.startswith(_PACKAGE) or file in _AROUND
