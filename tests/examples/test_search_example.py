"""The example of a search, by its command lines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = str(ROOT / "examples" / "search.py")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a shell does."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", *words],
        check=False,
        cwd=folder,
        env=given | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_the_example_searches_and_prunes(tmp_path: Path) -> None:
    """search.py finds parameters that train well, prunes some of its trials, and names a file that repeats the best."""
    done = run(tmp_path, EXAMPLE, "--trials", "3", "--processes", "1", "--epochs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "train" / "search_accuracy"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("trial-*/run.json"))]
    assert [record["status"] for record in records] == ["finished"] * 3
    pruned = [record for record in records if record["stop_reason"] == "pruned"]
    assert pruned and all(record["epochs_trained"] < 2 for record in pruned)
    told = re.search(r"Best accuracy: (\d+\.\d)% ", done.stdout)
    assert told is not None, done.stdout
    best = max(record["metrics"]["accuracy"] for record in records if record["stop_reason"] == "max_length")
    assert f"{best:.1%}" == f"{told[1]}%" and best > 0.5
    again = run(tmp_path, EXAMPLE, "train", "--params-file", str(folder / "best.yaml"))
    assert again.returncode == 0, again.stdout + again.stderr
    (repeated,) = (tmp_path / "runs" / "train").glob("*/run.json")
    assert json.loads(repeated.read_text())["metrics"]["accuracy"] == best


@pytest.mark.slow
def test_the_same_by_the_command_line(tmp_path: Path) -> None:
    """`trainlab search` searches the same experiment, with the values that follow the dashes, and what it adds."""
    search = ["-m", "trainlab", "search", EXAMPLE, "--metric", "accuracy", "--direction", "maximize", "--trials", "1"]
    words = [*search, "--search", "hidden=8,16", "--study", "small", "--", "--epochs", "1", "--activation", "tanh"]
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"trial-0000: finished accuracy=0\.\d+ \(1 of 1, best 0\.\d+ by trial-0000\)", done.stderr)
    place = tmp_path / "runs" / "train" / "search_small" / "trial-0000" / "run.json"
    params = json.loads(place.read_text())["params"]
    assert (params["epochs"], params["activation"], params["hidden"] in (8, 16)) == (1, "tanh", True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--trials", "2"], "the following arguments are required: --metric"),
        (["--metric", "a", "--trials", "2", "--search", "lr"], "--search takes NAME=LOW:HIGH or NAME=A,B,C"),
        (["--metric", "a", "--trials", "2", "--max-length", "9"], "--max-length is a number of epochs or batches"),
        (["--metric", "a", "--trials", "2", "--", "--epoch", "9"], "Did you mean"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, words: list[str], told: str) -> None:
    """A wrong command line ends with status 2 and says what is right, and nothing is started."""
    (tmp_path / "train.py").write_text(
        "import trainlab\n\n@trainlab.experiment\n@trainlab.parameter('epochs', int, default=1)\n"
        "def train(params):\n    pass\n"
    )
    done = run(tmp_path, "-m", "trainlab", "search", "train.py", *words)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert told in done.stderr
    assert not (tmp_path / "runs").exists()
