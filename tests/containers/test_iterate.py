"""The progress bar around any loop, on a real terminal and without one."""

import io
import re
import subprocess
import sys
import textwrap

import pytest

import trainlab
from tests.recording.screen import rows_of, run_on_terminal
from trainlab.errors import InvalidTypeError

START = """
import sys, threading
from trainlab import iterate
from trainlab.recording import live_row, terminal
live_row._REFRESH_SECONDS = 0.01
drawn, draw = threading.Condition(), terminal.Terminal.draw
rows_drawn = [0]

def counted(self, line):
    draw(self, line)
    with drawn:
        rows_drawn[0] += 1
        drawn.notify_all()

terminal.Terminal.draw = counted

def wait_for_refresh():
    start = rows_drawn[0]
    with drawn:
        assert drawn.wait_for(lambda: rows_drawn[0] >= start + 2, 120)
"""


def shown(program: str) -> tuple[list[str], str]:
    code, received = run_on_terminal(START + textwrap.dedent(program))
    assert code == 0, received
    return rows_of(received), received


def test_a_loop_has_a_bar_that_tells_how_far_it_is() -> None:
    """The row tells the label, the share, the count and the rate; prints appear above it; the last row stays."""
    rows, received = shown("""
        for number in iterate(range(4), "epoch"):
            wait_for_refresh()
            print("item", number)
        print("after")
        assert threading.active_count() == 1
    """)
    assert rows[:4] == [f"item {number}" for number in range(4)]
    assert re.fullmatch(r"epoch ━{24} 100%  4/4 · [\d.]+ items/s · ETA 0:00:00", rows[4]), rows[4]
    assert rows[5:] == ["after", ""]
    assert "2/4" in received


def test_loops_in_loops_share_one_row() -> None:
    """An epoch's loop around that of its batches shows both, and the outer one goes on when the inner ends."""
    rows, received = shown("""
        for epoch in iterate(range(2), "epoch"):
            for batch in iterate((i for i in range(3)), "batch"):
                wait_for_refresh()
    """)
    assert "epoch 1/2 · batch " in received
    assert len(rows) == 2 and rows[0].startswith("epoch ━") and "2/2" in rows[0]


def test_a_loop_that_ends_early_gives_the_terminal_back() -> None:
    """`break`, an error and an iterator that is dropped leave a whole row, and the streams as they were."""
    rows, _ = shown("""
        before = sys.stdout, sys.stderr
        for number in iterate(range(10), total=20):
            if number == 3:
                break
        assert (sys.stdout, sys.stderr) == before
        try:
            for number in iterate([1, 2]):
                raise ValueError
        except ValueError:
            pass
        items = iterate([1]); next(iter(items)); del items
        assert (sys.stdout, sys.stderr) == before
        print("after")
    """)
    assert "3/20" in rows[0] and "0/2" in rows[1] and "0/1" in rows[2] and rows[3] == "after"


def test_without_a_terminal_the_loop_is_the_loop_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a log, a pipe and a dumb terminal there is no bar, and what is iterated is the very object."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    items = [1, 2]
    assert trainlab.iterate(items, "label", total=3) is items
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", None)
    assert trainlab.iterate(items) is items


def test_what_is_no_loop_is_told_with_and_without_a_terminal() -> None:
    """`iterate(3)` is an error at the call that says what to write, wherever the program runs."""
    with pytest.raises(InvalidTypeError, match=r"Received: 3\. Pass range\(n\)"):
        trainlab.iterate(3)  # type: ignore[arg-type]
    shown("""
        try:
            iterate(3)
        except TypeError as error:
            assert "Received: 3" in str(error)
        else:
            raise AssertionError
    """)


def test_no_bar_loads_no_rich() -> None:
    """A program without a terminal never waits for the package that draws the bar."""
    program = "import sys, trainlab\nfor _ in trainlab.iterate([1]): pass\nassert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.PIPE)
