import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recording.reports import report
from trainlab.recording import LineDisplay, NoDisplay, make_display
from trainlab.schedule import Batch, Epoch, Plan, Progress


def test_a_report_is_one_line() -> None:
    """A line tells epoch, batch of all batches, rate, metrics and learning rate."""
    stream, progress = io.StringIO(), Progress(batches_trained=300, epochs_trained=1, batches_in_epoch=50)
    display = make_display(True, stream)
    display.start(progress, Plan(max_length=Batch(1000), reporting_period=Batch(100)), lambda: 250)
    display.report(report(300, metrics={"loss": 0.12341, "none": None}, perf={"batches_per_second": 1234.4}))
    display.close()
    assert stream.getvalue() == "epoch 2 · batch 300/1000 · 1234 batches/s · loss 0.1234 · lr 0.001\n"


def test_a_validation_is_one_line() -> None:
    """At the end of an epoch the line names the epoch that has ended; the number of all batches follows from epochs."""
    stream, progress = io.StringIO(), Progress(batches_trained=20, epochs_trained=2)
    display = make_display(True, stream)
    display.start(progress, Plan(max_length=Epoch(5), reporting_period=Batch(100)), lambda: 10)
    display.validation_start(4)
    display.validation_step(4)
    display.validation_end(report(20, kind="validation", metrics={"accuracy": 0.5}, optim={}, perf={}))
    display.close()
    assert stream.getvalue() == "epoch 2 · batch 20/50 · validation · accuracy 0.5\n"


def test_an_unknown_length_is_left_out() -> None:
    """While nobody knows how long an epoch is, the line has no total; slow batches show a rate with decimals."""
    stream, progress = io.StringIO(), Progress(batches_trained=3, batches_in_epoch=3)
    display = make_display(True, stream)
    display.start(progress, Plan(max_length=Epoch(5), reporting_period=Batch(100)), lambda: None)
    display.report(report(3, metrics={}, optim={}, perf={"batches_per_second": 0.251}))
    display.close()
    assert stream.getvalue() == "epoch 1 · batch 3 · 0.25 batches/s\n"


def test_messages_and_validations_need_no_start() -> None:
    """`evaluate` outside of training shows its metrics, and a message after the end is shown as well."""
    stream = io.StringIO()
    display = make_display(True, stream)
    display.validation_end(report(20, kind="validation", metrics={"accuracy": 0.5}, optim={}, perf={}))
    display.close()
    display.close()
    display.say("Run folder: runs/x")
    assert stream.getvalue() == "epoch 2 · batch 20 · validation · accuracy 0.5\nRun folder: runs/x\n"


def test_lines_follow_what_stderr_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a stream, lines go where `sys.stderr` points when they are written, as notebooks change it."""
    display = LineDisplay()
    display.say("here")
    assert capsys.readouterr().err == "here\n"


def test_nothing_is_shown_when_switched_off(capfd: pytest.CaptureFixture[str]) -> None:
    """`progress=False` writes not one character, whatever happens."""
    display = make_display(False)
    display.start(Progress(), Plan(max_length=Batch(1), reporting_period=Batch(1)), lambda: 1)
    display.report(report(1))
    display.validation_start(1)
    display.validation_step(1)
    display.validation_end(report(1))
    display.say("text")
    display.close()
    assert isinstance(display, NoDisplay)
    assert capfd.readouterr() == ("", "")


def test_a_stream_that_cannot_show_a_character_gets_a_question_mark() -> None:
    """A log in ASCII is written, not an error that ends the run."""
    raw = io.BytesIO()
    display = make_display(True, io.TextIOWrapper(raw, encoding="ascii"))
    display.say("a · b")
    assert raw.getvalue() == b"a ? b\n"


def test_a_run_outlives_the_reader_of_its_lines(caplog: pytest.LogCaptureFixture) -> None:
    """When the reader of a pipe leaves, the run goes on, and the log says once that the lines have stopped."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    display = make_display(True, stream)
    display.say("one")
    display.say("two")
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_no_codes_reach_a_pipe(environment: dict[str, str]) -> None:
    """A log file gets plain text, even where colours are forced."""
    program = (
        "from trainlab.recording import make_display\nfrom trainlab.schedule import *\n"
        "from tests.recording.reports import report\n"
        "display = make_display(True)\n"
        "display.start(Progress(), Plan(max_length=Batch(9), reporting_period=Batch(1)), lambda: 9)\n"
        "display.report(report(1)); display.validation_end(report(1, kind='validation')); display.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )
    assert len(done.stderr.splitlines()) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stderr)
    assert done.stdout == ""
