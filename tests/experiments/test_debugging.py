"""``debug``: an error is shown with the values around it, without secrets, and a debugger opens where one can type."""

import os
import pty
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.distributed.ranks import Rank, start_ranks
from trainlab.experiments.debugging import debugged

SECRET = "s3cr3t\\-'quoted'-value"


def shown(capsys: pytest.CaptureFixture[str], function: Callable[..., Any], *args: Any) -> str:
    """What is shown of an error that a function raises, without the lines that only draw boxes."""
    with pytest.raises(ValueError), debugged(True, [SECRET]):
        function(*args)
    return re.sub(r"[│╭╮╰╯─\n ]+", " ", capsys.readouterr().err)


def fails(batch: int, name: str) -> None:
    rows = list(range(100))
    raise ValueError(f"batch {batch} of {name} has {len(rows)} rows")


def test_the_values_around_an_error_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A person who debugs a run sees the error with the lines and the local variables of each call, lists cut short."""
    text = shown(capsys, fails, 17, "digits")
    assert "ValueError: batch 17 of digits has 100 rows" in text
    assert "batch = 17" in text
    assert "name = 'digits'" in text
    assert "9, ... +90" in text
    assert "trainlab/experiments/debugging.py" not in text  # trainlab's own frames are left out


def test_long_values_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """An object with an endless repr does not bury the error."""

    class Loud:
        def __repr__(self) -> str:
            return "loud " * 10_000

    def fails_loudly(loud: Loud) -> None:
        raise ValueError("too loud")

    assert len(shown(capsys, fails_loudly, Loud())) < 10_000


def leaks() -> None:
    # Put together, so that the lines of code that are shown do not hold them.
    params = {"login": SECRET, "api_key": "-".join(["ab", "cd"])}
    token, key = "-".join(["tok", "en"]), 3
    credentials = {"user": "-".join(["some", "body"])}
    text = f"{'x' * 190}{SECRET}"  # cut in the middle of the secret
    url = f"https://user:{params['login']}@host"
    raise ValueError(f"cannot log in with {SECRET}", token[:0], credentials, key) from RuntimeError(url, text)


def test_no_secret_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Secret parameters, and text in variables named like secrets, are masked wherever they would be shown."""
    monkeypatch.setenv("COLUMNS", "400")
    shown_text = shown(capsys, leaks)
    message, text = shown_text.rpartition("ValueError: ")[2], shown_text.rpartition("ValueError: ")[0]
    for part in (SECRET, repr(SECRET)[1:-1], "s3cr3t"):
        assert part not in shown_text
    for part in ("ab-cd", "tok-en", "some-body"):
        assert part not in text
    assert "cannot log in with ***" in message
    assert "token = '***'" in text
    assert "https://user:***@host" in text
    assert "key = 3" in text  # a number is none


def test_a_short_secret_is_masked_where_it_is_the_whole_value(capsys: pytest.CaptureFixture[str]) -> None:
    """A secret of a letter or two is masked as a value, and does not blot out every text that has these letters."""

    def fails_shortly(pin: str, pineapple: str) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError), debugged(True, ["ap"]):
        fails_shortly("ap", "an apple")
    text = capsys.readouterr().err
    assert "pin = '***'" in text
    assert "an apple" in text


def test_what_ends_a_program_on_purpose_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """sys.exit and Ctrl-C are not shown as errors to be debugged."""
    for end in (SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(type(end)), debugged(True):
            raise end
    assert capsys.readouterr().err == ""


def test_without_debug_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A run without debug leaves errors to whoever catches them."""
    with pytest.raises(ValueError), debugged(False):
        fails(1, "x")
    assert capsys.readouterr().err == ""


def at_a_terminal(terminal: str, place: str) -> None:
    """Standard input, output and errors are the terminal; a function of this module is debugged."""
    descriptor = os.open(terminal, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(descriptor, number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    with debugged(True):
        globals()[place]()


def raises_here() -> None:
    answer = 6 * 7
    raise ValueError(f"not {answer + 1}")


def breaks_here() -> None:
    from trainlab.recording.display import LineDisplay, make_display

    shown = make_display(True)
    breakpoint()
    print("a bar" if not isinstance(shown, LineDisplay) else "no bar")
    shown.close()


class Typist:
    """Reads what a process shows at its terminal, and types."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._said = descriptor, ""

    def until(self, text: str) -> str:
        before = ""
        while text not in self._said:
            try:
                piece = os.read(self._descriptor, 4096).decode(errors="replace")
            except OSError:  # the process has ended
                piece = ""
            if not piece:
                raise AssertionError(f"no {text!r} in:\n{self._said}")
            self._said += piece
        before, _, self._said = self._said.partition(text)
        return re.sub(r"\x1b\[[0-9;]*m", "", before)

    def type(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\n".encode())


def talk(place: str, talks: Callable[[Typist], None]) -> Rank:
    """Debug a function at a terminal of its own."""
    ours, theirs = pty.openpty()
    try:
        with start_ranks(at_a_terminal, 1, os.ttyname(theirs), place, env={"TERM": "xterm", "COLUMNS": "120"}) as (
            rank,
        ):
            talks(Typist(ours))
            rank.wait()
            return rank
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.slow
def test_a_debugger_opens_at_the_error() -> None:
    """At a terminal, pdb opens in the frame that raised the error, and the error still ends the program."""

    def talks(typist: Typist) -> None:
        assert "ValueError: not 43" in typist.until("(Pdb) ")
        typist.type("p answer * 1000")
        assert "42000" in typist.until("(Pdb) ")
        typist.type("q")

    assert talk("raises_here", talks).returncode == 1


def test_breakpoint_can_be_talked_to() -> None:
    """breakpoint() in a debugged run takes what is typed, and no progress bar is drawn over it."""

    def talks(typist: Typist) -> None:
        typist.until("(Pdb) ")
        typist.type("p 6 * 7000")
        assert "42000" in typist.until("(Pdb) ")
        typist.type("c")
        typist.until("no bar")

    assert talk("breaks_here", talks).returncode == 0
