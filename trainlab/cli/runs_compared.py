"""``trainlab runs compare``: in what runs differ, and how their metrics went."""

import argparse
import itertools
import math
from collections.abc import Sequence
from typing import Any

from trainlab.cli.output import short, write_csv, write_json, write_lines, write_table
from trainlab.cli.run_names import RUN, NamedRuns, add_root
from trainlab.errors import InvalidValueError, MissingDependencyError
from trainlab.runs.comparing import differences, facts, packages_of, series
from trainlab.runs.contents import RunFiles
from trainlab.runs.names import PACKAGES

__all__ = ["add_compare"]

_Series = dict[str, list[tuple[int, float]]]
_BARS = "▁▂▃▄▅▆▇█"
_BARS_WIDE = 40
_MOST_PLOTS = 12


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Give a parser what ``runs compare`` takes.

    Args:
        parser: It.
    """
    parser.description = "Tell in which parameters, metrics, versions and commits runs differ."
    parser.add_argument("run_names", metavar="RUN", nargs="+", help=RUN)
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="show how it went, too: train/loss, validation/accuracy; may be repeated",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw how the metrics went (of none is named: of all): out.png")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="write JSON")
    form.add_argument("--csv", action="store_true", help="write CSV")
    add_root(parser)
    parser.set_defaults(run=_compare, parser=parser)


def _compare(given: argparse.Namespace) -> int:
    if len(given.run_names) < 2:
        given.parser.error("two runs or more are compared")
    if given.csv and given.metric:
        given.parser.error("--csv has no place for how a metric went: pass --json")
    options = dict(given.storage_option)
    named = NamedRuns(given.root, options)
    runs = [named.readable(name) for name in given.run_names]
    files = [RunFiles(run, options) for run in runs]
    names = _short_names([str(run.path) for run in runs])
    apart = differences(
        [
            facts(run, packages_of(of_run.read(PACKAGES).decode(errors="replace")))
            for run, of_run in zip(runs, files, strict=True)
        ]
    )
    went: list[_Series] = []
    if given.metric or given.plot:
        went = [series(of_run.read, set(given.metric) or None) for of_run in files]
        _check_metrics(given.metric, went, files)
    paths = [str(run.path) for run in runs]
    if given.json:
        write_json({"runs": paths, "differences": apart} | ({"series": went} if went else {}))
    elif given.csv:
        write_csv([["", *paths], *([name, *values] for name, values in apart.items())])
    else:
        _write(names, apart, went if given.metric else [])
    if given.plot:
        _plot(given.plot, names, went)
    return 0


def _write(names: Sequence[str], apart: dict[str, list[Any]], went: Sequence[_Series]) -> None:
    if apart:
        rows = [[name, *("" if value is None else short(value) for value in values)] for name, values in apart.items()]
        write_table([["", *names], *rows])
    else:
        write_lines(["These runs do not differ in what is compared."])
    for metric in dict.fromkeys(metric for of_run in went for metric in of_run):
        write_lines(["", metric])
        write_table(
            [(f"  {name}", *_sparkline(of_run.get(metric, []))) for name, of_run in zip(names, went, strict=True)]
        )


def _sparkline(points: Sequence[tuple[int, float]]) -> tuple[str, str]:
    """How a metric went in a few characters, and in words; each is the mean of a stretch."""
    finite = [value for _, value in points if math.isfinite(value)]
    if not finite:
        return ("", "")
    count = min(_BARS_WIDE, len(finite))
    edges = [round(index * len(finite) / count) for index in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(_BARS[round((mean - low) * scale)] for mean in means)
    return (bars, f"{short(points[0][1])} … {short(points[-1][1])} at batch {points[-1][0]}")


def _check_metrics(asked: Sequence[str], went: Sequence[_Series], files: Sequence[RunFiles]) -> None:
    known = {name for of_run in went for name in of_run}
    missing = [name for name in asked if name not in known]
    if not missing and known:
        return
    there = sorted({name for of_run in files for name in series(of_run.read)})
    raise InvalidValueError(
        f"No run here has a series of this metric. Received: {', '.join(missing) or 'none'}. "
        f"They have: {', '.join(there) or 'none'}."
    )


def _plot(file: str, names: Sequence[str], went: Sequence[_Series]) -> None:
    """Draw each metric with a line for each run."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Plots are drawn by matplotlib, which is not installed. Try: pip install 'trainlab[plot]'"
        ) from error
    metrics = sorted({metric for of_run in went for metric in of_run})[:_MOST_PLOTS]
    figure = Figure(figsize=(8, 3 * len(metrics)), layout="constrained")
    for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
        for name, of_run in zip(names, went, strict=True):
            if metric in of_run:
                axes.plot(*zip(*of_run[metric], strict=True), label=name)
        axes.set(xlabel="batch", ylabel=metric)
        axes.legend(fontsize="small")
    try:
        figure.savefig(file)
    except ValueError as error:  # a format that is not known
        raise InvalidValueError(f"The plot cannot be drawn: {error}. Received: {file!r}.") from error


def _short_names(paths: Sequence[str]) -> list[str]:
    """The paths without what is at the beginning of all."""
    parts = [path.split("/") for path in paths]
    same = sum(1 for _ in itertools.takewhile(lambda of_all: len(set(of_all)) == 1, zip(*parts, strict=False)))
    return ["/".join(of_path[same:]) or path for path, of_path in zip(paths, parts, strict=True)]
