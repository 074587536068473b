"""Writes a checkpoint by the writer. ``python -m tests.checkpoint.writing ROOT BATCHES`` stops in the middle of it."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.checkpoint.samples import DETAILS, model_state, sample_state
from trainlab.checkpoint import CheckpointWriter, Entry, Retention, Snapshot
from trainlab.storage import open_store


def write_checkpoint(
    root: Path,
    *,
    batches_trained: int,
    weights: Any,
    state: Any,
    details: Mapping[str, Any],
    before_commit: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint, and wait for it; an error is raised."""
    snapshot = Snapshot(weights=weights, state=state, details=details)
    writer = CheckpointWriter(open_store(root), mode="sync", retention=Retention(keep_last=None))
    entry = Entry(writer.next_name(batches_trained), 0, batches_trained, 0)
    write = writer.start(snapshot, entry, before_commit=before_commit, wait=True)
    if write.error is not None:
        raise write.error
    return Path(write.location)


def write(
    root: Path,
    batches: int = 5,
    *,
    weights: Any = None,
    state: Any = None,
    details: Mapping[str, Any] = DETAILS,
    before_commit: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint, of samples where nothing else is given."""
    return write_checkpoint(
        root,
        batches_trained=batches,
        weights={"model": {"0": model_state(batches)}} if weights is None else weights,
        state=sample_state(batches) if state is None else state,
        details=details,
        before_commit=before_commit,
    )


def stop(folder: Path) -> None:
    """Say that the data is there, and wait to be killed."""
    print(folder, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), before_commit=stop)
