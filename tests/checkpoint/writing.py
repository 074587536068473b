"""Writes a checkpoint and stops in the middle of it: ``python -m tests.checkpoint.writing ROOT BATCHES``."""

import sys
from pathlib import Path

from tests.checkpoint.samples import write


def stop(folder: Path) -> None:
    """Say that the data is there, and wait to be killed."""
    print(folder, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), before_commit=stop)
