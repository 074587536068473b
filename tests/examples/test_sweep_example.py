"""The example of a sweep, by its command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example as a shell does."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", str(ROOT / "examples" / "sweep.py"), *arguments],
        check=False,
        cwd=folder,
        env=given | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_the_example_sweeps_and_is_done_when_it_is_started_again(tmp_path: Path) -> None:
    """sweep.py trains each of its runs, names the best one's folder, and does none of it a second time."""
    first = run(tmp_path, "--quick")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 runs: 2 finished\n" in first.stderr
    told = re.fullmatch(r"Best accuracy: (\d+\.\d)% with lr (0\.\d+), in (.*)\n", first.stdout)
    assert told is not None, first.stdout
    record = json.loads((Path(told[3]) / "run.json").read_text())
    assert record["params"]["lr"] == float(told[2]) and record["status"] == "finished"
    assert f"{record['metrics']['accuracy']:.1%}" == f"{told[1]}%" and float(told[1]) > 50
    second = run(tmp_path, "--quick")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout == first.stdout and "2 finished (2 before)" in second.stderr
