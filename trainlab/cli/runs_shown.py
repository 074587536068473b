"""``trainlab runs show``: all that is known of one run."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from trainlab.cli.output import duration_text, local_time, short, size_text, write_json, write_lines, write_table
from trainlab.cli.run_names import NamedRuns
from trainlab.runs.comparing import flat
from trainlab.runs.contents import RunFiles
from trainlab.runs.listing import RunInfo
from trainlab.runs.names import PATCH

__all__ = ["show"]

_MOST_FILES = 40


def show(given: argparse.Namespace) -> int:
    """Tell a run.

    Args:
        given: The command's arguments.

    Returns:
        The exit status.
    """
    options = dict(given.storage_option)
    run = NamedRuns(given.root, options).readable(given.run_name)
    files = RunFiles(run, options)
    sizes, checkpoints = files.sizes(), files.checkpoints()
    if given.json:
        write_json(_told(run, sizes, checkpoints))
        return 0
    write_lines([str(run.path)])
    _section("", _head(run))
    _section("params", [(name, short(value), _origin(run, name)) for name, value in flat(run.params).items()])
    _section("metrics", [(name, short(value)) for name, value in flat(run.metrics).items()])
    _section("starts", [_start_row(start) for start in run.record.get("starts", [])])
    of_versions = run.record.get("versions")
    _section("versions", [(name, short(value)) for name, value in (of_versions or {}).items()])
    where = f" in {files.checkpoints_elsewhere}" if files.checkpoints_elsewhere else ""
    _section(f"checkpoints{where}", [(name, size_text(size)) for name, size in checkpoints.items()])
    _section("files", _file_rows(sizes))
    if PATCH in sizes:
        write_lines([f"What the program differed in from its commit is in {run.path}/{PATCH}."])
    return 0


def _told(run: RunInfo, sizes: Mapping[str, int], checkpoints: Mapping[str, int]) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "name": run.name,
        "status": run.status,
        "started": run.started,
        "ended": run.ended,
        "duration": run.duration,
        "tags": run.tags,
        "params": run.params,
        "metrics": run.metrics,
        "record": run.record,
        "checkpoints": checkpoints,
        "files": sizes,
    }


def _head(run: RunInfo) -> list[tuple[str, str]]:
    record = run.record
    git = record.get("git") or {}
    commit = f"{git.get('commit') or git.get('problem')}{', with changes' if git.get('dirty') else ''}" if git else ""
    experiment = record.get("experiment") or {}
    reason = str(record.get("stop_reason") or "")
    command = record.get("argv") or record.get("command") or []
    rows = [
        ("name", run.name),
        ("status", f"{run.status}{reason and f' ({reason})'}"),
        ("error", str(record.get("error") or "")),
        ("tags", " ".join(run.tags)),
        ("started", local_time(run.started or "")),
        ("ended", local_time(run.ended or "")),
        ("duration", "" if run.duration is None else duration_text(run.duration)),
        ("experiment", ":".join(filter(None, (experiment.get("file"), experiment.get("qualname"))))),
        ("command", shlex.join(map(str, command)) if isinstance(command, list) else str(command)),
        ("in", str(record.get("cwd") or "")),
        ("commit", commit),
        ("seed", str(record.get("random_seed", record.get("seed", "")))),
        ("host", str(record.get("host") or "")),
        ("device", str(record.get("device") or "")),
        ("ranks", str(record.get("ranks") or "")),
        ("batches", str(record.get("batches_trained") or "")),
        ("result", short(record["result"]) if record.get("result") is not None else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _origin(run: RunInfo, name: str) -> str:
    origins = run.record.get("origins")
    return str(origins.get(name, "")) if isinstance(origins, Mapping) else ""


def _start_row(start: Mapping[str, Any]) -> tuple[str, ...]:
    git = start.get("git") or {}
    commit = str(git.get("commit") or "")[:12]
    return (
        local_time(str(start.get("started", ""))),
        str(start.get("status", "")),
        local_time(str(start.get("ended", ""))),
        f"process {start.get('pid')} on {start.get('host')}",
        commit,
    )


def _file_rows(sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    """The files, those of each folder together."""
    rows: dict[str, tuple[int, int]] = {}
    for name, size in sizes.items():
        top, slash, _ = name.partition("/")
        number, total = rows.get(top + slash, (0, 0))
        rows[top + slash] = (number + 1, total + size)
    told = [
        (f"{name} ({number} files)" if name.endswith("/") else name, size_text(total))
        for name, (number, total) in rows.items()
    ]
    more = len(told) - _MOST_FILES
    return told if more <= 0 else [*told[:_MOST_FILES], (f"and {more} more", "")]


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    if title:
        write_lines([title])
    indented = [(f"  {row[0]}", *row[1:]) if title else row for row in rows]
    write_table(indented)
