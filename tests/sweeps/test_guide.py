"""The program of the guide to sweeps, run as its readers run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")


def test_the_guides_program_makes_its_sweep(tmp_path: Path) -> None:
    """Saved as train.py, the guide's first program makes six runs, in folders as the guide shows them."""
    (tmp_path / "train.py").write_text(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("best: {'lr': 0.01, 'depth': 8} in "), done.stdout
    (sweep,) = (tmp_path / "runs" / "train").iterdir()
    shown = re.findall(r"^    (\S+?)/? {2,}", GUIDE, re.MULTILINE)
    assert shown[:2] == ["sweep.json", "000_lr=0.1,depth=2"] and all((sweep / name).exists() for name in shown)
    assert len(list(sweep.glob("*/output.txt"))) == 6
