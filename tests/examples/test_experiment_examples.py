"""The example of experiments, through its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import start_ranks
from tests.examples.scripts import run_script_alone

ROOT = Path(__file__).parents[2]
EXAMPLE = str(ROOT / "examples" / "experiments.py")


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it as a shell does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", EXAMPLE, *words],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def run(folder: Path, *words: str) -> str:
    """The same in a process that need not load torch first; all that was printed."""
    with start_ranks(run_script_alone, 1, EXAMPLE, str(folder), *words) as (process,):
        assert process.wait(240) == 0, process.output()
        return process.output()


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the one run in a folder."""
    (run_folder,) = folder.iterdir()
    found: dict[str, Any] = json.loads((run_folder / "run.json").read_text())
    return found


def test_the_program_tells_its_experiments_and_their_options(tmp_path: Path) -> None:
    """-h shows the tree of experiments, and after a name the options, those of the groups around it too."""
    tree = start(tmp_path, "-h")
    assert tree.returncode == 0, tree.stderr
    names = [line.split()[0] for line in tree.stdout.partition("experiments:\n")[2].splitlines() if line.strip()]
    assert [name for name in names if name in {"train", "baseline", "centroid", "linear", "softmax"}] == [
        "train",
        "baseline",
        "centroid",
        "linear",
        "softmax",
    ]
    told = start(tmp_path, "baseline", "linear", "softmax", "--help").stdout
    for option in ("--fraction FLOAT", "--lr FLOAT", "--bias, --no-bias", "--random-seed INT"):
        assert option in told
    assert "environment: LR" in told
    assert not list(tmp_path.iterdir())


def test_a_model_is_the_command_line_of_an_experiment(tmp_path: Path) -> None:
    """The pydantic style trains as its options say, and the record tells what was given."""
    said = run(tmp_path, "train", "--epochs", "1", "--hidden", "32", "16", "--optimizer.kind", "sgd")
    assert "Test accuracy: " in said
    record = record_of(tmp_path / "runs" / "train")
    assert (record["status"], record["params"]["hidden"], record["batches_trained"]) == ("finished", [32, 16], 43)
    assert record["origins"]["optimizer.kind"] == "command line"
    assert record["origins"]["optimizer.momentum"] == "default"


@pytest.mark.parametrize(
    ("words", "folder", "least"),
    [
        (["baseline", "centroid", "--distance", "Manhattan"], "baseline/centroid", 0.85),
        (["baseline", "linear", "softmax", "--epochs", "30", "--random-seed", "1"], "baseline/linear/softmax", 0.9),
    ],
)
def test_decorators_are_the_command_line_of_experiments(
    words: list[str], folder: str, least: float, tmp_path: Path
) -> None:
    """The decorator style learns in groups too; its result is in the record, and its params file gives it again."""
    run(tmp_path, *words)
    record = record_of(tmp_path / "runs" / folder)
    assert record["metrics"]["accuracy"] > least
    assert record["experiment"]["path"] == folder
    (first,) = (tmp_path / "runs" / folder).iterdir()
    run(tmp_path, *folder.split("/"), "--params-file", str(first / "params.yaml"), "--output-dir", "again")
    again = record_of(tmp_path / "again" / folder)
    assert again["metrics"] == record["metrics"]
    assert again["params"] == record["params"] | {"output_dir": "again"}


def test_a_wrong_option_is_told_before_anything_runs(tmp_path: Path) -> None:
    """A typing error and an option of the other optimizer end the program with status 1, and leave no run."""
    done = start(tmp_path, "train", "--epoch", "3", "--optimizer.momentum", "0.5")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "There is no option --epoch. Did you mean --epochs?",
        "--optimizer.momentum belongs to optimizer.kind sgd, and adam is chosen (its default).",
    ]
    assert not list(tmp_path.iterdir())
