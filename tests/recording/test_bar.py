import re
import textwrap
from pathlib import Path

import pytest

from tests.recording.screen import rows_of, run_on_terminal

START = """
import logging, os, sys, threading
from tests.recording.reports import report
from trainlab.recording import RichDisplay, live_row, make_display, terminal
from trainlab.schedule import *
live_row._REFRESH_SECONDS = 0.01
rows_drawn, drawn, draw = [0], threading.Condition(), terminal.Terminal.draw

def counted(self, line):
    draw(self, line)
    with drawn:
        rows_drawn[0] += 1
        drawn.notify_all()

terminal.Terminal.draw = counted
progress = Progress()
plan = Plan(max_length=Epoch(2), reporting_period=Batch(100))
display = make_display(True)
assert isinstance(display, RichDisplay), display
before = sys.stdout, sys.stderr

def train(batches):
    for _ in range(batches):
        progress.count_batch(64)
        if progress.batches_in_epoch == 10:
            progress.end_epoch()

def wait_for_refresh():
    start = rows_drawn[0]
    with drawn:  # the first of two was perhaps begun before
        assert drawn.wait_for(lambda: rows_drawn[0] >= start + 2, 120)
"""


def shown(program: str, columns: int = 120) -> list[str]:
    """The rows left on a terminal by a program that uses the bar and ends well."""
    code, received = run_on_terminal(START + textwrap.dedent(program), columns)
    rows = rows_of(received)
    assert code == 0, rows
    assert rows.pop() == "", "the cursor is on a new row at the end"
    return rows


def test_the_bar_shows_epoch_batch_rate_time_left_and_metrics() -> None:
    """The row tells how far the run is, without any call per batch."""
    rows = shown("""
        display.start(progress, plan, lambda: 10)
        train(1)
        wait_for_refresh()
        display.report(report(5, metrics={"loss": 0.12345}))
        train(14)
        display.close()
    """)
    assert len(rows) == 1
    assert re.fullmatch(
        r"epoch 2 [━╸╺ ]{24}  75%  batch 15/20 · [\d.]+ batches/s · ETA \d+:\d\d:\d\d · loss 0.1235", rows[0]
    ), rows[0]


def test_the_bar_moves_though_nothing_is_reported() -> None:
    """A window may be as long as it likes: the counters alone move the bar."""
    code, received = run_on_terminal(
        START
        + textwrap.dedent("""
        display.start(progress, plan, lambda: 10)
        wait_for_refresh(); train(3); wait_for_refresh(); train(4); wait_for_refresh()
        display.close()
        """)
    )
    assert code == 0
    assert "batch 3/20" in received
    assert "batch 7/20" in rows_of(received)[-2]


def test_a_validation_has_its_bar_and_leaves_a_line() -> None:
    """During a validation the row shows how far it is; its metrics stay in a line of their own."""
    code, received = run_on_terminal(
        START
        + textwrap.dedent("""
        display.start(progress, plan, lambda: 10)
        train(10)
        display.validation_start(8)
        display.validation_step(2)
        wait_for_refresh()
        display.validation_end(report(10, kind="validation", metrics={"accuracy": 0.5}, optim={}, perf={}))
        wait_for_refresh()
        train(1)
        display.close()
        """)
    )
    rows = rows_of(received)
    assert code == 0, rows
    assert re.search(r"validation .*25%.*batch 2/8", received)
    assert rows[0] == "epoch 1 · batch 10/20 · validation · accuracy 0.5"
    assert rows[1].startswith("epoch 2 ")


def test_a_validation_that_was_only_tried_gives_way_to_training() -> None:
    """A validation that never reports its end, since it was tried or failed, is not shown once training goes on."""
    code, received = run_on_terminal(
        START
        + textwrap.dedent("""
        display.start(progress, plan, lambda: 10)
        display.validation_start(1)
        display.validation_step(1)
        wait_for_refresh()
        train(1)
        wait_for_refresh()
        train(1)
        display.close()
        """)
    )
    assert code == 0
    assert "validation" in received
    assert "batch 1/20" in received


def test_prints_of_the_user_stay_whole_above_the_bar() -> None:
    """What is printed, logged or written in pieces stands in rows of its own, unchanged and in order."""
    rows = shown("""
        logging.basicConfig(format="%(message)s", force=True)
        sys.stdout.reconfigure(line_buffering=False)
        display.start(progress, plan, lambda: 10)
        wait_for_refresh()
        print("printed")
        print("in ", end=""); wait_for_refresh(); print("pieces")
        print("to stderr", file=sys.stderr)
        logging.warning("logged")
        sys.stdout.writelines(["[bold]as it is[/bold]\\n", "x" * 130 + "\\n"])
        wait_for_refresh()
        display.say("said")
        train(1)
        display.close()
        print("after")
    """)
    expected = ["printed", "in pieces", "to stderr", "logged", "[bold]as it is[/bold]", "x" * 130, "said"]
    assert rows[:-2] == expected
    assert rows[-2].startswith("epoch 1 ")
    assert rows[-1] == "after"


def test_an_exception_finds_the_terminal_as_it_was() -> None:
    """After an error the streams and the logging handlers are the old ones, and the traceback is whole."""
    code, received = run_on_terminal(
        START
        + textwrap.dedent("""
        logging.basicConfig(force=True)
        display.start(progress, plan, lambda: 10)
        try:
            assert sys.stdout is not before[0]
            print("unfinished", end="")
            raise RuntimeError("the user's error")
        finally:
            display.close()
            display.close()
            assert (sys.stdout, sys.stderr) == before
            assert logging.getLogger().handlers[0].stream is before[1]
        """)
    )
    rows = rows_of(received)
    assert code == 1
    assert rows[-2:] == ["RuntimeError: the user's error", ""]
    assert not [row for row in rows if "RuntimeError" in row and "epoch" in row]


def test_output_sent_to_a_file_is_left_alone(tmp_path: Path) -> None:
    """With `python train.py > out.txt` prints go to the file, and the bar to the terminal."""
    with (tmp_path / "out.txt").open("w") as file:
        code, received = run_on_terminal(
            START
            + "display.start(progress, plan, lambda: 10); assert sys.stdout is before[0]; print('mine')\n"
            + "train(1); display.close()",
            stdout=file.fileno(),
        )
    assert code == 0
    assert (tmp_path / "out.txt").read_text() == "mine\n"
    assert "mine" not in received
    assert "batch 1/20" in received


@pytest.mark.parametrize("columns", [20, 45, 80])
def test_the_row_never_wraps(columns: int) -> None:
    """On a narrow terminal the row is cut, so that it never leaves a trail of rows behind."""
    code, received = run_on_terminal(
        START
        + "display.start(progress, plan, lambda: 10); wait_for_refresh(); train(12)\n"
        + "display.report(report(1, metrics={f'metric_{i}': 0.5 for i in range(9)})); display.close()",
        columns,
    )
    assert code == 0
    rows = rows_of(received)
    assert len(rows) == 2
    assert 0 < len(rows[0]) < columns


def test_forked_workers_may_print() -> None:
    """Processes forked while the bar is up, as by a data loader, print and end; none of them hangs or draws."""
    rows = shown("""
        display.start(progress, plan, lambda: 10)
        for worker in range(20):
            wait_for_refresh()
            pid = os.fork()
            if pid == 0:
                print("worker", worker)
                print("worker again", worker)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        train(1)
        display.close()
    """)
    texts = [row for row in rows if row.startswith("worker")]
    assert texts == [text for worker in range(20) for text in (f"worker {worker}", f"worker again {worker}")]
    assert rows[-1].startswith("epoch 1 ")


def test_forked_workers_never_draw() -> None:
    """Only the process that trains draws the bar, so that a worker's print leaves no outdated one behind."""
    code, received = run_on_terminal(
        START
        + textwrap.dedent("""
        live_row._REFRESH_SECONDS = 1000
        display.start(progress, plan, lambda: 10)
        with drawn:
            drawn.wait_for(lambda: rows_drawn[0] == 1, 120)
        pid = os.fork()
        if pid == 0:
            print("worker")
            os._exit(0)
        os.waitpid(pid, 0)
        display.close()
        """)
    )
    assert code == 0
    assert rows_of(received)[0] == "worker"
    assert received.count("epoch 0") == 2, "at the start and at the end"


@pytest.mark.parametrize("action", ["pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)", "print('text')"])
def test_nothing_happens_in_the_middle_of_a_row(action: str) -> None:
    """No worker is forked and nothing is printed while the bar is written: a lock or half a row would be left."""
    shown(f"""
        display.start(progress, plan, lambda: 10)
        done, writing, torn = threading.Event(), threading.Event(), threading.Event()
        class Slow:
            encoding = "utf-8"
            def write(self, text):
                writing.set()
                if threading.current_thread() is drawer and done.wait(0.3):
                    torn.set()
            def flush(self):
                pass
        other = terminal.Terminal(Slow())
        drawer = threading.Thread(target=other.draw, args=("x",))
        drawer.start()
        writing.wait(120)
        {action}
        done.set()
        drawer.join()
        assert not torn.is_set()
        other.close()
        display.close()
    """)


def test_close_waits_for_the_last_row() -> None:
    """Once `close` returns, no thread of the bar writes any more: what follows has the terminal for itself."""
    shown("""
        writing, go_on = threading.Event(), threading.Event()
        def slow(self, line):
            writing.set()
            go_on.wait(120)
            draw(self, line)
        terminal.Terminal.draw = slow
        display.start(progress, plan, lambda: 10)
        writing.wait(120)
        terminal.Terminal.draw = draw
        closer = threading.Thread(target=display.close)
        closer.start()
        closer.join(0.2)
        assert closer.is_alive()
        go_on.set()
        closer.join()
        assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
    """)


def test_many_threads_print_while_the_bar_starts_and_stops() -> None:
    """Starting and closing the bar while other threads print loses no line and never hangs."""
    rows = shown("""
        live_row._REFRESH_SECONDS = 0
        sys.setswitchinterval(1e-6)
        def chatter(name):
            for index in range(200):
                sys.stdout.write(f"{name} {index}\\n")
        threads = [threading.Thread(target=chatter, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for _ in range(30):
            display.start(progress, plan, lambda: 10)
            wait_for_refresh()
            closers = [threading.Thread(target=display.close) for _ in range(2)]
            for closer in closers:
                closer.start()
            for closer in closers:
                closer.join()
            train(1) if progress.batches_trained < 10 else None
        for thread in threads:
            thread.join()
        assert (sys.stdout, sys.stderr) == before
        assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
    """)
    # A thread may have looked up sys.stdout right before the bar took its place: that line stands behind the bar.
    printed = [match[0] for row in rows if (match := re.search(r"[abc] \d+$", row))]
    for name in "abc":
        assert [line for line in printed if line.startswith(name)] == [f"{name} {index}" for index in range(200)]


def test_a_bar_that_fails_does_not_end_the_run() -> None:
    """An error while drawing is logged with its traceback; the run goes on and ends well."""
    rows = shown("""
        logging.basicConfig(format="%(message)s", force=True)
        def length():
            raise RuntimeError("no length")
        display.start(progress, plan, length)
        display._running._live._thread.join(120)
        train(1)
        display.say("the run goes on")
        display.close()
    """)
    assert "The progress bar stops, the run goes on." in rows[0]
    assert "RuntimeError: no length" in rows
    assert "the run goes on" in rows


def test_a_killed_run_leaves_a_usable_terminal() -> None:
    """Even after `kill -9` the cursor is visible and no mode is left switched on: none was ever changed."""
    code, received = run_on_terminal(
        START + "display.start(progress, plan, lambda: 10); wait_for_refresh(); os.kill(os.getpid(), 9)"
    )
    assert code == -9
    assert not re.search(r"\x1b\[\?|\x1b[^\[]", received)


def test_a_dumb_terminal_gets_lines() -> None:
    """A terminal that cannot redraw a line, such as an editor's, gets plain lines."""
    code, received = run_on_terminal(
        "import os; os.environ['TERM'] = 'dumb'\nfrom trainlab.recording import make_display\n"
        "display = make_display(True); display.say(type(display).__name__)"
    )
    assert (code, received) == (0, "LineDisplay\r\n")


def test_rich_is_loaded_when_the_bar_starts() -> None:
    """Choosing the display costs nothing; rich is imported with the first bar."""
    shown("""
        assert "rich" not in sys.modules
        display.start(progress, plan, lambda: 10)
        assert "rich" in sys.modules
        train(1)
        display.close()
    """)


def test_a_stream_kept_from_an_earlier_bar_prints_above_the_new_one() -> None:
    """Who still holds the standard output of a bar that was closed does not print into the line of the next."""
    rows = shown("""
        display.start(progress, plan, lambda: 10)
        kept = sys.stdout
        display.close()
        display.start(progress, plan, lambda: 10)
        wait_for_refresh()
        kept.write("late\\n")
        display.close()
    """)
    assert "late" in rows
