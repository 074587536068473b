"""``trainlab runs list|show|compare|tag|rm``: what was run, with what, and what came of it."""

import argparse
import gc
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trainlab.cli import runs_changed, runs_compared, runs_shown
from trainlab.cli.output import write_csv, write_json, write_lines
from trainlab.cli.places import add_storage_options
from trainlab.cli.run_names import RUN, add_root
from trainlab.cli.runs_table import cells, check_known, sort_runs, write_runs
from trainlab.cli.subcommands import refuse_unknown
from trainlab.runs.comparing import flat
from trainlab.runs.ending import STATUSES
from trainlab.runs.listing import RunInfo, each_run, is_url
from trainlab.runs.where import filter_of

__all__ = ["main", "parser"]

_DESCRIPTION = """\
Look after runs: those below a folder, or below any URL that fsspec knows."""
_WHERE = """\
only the runs of which this is true: "params.lr < 1e-3 and metrics.accuracy > .9". There are params.NAME, metrics.NAME,
status, name, path, tags, started, ended, duration (seconds), git.commit, git.dirty, host, seed, error, result,
stop_reason and batches_trained; < <= > >= == != in, not in, and, or, not. A comparison with what a run does not have
is false"""
_STATUSES = (*STATUSES, "crashed", "damaged")
_IN_CSV = ("path", "name", "status", "started", "ended", "duration", "tags")


def main(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: What follows ``trainlab runs``.

    Returns:
        The exit status.
    """
    made = parser()
    refuse_unknown(made, arguments, made.get_default("commands"))
    given = made.parse_args(runs_changed.with_tags_apart(arguments))
    status: int = given.run(given)
    return status


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command, which names those below it as the default of "commands"."""
    made = argparse.ArgumentParser(prog="trainlab runs", description=_DESCRIPTION, allow_abbrev=False)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    how: dict[str, Any] = {"allow_abbrev": False}
    _add_list(commands.add_parser("list", help="list runs", **how))
    show = commands.add_parser("show", help="tell all of a run", **how)
    show.add_argument("run_name", metavar="RUN", help=RUN)
    show.add_argument("--json", action="store_true", help="write JSON")
    add_root(show)
    show.set_defaults(run=runs_shown.show)
    runs_compared.add_compare(commands.add_parser("compare", help="tell in what runs differ", **how))
    runs_changed.add_tag(commands.add_parser("tag", help="give tags to runs, and take them away", **how))
    runs_changed.add_rm(commands.add_parser("rm", help="remove runs for ever", **how), _WHERE)
    made.set_defaults(commands=list(commands.choices))
    return made


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="PLACE", nargs="?", default="runs", help="folder or URL (default: runs)")
    parser.add_argument("--where", metavar="FILTER", help=_WHERE)
    parser.add_argument("--status", action="append", default=[], choices=_STATUSES, help="only these; may be repeated")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="only runs with all of these tags")
    parser.add_argument("--sort", metavar="NAME", help="such as metrics.accuracy (default: the newest first)")
    parser.add_argument("--reverse", action="store_true", help="turn the order around")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N")
    parser.add_argument("--columns", type=_names, metavar="A,B", help="such as run,status,params.lr,metrics.accuracy")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="write JSON")
    form.add_argument("--csv", action="store_true", help="write CSV")
    add_storage_options(parser)
    parser.set_defaults(run=_list)


def _list(given: argparse.Namespace) -> int:
    is_meant = filter_of(given.where) if given.where is not None else None
    columns = given.columns
    cells([], columns or [])  # wrong names are told before anything is read
    sort_runs([], given.sort, reverse=False)
    with _without_collection():
        runs, count = _chosen(given, is_meant)
    runs = sort_runs(runs, given.sort, reverse=given.reverse)[: given.limit]
    if given.json:
        write_json([_told(run, columns) for run in runs])
    elif given.csv:
        _write_csv(runs, columns)
    elif runs:
        write_runs(runs, given.place, columns, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    else:
        write_lines([f"There are no runs in {given.place}." if not count else f"None of {count} runs is meant."])
    return 0


def _chosen(given: argparse.Namespace, is_meant: Callable[[RunInfo], bool] | None) -> tuple[list[RunInfo], int]:
    """The runs that are meant, and how many there are."""
    found: Iterable[RunInfo] = each_run(given.place, dict(given.storage_option) if is_url(given.place) else None)
    if given.sort is not None:
        found = list(found)
        check_known(found, given.sort)
    count, runs = 0, []
    for run in found:
        count += 1
        if (
            (not given.status or run.status in given.status)
            and set(given.tag) <= set(run.tags)
            and (is_meant is None or is_meant(run))
        ):
            runs.append(run)
    return runs, count


@contextmanager
def _without_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()  # of the many objects of many records none is garbage, and to find that out takes long
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _told(run: RunInfo, columns: Sequence[str] | None) -> dict[str, Any]:
    if columns is not None:
        return dict(zip(columns, cells([run], columns)[0], strict=True))
    told = dict(zip(_IN_CSV, cells([run], _IN_CSV)[0], strict=True))
    told |= {"params": run.params, "metrics": run.metrics, "git": run.record.get("git")}
    return told | ({"reason": run.reason} if run.reason else {})


def _write_csv(runs: Sequence[RunInfo], columns: Sequence[str] | None) -> None:
    if columns is None:
        params = dict.fromkeys(f"params.{name}" for run in runs for name in flat(run.params))
        metrics = dict.fromkeys(f"metrics.{name}" for run in runs for name in flat(run.metrics))
        columns = [*_IN_CSV, *params, *metrics]
    rows = cells(runs, columns)
    tags = [index for index, name in enumerate(columns) if name == "tags"]
    for row in rows:
        for index in tags:
            row[index] = " ".join(row[index])
    write_csv([columns, *rows])


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no name in it")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number of at least 1: {text!r}")
    return int(text)
