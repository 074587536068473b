"""A table of runs: which columns it has, in what order its rows are, and what of it fits on a screen."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainlab.cli.output import duration_text, local_time, printable, short, write_lines, write_table
from trainlab.errors import InvalidValueError, did_you_mean
from trainlab.runs.comparing import flat
from trainlab.runs.listing import RunInfo, as_path, is_url
from trainlab.runs.where import MOMENTS, moment, value_of

__all__ = ["cells", "check_known", "default_columns", "heading", "shown_paths", "sort_runs", "write_runs"]

# Of names that differ from run to run, a table does not show more.
_MOST_NAMES = 12
_FIXED = ("run", "status", "started", "duration")
_KEPT = 2  # of the first columns, also where a screen is too narrow for them


def sort_runs(runs: list[RunInfo], key: str | None, *, reverse: bool) -> list[RunInfo]:
    """Put runs into an order; those without the value come last, either way.

    Args:
        runs: The runs.
        key: A name such as ``metrics.accuracy``; None for the newest first.
        reverse: Whether to turn the order around.

    Returns:
        The runs, sorted.

    Raises:
        InvalidValueError: No run has such a name.
    """
    value = value_of(key or "started")
    is_moment = key is None or key in MOMENTS
    known: list[tuple[Any, RunInfo]] = []
    unknown: list[tuple[Any, RunInfo]] = []
    for run in runs:
        found = value(run)
        if is_moment:
            at = moment(found)
            found = None if at is None else at.timestamp()
        is_known = found is not None and not (isinstance(found, float) and math.isnan(found))
        (known if is_known else unknown).append((_comparable(found), run))
    known.sort(key=lambda pair: pair[0], reverse=reverse != (key is None))
    return [run for _, run in [*known, *unknown]]


def check_known(runs: Sequence[RunInfo], key: str) -> None:
    """Refuse the name of a parameter or a metric that none of some runs has.

    Args:
        runs: The runs.
        key: A name such as ``metrics.accuracy``.

    Raises:
        InvalidValueError: There are runs, and none has it.
    """
    top, _, below = key.partition(".")
    value = value_of(key)
    if top not in ("params", "metrics") or not below or not runs or any(value(run) is not None for run in runs):
        return
    known = sorted({name for run in runs for name in flat(getattr(run, top))})
    there = ", ".join(f"{top}.{name}" for name in known[:20])
    meant = did_you_mean(below, known).replace("mean ", f"mean {top}.", 1) or f" There are: {there or 'none'}."
    raise InvalidValueError(f"None of {len(runs)} runs has {key!r}.{meant}")


def _comparable(value: Any) -> tuple[int, Any]:
    if isinstance(value, int | float):
        return (0, value)
    return (1, value) if isinstance(value, str) else (2, str(value))


def default_columns(runs: Sequence[RunInfo]) -> list[str]:
    """Choose what a table of runs shows: what they are, their metrics, and the parameters in which they differ.

    Args:
        runs: The runs.

    Returns:
        The columns' names.
    """
    metrics: Counter[str] = Counter()
    params: Counter[str] = Counter()
    first: dict[str, Any] = {}
    several: set[str] = set()
    tagged = False
    for run in runs:
        metrics.update(list(flat(run.metrics)))
        tagged = tagged or bool(run.tags)
        of_run = flat(run.params)
        params.update(list(of_run))
        for name, value in of_run.items():
            if name not in several and first.setdefault(name, value) != value:
                several.add(name)
    with_params = sum(1 for run in runs if run.params)
    named = [f"metrics.{name}" for name, _ in metrics.most_common()]
    named += [f"params.{name}" for name in first if name in several]
    named += [f"params.{name}" for name in first if name not in several and params[name] < with_params]
    return [*_FIXED, *(["tags"] if tagged else []), *named[:_MOST_NAMES]]


def cells(runs: Sequence[RunInfo], columns: Sequence[str]) -> list[list[Any]]:
    """Look up what a table holds.

    Args:
        runs: The runs, one a row.
        columns: Names such as ``status`` or ``params.lr``; "run" is the path.

    Returns:
        The values, None where a run has none.

    Raises:
        InvalidValueError: No run has such a name.
    """
    values = [value_of("path" if column == "run" else column) for column in columns]
    return [[value(run) for value in values] for run in runs]


def write_runs(runs: Sequence[RunInfo], place: str | None, columns: Sequence[str] | None, width: int | None) -> None:
    """Write a table of runs.

    Args:
        runs: The runs, one a row.
        place: Where they were looked for; paths are shown from there on. None: whole ones.
        columns: Which columns it has. Default None: those of ``default_columns`` that fit.
        width: How wide it may be; None: as wide as it gets.

    Raises:
        InvalidValueError: No run has one of the columns.
    """
    chosen = list(columns or default_columns(runs))
    rows = [heading(chosen)]
    paths = [str(run.path) for run in runs] if place is None else shown_paths(runs, place)
    for path, values in zip(paths, cells(runs, chosen), strict=True):
        rows.append([path if name == "run" else _text(name, value) for name, value in zip(chosen, values, strict=True)])
    fitting = len(chosen) if columns is not None else _fitting(rows, width)
    write_table([row[:fitting] for row in rows], width)
    if fitting < len(chosen):
        write_lines([f"Not shown, for want of room: {', '.join(chosen[fitting:])}. See --columns, or --csv."])
    write_lines(f"damaged: {run.reason}" for run in runs if run.reason)


def heading(columns: Sequence[str]) -> list[str]:
    """The head of each column.

    Args:
        columns: Their names.

    Returns:
        The heads.
    """
    return [column.removeprefix("metrics.").removeprefix("params.").upper() for column in columns]


def shown_paths(runs: Sequence[RunInfo], place: str) -> list[str]:
    """How runs are called below a place.

    Args:
        runs: The runs.
        place: A folder, or a URL.

    Returns:
        Their paths from there on.
    """
    above = place.rstrip("/") if is_url(place) else as_path(place)
    paths = [str(run.path) for run in runs]
    return [path[len(above) + 1 :] if path.startswith(f"{above}/") else path for path in paths]


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in ("started", "ended"):
        return local_time(value)
    if name == "duration":
        return duration_text(value)
    if isinstance(value, list | tuple):
        return " ".join(map(short, value))
    return short(value)


def _fitting(rows: Sequence[Sequence[str]], width: int | None) -> int:
    """How many columns fit."""
    if width is None:
        return len(rows[0])
    used = -2
    for index, column in enumerate(zip(*rows, strict=True)):
        used += 2 + max(len(printable(cell)) for cell in column)
        if used > width and index >= _KEPT:
            return index
    return len(rows[0])
