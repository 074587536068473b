"""Holds a run of a launch until its input ends: ``python -m tests.runs.launched_holder ROOT ATTEMPT``."""

import sys
from pathlib import Path

from trainlab.runs import RunFolder

if __name__ == "__main__":
    root, attempt = Path(sys.argv[1]), int(sys.argv[2])
    sys.argv = ["train.py"]
    folder = RunFolder.open(name="digits", root=root, launch_id="night", attempt=attempt)
    print(folder.path, flush=True)
    sys.stdin.read()
