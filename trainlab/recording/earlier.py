"""Files of an earlier process: what of them was recorded before a count, and whether a run may begin them anew."""

import importlib
import json
import logging
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from trainlab.errors import InvalidStateError
from trainlab.runs.current import current_run

__all__ = ["keep_before", "refuse_to_begin_anew"]

_logger = logging.getLogger("trainlab.recording")
_CHECKPOINT = re.compile(r"checkpoint--?[0-9]+")
# An event's length and its checksum come before it, another checksum behind it.
_HEADER, _FOOTER = 12, 4


def keep_before(path: Path, count: int) -> int:
    """Keep of a file of a series what was recorded before a count.

    Args:
        path: ``scalars.csv``, ``scalars.jsonl`` or an event file, in which steps may come in any order.
        count: the count.

    Returns:
        The bytes that the file has now.
    """
    content = path.read_bytes()
    kept, begin, keeps = bytearray(), 0, True
    for end, step in _steps_of_events(content) if "tfevents" in path.name else _steps_of_lines(content):
        keeps = step < count if step is not None else keeps
        kept += content[begin:end] if keeps else b""
        begin = end
    if kept != content:
        unfinished = path.with_name(".cut")  # which no backend takes for its own
        unfinished.write_bytes(kept)
        unfinished.replace(path)
        _logger.info("Cut %s from %d to %d bytes: the rest is recorded anew.", path, len(content), len(kept))
    return len(kept)


def _steps_of_lines(content: bytes) -> Iterator[tuple[int, int | None]]:
    """Where each line ends, with its step; None for a header, and for the rest of a tag of several lines."""
    end = quotes = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        yield end, None if quotes % 2 else _step_of_line(line)
        quotes += 0 if line.startswith(b"{") else line.count(b'"')


def _step_of_line(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"] if line.startswith(b"{") else line.partition(b",")[0]
        return int(step)
    except (ValueError, KeyError, TypeError):
        return None


def _steps_of_events(content: bytes) -> Iterator[tuple[int, int | None]]:
    """Where each event ends, with its step; None for the file's version. One that is torn is left out."""
    event_class = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    begin = 0
    while begin + _HEADER <= len(content):
        (length,) = struct.unpack_from("<Q", content, begin)
        end = begin + _HEADER + length + _FOOTER
        if end > len(content):
            return
        event = event_class.FromString(content[begin + _HEADER : end - _FOOTER])
        yield end, None if event.HasField("file_version") else event.step
        begin = end


def refuse_to_begin_anew(folder: Path) -> None:
    """Refuse to begin the files of a run anew that has checkpoints, unless the run was told where to go on.

    Args:
        folder: where a recorder writes.

    Raises:
        InvalidStateError: the run was started again in its folder, and not to go on.
    """
    run = current_run()
    if run is None or run.folder is None or not folder.is_relative_to(run.output_dir):
        return
    if not run.folder.continues or run.folder.resumes or run.params.get("checkpoint") is not None:
        return
    made = [path.parent.name for path in run.output_dir.glob("checkpoint-*/manifest.json")]
    if any(map(_CHECKPOINT.fullmatch, made)):
        raise InvalidStateError(
            "This run was begun earlier and has checkpoints; begun anew here, it would lose what it recorded before "
            f"them. Received: {run.output_dir}. Nothing was changed. Go on with it by `trainlab resume`, or with "
            "TRAINLAB_RESUME=1 in the environment; or begin anew in another folder."
        )
