"""Records to write, and readers of what was written."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainlab.recording import Record


def report(batch: int, **changes: Any) -> Record:
    """A report at a batch, with everything that a report has."""
    values: dict[str, Any] = {
        "kind": "training",
        "batch": batch,
        "epoch": batch // 10,
        "records": batch * 64,
        "time": 1_700_000_000.25 + batch,
        "metrics": {"loss": 1 / (batch + 1)},
        "optim": {"lr": 1e-3},
        "perf": {"batches_per_second": 100.0, "records_per_second": 6400.0},
    }
    return Record(**{**values, **changes})


def batches_in(path: Path) -> list[int]:
    """The steps of a metrics file, in its order; every line has to be whole."""
    return [json.loads(line)["batch"] for line in path.read_text().splitlines()]


def events_in(path: Path) -> Iterator[Any]:
    """The events of an event file; a torn one at its end is an error."""
    from tensorboard.compat.proto.event_pb2 import Event

    content, position = path.read_bytes(), 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        assert position + 16 + length <= len(content), "torn"
        yield Event.FromString(content[position + 12 : position + 12 + length])
        position += 16 + length


def steps_in(folder: Path, tag: str) -> list[int]:
    """The steps of one series over all event files of a folder, as they stand there."""
    events = [event for path in sorted(folder.rglob("*tfevents*")) for event in events_in(path)]
    return [event.step for event in events for value in event.summary.value if value.tag == tag]
