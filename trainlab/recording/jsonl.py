"""JsonlBackend: the run's series as one JSON object a line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.recording.line_file import LineFile
from trainlab.recording.record import Record

__all__ = ["JsonlBackend"]


class JsonlBackend:
    """Writes each record as a line of strict JSON; NaN and infinities are the strings "NaN", "Infinity", "-Infinity".

    Args:
        path: the file, made with the first record.
    """

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)

    def write(self, record: Record) -> None:
        """Append a record and hand it to the operating system, so that ``tail -f`` shows it.

        Args:
            record: the record.
        """
        content: dict[str, Any]
        if record.kind == "recorded":
            content = {"step": record.batch, "time": record.time, "scalars": _plain(record.metrics)}
        else:
            content = {
                "kind": record.kind,
                "batch": record.batch,
                "epoch": record.epoch,
                "records": record.records,
                "time": record.time,
                "metrics": _plain(record.metrics),
                "optim": _plain(record.optim),
                "perf": _plain(record.perf),
            }
        self._lines.append(json.dumps(content, allow_nan=False, ensure_ascii=False))
        self._lines.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._lines.flush()

    def files(self) -> list[Path]:
        """List the file, if there is one.

        Returns:
            Its path, or nothing.
        """
        return self._lines.files()

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        self._lines.close()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _non_finite(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # arrays, tensors and NumPy's numbers
        return _plain(value.tolist())
    return str(value)


def _non_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
