"""Waiting for jobs with a line that says how they are."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from trainlab.launch.slurm_queue import ENDED

if TYPE_CHECKING:
    from rich.console import Console

    from trainlab.launch.job import JobHandle

__all__ = ["wait_visibly"]

_WIDTH = 60


def wait_visibly(handles: "Sequence[JobHandle[Any]]", console: "Console | None" = None) -> list[str]:
    """Wait for jobs; on a terminal a line is kept up to date, elsewhere each change of state is told.

    Args:
        handles: the jobs.
        console: where to tell it. Default None: standard error.

    Returns:
        The states that they ended in.

    Raises:
        KeyboardInterrupt: Ctrl-C; the jobs of SLURM go on, and how to reach them is told.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    try:
        return _shown(handles, console) if console.is_terminal else _told(handles, console)
    except KeyboardInterrupt:
        _say_goodbye(handles, console)
        raise


def _shown(handles: "Sequence[JobHandle[Any]]", console: "Console") -> list[str]:
    from rich.markup import escape

    with console.status("") as status:
        start = time.monotonic()
        for states in _watched(handles):
            elapsed = timedelta(seconds=int(time.monotonic() - start))
            status.update(f"{escape(_summary(handles, states))} · {elapsed}{_last_line(handles, states)}")
    console.print(_summary(handles, states), markup=False, highlight=False)
    return states


def _told(handles: "Sequence[JobHandle[Any]]", console: "Console") -> list[str]:
    before, states = "", [""]
    for states in _watched(handles):
        if (summary := _summary(handles, states)) != before:
            console.print(summary, markup=False, highlight=False, soft_wrap=True)
        before = summary
    return states


def _watched(handles: "Sequence[JobHandle[Any]]") -> Iterator[list[str]]:
    """The states of all jobs, about once a second, until all have ended."""
    watches = [handle.watch() for handle in handles]
    states = [""] * len(handles)
    while any(state not in ENDED for state in states):
        states = [state if state in ENDED else next(watch, state) for watch, state in zip(watches, states, strict=True)]
        yield list(states)


def _summary(handles: "Sequence[JobHandle[Any]]", states: Sequence[str]) -> str:
    if len(handles) == 1:
        return f"Job {handles[0].job_id} ({handles[0].name}): {handles[0].told(states[0]) or 'SLURM does not answer'}"
    told = [handle.told(state) for handle, state in zip(handles, states, strict=True)]
    counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(told).items()))
    return f"Jobs {handles[0].job_id} to {handles[-1].job_id} ({handles[0].name}): {counts}"


def _last_line(handles: "Sequence[JobHandle[Any]]", states: Sequence[str]) -> str:
    from rich.markup import escape

    if len(handles) > 1 or states[0] != "RUNNING":
        return ""
    lines = handles[0].logs().rstrip().splitlines()[-1:]
    return f" · [dim]{escape(lines[0][:_WIDTH])}" if lines else ""


def _say_goodbye(handles: "Sequence[JobHandle[Any]]", console: "Console") -> None:
    first = handles[0]
    if first.is_local:
        text = f"Interrupted: job {first.job_id} runs on this machine, and is cancelled."
        for handle in handles:
            handle.cancel()
    else:
        where = first.folder if len(handles) == 1 else first.folder.parent / "…"
        main = first.job_id.partition("_")[0]
        text = (
            f"Not waiting any more; job {main} goes on. Reach it with trainlab.launch.JobHandle.load({str(where)!r}), "
            f"or cancel it with `scancel {main}`."
        )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
