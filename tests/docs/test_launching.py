"""The program of the guide to launching, run as its readers run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_guides_program_runs_on_two_processes(tmp_path: Path) -> None:
    """Saved as train.py, the guide's first program trains on two processes, and leaves a log of each in its run."""
    (tmp_path / "train.py").write_text(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0], encoding="utf-8")
    taken = ("TRAINLAB_", "SLURM", "SUBMITIT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^2 ranks, loss \d\.\d{4}$", done.stdout, re.MULTILINE), done.stdout
    (run,) = (tmp_path / "runs" / "sums").iterdir()
    assert {path.name for path in run.glob("log.rank-*.txt")} == {"log.rank-0.txt", "log.rank-1.txt"}
