"""An error's traceback as its user wants to see it. No torch."""

import contextlib
import os
import runpy
import traceback
from pathlib import Path

__all__ = ["told_traceback"]

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
# What runs a script or a block for us.
_AROUND = {runpy.__file__, "<frozen runpy>", contextlib.__file__}


def told_traceback(error: BaseException) -> str:
    """The traceback of an error from the user's first line on.

    Args:
        error: What was raised.

    Returns:
        As Python prints it, without the calls of trainlab's that lead to the user's program.
    """
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))


def _is_ours(file: str) -> bool:
    return file.startswith(_PACKAGE) or file in _AROUND
