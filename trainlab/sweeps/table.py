"""How a sweep is shown: a table that is kept up to date on a terminal, lines elsewhere, or nothing."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.runs.listing import read_unlocked
from trainlab.sweeps.live_table import LiveTable
from trainlab.sweeps.results import SweepRun

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trainlab.sweeps.pool import Running
    from trainlab.sweeps.sweep_folder import Entry

__all__ = ["Row", "SweepTable", "metrics_text"]

# Of a terminal's height: title, head, frame, and where the cursor is.
_AROUND = 7
_MOST_PARAMETERS = 6
_MOST_METRICS = 3
_ORDER = {"running": 0, "submitted": 0, "failed": 1, "crashed": 1, "interrupted": 1, "preempted": 1, "waiting": 3}
_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "crashed": "red", "waiting": "dim"}


@dataclass
class Row:
    """What is shown of one run.

    Attributes:
        label: its number and what differs.
        differing: the parameters that do.
        folder: its folder.
        state: waiting, running, or the run's status.
        metrics: the last ones known.
        gpus: those that its process sees.
        seconds: how long its process took; None where there was none.
        ended: which one it was to end; 0 before.
    """

    label: str
    differing: Mapping[str, Any]
    folder: Path
    state: str = "waiting"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    seconds: float | None = None
    ended: int = 0


class SweepTable(LiveTable):
    """Tells how the runs of a sweep are, until the end of its ``with`` block.

    Args:
        title: what the sweep is called.
        entries: its runs.
        console: where to show it. Default None: standard error.
        is_shown: False for nothing at all. Default True.
    """

    def __init__(
        self, title: str, entries: Sequence["Entry"], *, console: "Console | None" = None, is_shown: bool = True
    ) -> None:
        super().__init__(console, is_shown=is_shown)
        self._title = title
        self._rows = {one.key: Row(one.label, one.member.differing, one.folder) for one in entries}
        self._ended = 0

    def _whole(self) -> "Table":
        return self._table(list(self._rows.values()))

    def started(self, key: str, gpus: tuple[str, ...] = ()) -> None:
        """Note that a run was started.

        Args:
            key: the run's.
            gpus: those that it sees.
        """
        row = self._rows[key]
        row.state, row.gpus = "running", gpus
        if self._live is None:
            self.say(f"{row.label}: started" + (f" on GPU {', '.join(gpus)}" if gpus else ""))

    def ended(self, run: SweepRun, seconds: float | None = None) -> None:
        """Note that a run has ended, or had before.

        Args:
            run: what came of it.
            seconds: how long its process took. Default None: it had none.
        """
        row = self._rows[run.key]
        self._ended += 1
        row.state, row.metrics, row.seconds, row.ended = run.status, run.metrics, seconds, self._ended
        if self._live is not None or run.is_skipped:
            return
        how = "" if seconds is None else f" after {_span(seconds)}"
        more = run.reason if not run.is_finished else metrics_text(run.metrics)
        done = sum(row.ended > 0 for row in self._rows.values())
        self.say(f"{row.label}: {run.status}{how}{f': {more}' if more else ''} ({done} of {len(self._rows)})")

    def refresh(self, running: Iterable["Running"]) -> None:
        """Draw the table anew; nothing where there is none.

        Args:
            running: what runs, whose metrics are looked up.
        """
        if self._live is None:
            return
        for one in running:
            row = self._rows[one.job.key]
            found = read_unlocked(row.folder)
            row.metrics, row.seconds = {} if found is None else found.metrics, time.monotonic() - one.started
        self._live.update(self._table(self._fitting()), refresh=True)

    def _fitting(self) -> list[Row]:
        """The rows that the terminal has place for: what runs, what failed, what has ended last, what comes next."""
        rows = list(self._rows.values())
        most = max(1, self._console.height - _AROUND)
        if len(rows) <= most:
            return rows
        first = sorted(rows, key=lambda row: (_ORDER.get(row.state, 2), -row.ended))[:most]
        chosen = set(map(id, first))
        return [row for row in rows if id(row) in chosen]

    def _table(self, rows: Sequence[Row]) -> "Table":
        from rich.markup import escape
        from rich.table import Table

        counts = Counter(row.state for row in self._rows.values())
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        left = len(self._rows) - len(rows)
        title = f"{self._title} · {told} · {_span(time.monotonic() - self._begun)}"
        table = Table(title=escape(title), min_width=min(len(title), self._console.width))  # a title has its table's
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row.differing))
        shown = names if len(names) <= _MOST_PARAMETERS else []
        has_gpus = any(row.gpus for row in self._rows.values())
        for name in ["run", *shown, "state", "metrics", "time", *(["GPU"] if has_gpus else [])]:
            table.add_column(escape(name), overflow="fold", justify="right" if name == "time" else "left")
        for row in rows:
            # Where there are too many for columns, the folder's name has what there is place for.
            number = row.label.partition("_")[0] if len(shown) == len(names) else row.label
            values = [str(row.differing.get(name, "")) for name in shown]
            time_text = "" if row.seconds is None else _span(row.seconds)
            cells = [number, *values, row.state, metrics_text(row.metrics), time_text, ", ".join(row.gpus)]
            style = _STYLES.get(row.state)
            table.add_row(*map(escape, cells if has_gpus else cells[:-1]), style=style)
        if left:
            table.caption = f"and {left} more"
        return table


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """The first metrics in a few words.

    Args:
        metrics: by name.

    Returns:
        Such as "accuracy=0.93 loss=0.21".
    """
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return " ".join(f"{name}={value:.4g}" for name, value in list(numbers.items())[:_MOST_METRICS])


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
