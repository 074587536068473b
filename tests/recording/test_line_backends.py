import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.recording.reports import batches_in, report
from trainlab.recording import CsvBackend, JsonlBackend


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_a_line_holds_the_whole_record(tmp_path: Path) -> None:
    """A metrics file has one object a line, with the keys that the docs name, in their order."""
    backend = JsonlBackend(tmp_path / "metrics.jsonl")
    backend.write(report(3, kind="validation", metrics={"accuracy": 0.5, "café": None}))
    backend.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    content = json.loads(line)
    assert list(content) == ["kind", "batch", "epoch", "records", "time", "metrics", "optim", "perf"]
    assert content == {
        "kind": "validation",
        "batch": 3,
        "epoch": 0,
        "records": 192,
        "time": 1_700_000_003.25,
        "metrics": {"accuracy": 0.5, "café": None},
        "optim": {"lr": 0.001},
        "perf": {"batches_per_second": 100.0, "records_per_second": 6400.0},
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (np.float32("nan"), "NaN"),
        (np.float64(0.1), 0.1),
        (np.array([1.0, np.inf]), [1.0, "Infinity"]),
        ({"a": np.int64(3)}, {"a": 3}),
        ("text", "text"),
    ],
)
def test_lines_are_strict_json_whatever_the_value(tmp_path: Path, value: object, written: object) -> None:
    """Any JSON reader can read the file: a NaN is a string, and what a tolerant run records is plain data."""
    backend = JsonlBackend(tmp_path / "metrics.jsonl")
    backend.write(report(1, metrics={"loss": value}))
    backend.close()
    content = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert content["metrics"] == {"loss": written}


def test_a_record_can_be_read_at_once(tmp_path: Path) -> None:
    """Whoever follows the file sees each record when it is made, and a killed process loses none."""
    backend = JsonlBackend(tmp_path / "metrics.jsonl")
    backend.write(report(1))
    assert batches_in(tmp_path / "metrics.jsonl") == [1]
    backend.close()


def test_nothing_is_made_before_the_first_record(tmp_path: Path) -> None:
    """A run that records nothing leaves no empty file."""
    backend = JsonlBackend(tmp_path / "metrics.jsonl")
    backend.flush()
    backend.close()
    assert backend.files() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"kind": "tr', b"x" * 200_000])
def test_a_torn_last_line_is_cut_before_the_next_one(tmp_path: Path, torn: bytes) -> None:
    """A line that a dead process did not finish never merges with the next one, however long it is."""
    path = tmp_path / "metrics.jsonl"
    first = JsonlBackend(path)
    first.write(report(1))
    first.close()
    with path.open("ab") as file:
        file.write(torn)
    second = JsonlBackend(path)
    second.write(report(2))
    second.close()
    assert batches_in(path) == [1, 2]


def test_csv_has_a_row_for_each_scalar(tmp_path: Path) -> None:
    """The table has a header once, TensorBoard's tags, quoted names, and no row for what has no value."""
    for batch in (1, 2):
        backend = CsvBackend(tmp_path / "metrics.csv")
        backend.write(report(batch, metrics={"a,b": 0.5, "none": None, "text": "x"}, perf={}))
        backend.close()
    rows = list(csv.reader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert rows == [
        ["step", "tag", "value"],
        ["1", "train/a,b", "0.5"],
        ["1", "optim/lr", "0.001"],
        ["2", "train/a,b", "0.5"],
        ["2", "optim/lr", "0.001"],
    ]


def test_recording_is_imported_without_heavy_packages() -> None:
    """What writes and shows a run costs nothing before it is used: no torch, no TensorBoard, no rich."""
    program = (
        "import sys, trainlab.recording as r; from pathlib import Path; r.make_display(True);"
        "r.TensorBoardBackend(Path('x')).files(); r.TorchWriter('x').reset();"
        "assert not {'torch', 'tensorboard', 'rich', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
