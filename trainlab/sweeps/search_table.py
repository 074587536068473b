"""How a search is shown: a table that is kept up to date on a terminal, lines elsewhere, or nothing."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from trainlab.sweeps.live_table import LiveTable
from trainlab.sweeps.search_result import best_of, folder_name
from trainlab.sweeps.trials import SearchTrial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["SearchTable", "params_text"]

_AROUND = 7
_STYLES = {"running": "cyan", "finished": "green", "pruned": "yellow", "failed": "red"}


class SearchTable(LiveTable):
    """Tells how a search is, until the end of its ``with`` block.

    Args:
        title: what the search is called.
        metric: its metric.
        smaller_is_better: whether a smaller value of it is better.
        trials: how many there are to be.
        console: where to show it. Default None: standard error.
        is_shown: False for nothing at all. Default True.
    """

    def __init__(
        self,
        title: str,
        metric: str,
        *,
        smaller_is_better: bool,
        trials: int,
        console: "Console | None" = None,
        is_shown: bool = True,
    ) -> None:
        super().__init__(console, is_shown=is_shown)
        self._title, self._metric, self._trials = title, metric, trials
        self._smaller_is_better = smaller_is_better
        self._last: Sequence[SearchTrial] = ()
        # What was told in lines: the state of each trial, by its number.
        self._told: dict[int, str] = {}

    def _whole(self) -> "Table":
        return self._table(self._last, self._last)

    def refresh(self, trials: Sequence[SearchTrial]) -> None:
        """Tell what is new.

        Args:
            trials: all, as they are now.
        """
        self._last = trials
        if self._live is not None:
            self._live.update(self._table(trials, self._fitting(trials)), refresh=True)
            return
        # One that has no parameters yet begins this instant.
        known = [trial for trial in trials if trial.params or trial.state != "running"]
        new = [trial for trial in known if self._told.get(trial.number) != trial.state]
        is_first = not self._told
        self._told.update((trial.number, trial.state) for trial in new)
        done = sum(trial.state != "running" for trial in trials)
        if is_first and done:
            self.say(f"{done} of {self._all(trials)} trials are done already")
            new = [trial for trial in new if trial.state == "running"]
        for trial in new:
            self.say(self._line(trial, trials, done))

    def _line(self, trial: SearchTrial, trials: Sequence[SearchTrial], done: int) -> str:
        name = folder_name(trial.number)
        if trial.state == "running":
            return f"{name}: {'started' if len(trial.attempts) == 1 else 'started again'}: {params_text(trial.params)}"
        told = f" {self._metric}={trial.value:.6g}" if trial.value is not None else ""
        why = f": {trial.reason.splitlines()[0]}" if trial.reason else ""
        best = best_of(trials, smaller_is_better=self._smaller_is_better)
        first = "" if best is None else f", best {best.value:.6g} by {folder_name(best.number)}"
        return f"{name}: {trial.state}{told}{why} ({done} of {self._all(trials)}{first})"

    def _all(self, trials: Sequence[SearchTrial]) -> int:
        """How many there are to be; a call before may have asked for more."""
        return max(self._trials, len(trials))

    def _fitting(self, trials: Sequence[SearchTrial]) -> Sequence[SearchTrial]:
        """The rows that the terminal has place for: what runs, the best ones, and what came last."""
        most = max(1, self._console.height - _AROUND)
        if len(trials) <= most:
            return trials
        sign = 1 if self._smaller_is_better else -1
        values = [(trial.number, trial.value) for trial in trials if trial.state == "finished"]
        known = sorted((sign * value, number) for number, value in values if value is not None)
        rank = {number: place for place, (_, number) in enumerate(known)}
        order = sorted(
            trials, key=lambda one: (one.state != "running", rank.get(one.number, most) >= most // 2, -one.number)
        )
        chosen = {trial.number for trial in order[:most]}
        return [trial for trial in trials if trial.number in chosen]

    def _table(self, trials: Sequence[SearchTrial], rows: Sequence[SearchTrial]) -> "Table":
        from rich.markup import escape
        from rich.table import Table

        best = best_of(trials, smaller_is_better=self._smaller_is_better)
        counts = Counter(trial.state for trial in trials)
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        span = timedelta(seconds=round(time.monotonic() - self._begun))
        table = Table(title=escape(f"{self._title} · {told or 'begins'} of {self._all(trials)} · {span}"))
        for column in ("trial", "parameters", "state", self._metric, ""):
            table.add_column(escape(column), overflow="fold")
        for trial in rows:
            value = "" if trial.value is None else f"{trial.value:.6g}"
            mark = "best" if best is not None and trial.number == best.number else ""
            again = f" ({len(trial.attempts)} starts)" if len(trial.attempts) > 1 else ""
            cells = [str(trial.number), params_text(trial.params), trial.state + again, value, mark]
            table.add_row(*map(escape, cells), style=_STYLES[trial.state])
        if left := len(trials) - len(rows):
            table.caption = f"and {left} more"
        return table


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters in a few words.

    Args:
        params: by name.

    Returns:
        Such as "lr=0.001, depth=2".
    """
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items()
    )
