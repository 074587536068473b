"""What a trial's folder says of how its run ended: the truth, whatever the search's storage was told."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainlab.runs.listing import described, number
from trainlab.runs.names import RECORD

__all__ = ["Outcome", "metrics_of", "outcome_of"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: "finished", "pruned" or "failed".
        value: the search's metric, if it is finished.
        reason: why it has failed.
    """

    state: Literal["finished", "pruned", "failed"]
    value: float | None = None
    reason: str = ""


def outcome_of(folder: Path, metric: str, *, asked_to_stop: bool) -> Outcome | None:
    """Read how a trial's run ended.

    Args:
        folder: the run's.
        metric: the search's.
        asked_to_stop: whether it was told to stop by what it reported last: so a loop of one's own is pruned.

    Returns:
        The end; None if it has not come to one, and is to be gone on with.
    """
    record = _record(folder)
    status = record.get("status")
    if status == "failed":
        return Outcome("failed", reason=str(record.get("error") or "the run failed"))
    if status != "finished":
        return None
    stopped_by = record.get("stop_reason")
    if stopped_by == "pruned" or (stopped_by is None and asked_to_stop):
        return Outcome("pruned")
    metrics = metrics_of(folder)
    found = metrics.get(metric, number(record.get("result")) if not metrics else None)
    if not isinstance(found, int | float) or isinstance(found, bool):
        kind = (record.get("not_numbers") or {}).get(metric)
        told = ", ".join(map(repr, sorted(metrics))) or "none"
        given = "" if kind is None else f", but a {kind}"
        return Outcome("failed", reason=f"The run gives no number as metric {metric!r}{given}. It gives: {told}.")
    if not math.isfinite(value := float(found)):
        return Outcome("failed", reason=f"The metric {metric!r} is {'NaN' if math.isnan(value) else value}.")
    return Outcome("finished", value)


def metrics_of(folder: Path) -> Mapping[str, Any]:
    """The last metrics of a run, one that is on its way too; its lock is not touched, which it may be about to take.

    Args:
        folder: the run's.

    Returns:
        The metrics by name; empty where there are none.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return {}

    def read(name: str, tail: int) -> bytes:
        content = (folder / name).read_bytes()
        return content[-tail:] if tail >= 0 else content

    return described(folder, names, read, lambda _: True).metrics


def _record(folder: Path) -> Mapping[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return record if isinstance(record, dict) else {}
