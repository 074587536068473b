"""What the subcommands write: lines, tables, JSON and CSV, and numbers, sizes and times as a person reads them."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from trainlab.runs.plain_numbers import standard_json

__all__ = [
    "duration_text",
    "local_time",
    "plain",
    "printable",
    "short",
    "size_text",
    "write_csv",
    "write_json",
    "write_lines",
    "write_table",
]

_LONGEST = 200


def write_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output.

    Args:
        lines: Each without its end; what would confuse a terminal is written as an escape.
    """
    for line in lines:
        sys.stdout.write(printable(line) + "\n")


def write_table(rows: Sequence[Sequence[str]], width: int | None = None) -> None:
    """Write rows with their columns below each other.

    Args:
        rows: The cells' texts; every row has as many.
        width: How wide a line may be; what is longer is cut. Default None: any width.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        sys.stdout.write((line if width is None or len(line) <= width else f"{line[: width - 1]}…") + "\n")


def write_json(value: Any) -> None:
    """Write a value as standard JSON.

    Args:
        value: Anything; see ``plain``.
    """
    sys.stdout.write(json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def write_csv(rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV.

    Args:
        rows: Cells of any kind; None is an empty one, lists and mappings are JSON. A text that a spreadsheet would take
            for a formula comes after an apostrophe; on a terminal, what would confuse it is written as an escape.
    """
    import csv

    is_seen = sys.stdout.isatty()
    shown = ([_csv_cell(cell, is_seen=is_seen) for cell in row] for row in rows)
    csv.writer(sys.stdout, lineterminator="\n").writerows(shown)


def _csv_cell(value: Any, *, is_seen: bool) -> Any:
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(plain(value), ensure_ascii=False)
    if not isinstance(value, str):
        return value
    # Source: OWASP, "CSV Injection".
    text = f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(value) else value
    return printable(text) if is_seen else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plain(value: Any) -> Any:
    """Turn a value into what JSON can have.

    Args:
        value: Nested mappings, lists and scalars.

    Returns:
        The same; numbers that are not finite or huge, as in a run's record, and whatever else JSON lacks, as text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return standard_json(value) if value is None or type(value) in (bool, int, float, str) else str(value)


def printable(text: str) -> str:
    """Make a text safe for a terminal: what is in a file may have been written to confuse one.

    Args:
        text: Any.

    Returns:
        The same with what cannot be printed as escapes.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def short(value: Any) -> str:
    """Tell a value in at most 200 characters.

    Args:
        value: Any.

    Returns:
        Its text; a float with six digits.
    """
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def size_text(size: int) -> str:
    """Tell a number of bytes.

    Args:
        size: It.

    Returns:
        Such as "1.5 MB".
    """
    if size < 1000:
        return f"{size} B"
    power = min(int(math.log10(size)) // 3, 5)
    return f"{size / 1000**power:.1f} {' kMGTP'[power]}B"


def local_time(moment: str) -> str:
    """Tell a moment in this machine's time zone.

    Args:
        moment: ISO 8601.

    Returns:
        Such as "2026-05-01 12:00:00"; what is no moment as it was.
    """
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return moment


def duration_text(seconds: float) -> str:
    """Tell how long something took.

    Args:
        seconds: How many.

    Returns:
        Such as "41 s", "12:05" or "3 d 04:00:00".
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    days, rest = divmod(whole, 86400)
    minutes, second = divmod(rest, 60)
    hours, minute = divmod(minutes, 60)
    if not days and not hours:
        return f"{minute}:{second:02}"
    return f"{f'{days} d ' if days else ''}{hours:02}:{minute:02}:{second:02}"
