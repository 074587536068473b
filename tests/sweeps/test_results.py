"""SweepRun: what is told of a run that failed."""

import sys
import traceback
from pathlib import Path

import pytest
from pydantic import BaseModel

from trainlab.errors import RankFailedError
from trainlab.sweeps.results import SweepRun


class Model(BaseModel):
    """Refuses what is no number, in words of several lines."""

    number: int


def reason(error: BaseException) -> str:
    """What a sweep tells of an error."""
    try:
        raise error
    except BaseException as raised:
        return SweepRun("", "", {}, Path(), error="".join(traceback.format_exception(raised))).reason


def test_an_error_is_told_by_its_class_and_message() -> None:
    """However long a traceback is, a person reads what went wrong, and neither its last line nor a frame."""
    assert reason(ValueError("first line\nsecond line")) == "ValueError: first line second line"
    with pytest.raises(ValueError, match="validation error") as caught:
        Model(number="x")  # type: ignore[arg-type]
    assert "ValidationError: 1 validation error for Model number Input should be a valid" in reason(caught.value)
    chained = KeyError("last")
    chained.__cause__ = ValueError("cause")
    assert reason(chained) == "KeyError: 'last'"
    nested = RankFailedError("Rank 1 failed.\n\n" + "Traceback (most recent call last):\n  File …\nOSError: the cause")
    assert reason(nested) == "OSError: the cause"
    assert len(reason(ValueError("x" * 1000))) == 300 and reason(ValueError("x" * 1000)).endswith("x…")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups of errors are Python 3.11's")
def test_a_group_of_errors_is_told_by_its_own_message() -> None:
    """Of an ExceptionGroup the reason is its message, and no line of the drawing around it."""
    group = ExceptionGroup("several", [ValueError("a"), TypeError("b")])  # noqa: F821  # of Python 3.11
    assert reason(group) == "ExceptionGroup: several (2 sub-exceptions)"


@pytest.mark.parametrize("text", ["", "SystemExit: 3", "was ended by SIGKILL"])
def test_what_has_no_traceback_is_told_as_it_is(text: str) -> None:
    """A status, a signal, and nothing at all."""
    assert SweepRun("", "", {}, Path(), error=text).reason == text
