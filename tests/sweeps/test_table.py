"""SweepTable: what a person sees of a sweep."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.sweeps.programs import train
from trainlab.launch.child import ChildProcess
from trainlab.sweeps.pool import Job, Running
from trainlab.sweeps.reading import read_members
from trainlab.sweeps.results import SweepRun
from trainlab.sweeps.sweep_folder import Entry
from trainlab.sweeps.table import SweepTable, metrics_text


def made(folder: Path, count: int, height: int, *, is_terminal: bool) -> tuple[SweepTable, list[Entry], io.StringIO]:
    """A table of so many runs, and what it writes to."""
    members = read_members(train, [{"depth": depth} for depth in range(count)])
    entries = [Entry(one, f"{index:03d}_{one.label}", folder / str(index)) for index, one in enumerate(members)]
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=100, height=height, color_system=None)
    return SweepTable("train", entries, console=console), entries, output


def run_of(entry: Entry, status: str, error: str = "", **metrics: float) -> SweepRun:
    """What came of a run."""
    told = {"status": status, "error": error, "metrics": metrics}
    return SweepRun(entry.key, entry.label, entry.member.params, entry.folder, **told)


def running(entry: Entry) -> Running:
    """A run in a process that is never started."""
    job = Job(entry.key, train, entry.member.params, entry.folder)
    return Running(job, ChildProcess(print), ("3",), 0.0)


def test_a_terminal_shows_the_runs_as_they_are(tmp_path: Path) -> None:
    """Each run's parameters, state, last metrics and GPU are in the table, read from a run that is on its way too."""
    table, entries, output = made(tmp_path, 4, 40, is_terminal=True)
    entries[0].folder.mkdir()
    (entries[0].folder / "run.json").write_text(json.dumps({"status": "running", "name": "train", "starts": [{}]}))
    line = {"kind": "validation", "metrics": {"accuracy": 0.91234, "loss": "NaN"}}
    (entries[0].folder / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"kind": "tra')
    with table:
        table.started(entries[0].key, ("3",))
        table.started(entries[1].key, ("4",))
        table.ended(run_of(entries[1], "failed", "ValueError: boom"), 61.0)
        table.refresh([running(entries[0])])
        shown = output.getvalue()
        output.truncate(0)
    rows = {number: next(line for line in shown.splitlines() if f" {number} " in line) for number in ("000", "001")}
    for told in ("running", "accuracy=0.9123 loss=nan", "3"):
        assert told in rows["000"]
    assert "failed" in rows["001"] and "0:01:01" in rows["001"] and "depth" in shown
    assert "1 running, 1 failed, 2 waiting" in shown
    assert "002" in output.getvalue()  # the whole table stays at the end


def test_a_long_sweep_fits_on_its_terminal(tmp_path: Path) -> None:
    """Of more runs than lines those that run, failed or ended last are shown, and how many are not."""
    table, entries, output = made(tmp_path, 60, 20, is_terminal=True)
    with table:
        for entry in entries[:50]:
            table.ended(run_of(entry, "failed" if entry is entries[5] else "finished"), 1.0)
        table.started(entries[50].key)
        output.truncate(0)
        table.refresh([])
        shown = output.getvalue()
        output.truncate(0)
    numbers = {line.split()[1] for line in shown.splitlines() if line.count("│") > 2}
    assert {"005", "050", "049", "048"} <= numbers and "000" not in numbers
    assert shown.count("\n") <= 20 and "and 47 more" in shown
    assert sum(f" {number:03d} " in output.getvalue() for number in range(60)) == 60


def test_a_title_has_one_line(tmp_path: Path) -> None:
    """What the sweep is called and how it is are read at a glance, though the table below is narrower."""
    _, entries, output = made(tmp_path, 2, 40, is_terminal=True)
    title = "group/train · a name as long as the forty-nine columns of its table"
    console = Console(file=output, force_terminal=True, width=150, height=40, color_system=None)
    with SweepTable(title, entries, console=console):
        pass
    assert re.search(rf"{re.escape(title)} · 2 waiting · \d+\.\d s *$", output.getvalue(), re.MULTILINE)


def test_without_a_terminal_there_are_lines(tmp_path: Path) -> None:
    """A log of a sweep has a line for each start and end, with the metrics or the error, and no drawing."""
    table, entries, output = made(tmp_path, 3, 20, is_terminal=False)
    with table:
        table.started(entries[0].key, ("3", "4"))
        table.refresh([running(entries[0])])
        table.ended(run_of(entries[0], "finished", score=0.25), 3.21)
        table.ended(
            run_of(entries[1], "failed", "Traceback (most recent call last):\n  …\nValueError: [bold]boom"), 4.0
        )
        table.ended(run_of(entries[2], "crashed", "was ended by SIGKILL"))
    assert output.getvalue().splitlines() == [
        "000_depth=0: started on GPU 3, 4",
        "000_depth=0: finished after 3.2 s: score=0.25 (1 of 3)",
        "001_depth=1: failed after 4.0 s: ValueError: [bold]boom (2 of 3)",
        "002_depth=2: crashed: was ended by SIGKILL (3 of 3)",
    ]


def test_nothing_is_shown_where_nobody_wants_it(tmp_path: Path) -> None:
    """progress=False is silent."""
    _, entries, output = made(tmp_path, 1, 20, is_terminal=True)
    with SweepTable("train", entries, console=Console(file=output), is_shown=False) as table:
        table.say("a line")
        table.ended(run_of(entries[0], "finished"))
    assert output.getvalue() == ""


@pytest.mark.parametrize(
    ("metrics", "text"),
    [({}, ""), ({"a": 1, "b": 0.123456, "c": [1], "d": 2, "e": 3}, "a=1 b=0.1235 d=2"), ({"a": 1e-9}, "a=1e-09")],
)
def test_metrics_are_told_in_a_few_words(metrics: dict[str, object], text: str) -> None:
    """Three numbers of four digits fit beside everything else."""
    assert metrics_text(metrics) == text
