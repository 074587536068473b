"""``trainlab search``: an experiment's parameters chosen so that a metric is best."""

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainlab.cli.begun_again import options_after
from trainlab.errors import InvalidValueError

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.parameters import Parameter
    from trainlab.experiments.search_space import Search
    from trainlab.schedule import TrainUnit

__all__ = ["main", "parser"]

_USAGE = "trainlab search FILE[:EXPERIMENT] --metric NAME --trials N [OPTIONS] [-- THE EXPERIMENT'S OPTIONS]"
_DESCRIPTION = """\
Run an experiment again and again, with parameters that Optuna chooses so that a metric becomes best. What is searched
is declared beside the parameters, or by --search. The same command again goes on with a search that was broken off;
on several machines with one --storage it is shared."""
_EPILOG = """\
--search NAME=LOW:HIGH, NAME=log:LOW:HIGH, NAME=LOW:HIGH:STEP, NAME=A,B,C (choices); more than once for several.
The exit status is 0 if the search came to its end, 2 for a wrong command line or if all trials failed."""
_STORAGE = "TRAINLAB_STORAGE"
_RANGE = re.compile(r"(log:)?([^:,]+):([^:,]+)(?::([^:,]+))?")


def main(arguments: Sequence[str]) -> int:
    """Search.

    Args:
        arguments: What follows ``trainlab search``.

    Returns:
        The exit status.
    """
    own, rest = options_after(arguments)
    options = vars(parser().parse_args(own))
    from trainlab.experiments.loading import load_experiment
    from trainlab.sweeps.searching import search

    experiment = load_experiment(options.pop("place"))
    given = {name: value for name, value in options.items() if value is not None}
    space = _space(experiment, given.pop("search", []))
    if "max_length" in given:
        given["max_length"] = _length(given["max_length"])
    if "storage" not in given and os.environ.get(_STORAGE):
        given["storage"] = os.environ[_STORAGE]
    search(experiment, params=_fixed(experiment, rest), space=space, **given)
    return 0


def parser() -> argparse.ArgumentParser:
    """Make the parser of the search's own options.

    Returns:
        The parser.
    """
    made = argparse.ArgumentParser(
        prog="trainlab search",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("place", metavar="FILE[:EXPERIMENT]", help="the script, or package.module:experiment")
    add("--metric", required=True, metavar="NAME", help="the metric that is to be best")
    add("--trials", required=True, type=int, metavar="N", help="how many runs, by all searchers together")
    add("--direction", choices=["minimize", "maximize"], help="what is best (minimize)")
    add("--search", action="append", metavar="NAME=SPACE", help="search a parameter, beside those that declare it")
    add("--sampler", metavar="NAME", help="tpe (default), random, grid or cmaes")
    add("--pruner", metavar="NAME", help="none (default), median, asha or hyperband")
    add("--max-length", metavar="LENGTH", help="how long a trial trains: 10 epochs, 500 batches")
    add("--study", metavar="NAME", help="the search's name (the metric's)")
    add("--storage", metavar="URL", help=f"where trials are kept (a SQLite file; or as {_STORAGE} says, out of sight)")
    add("--max-num-processes", type=int, metavar="N", help="trials at once on this machine (1)")
    add("--num-gpus-per-process", type=int, metavar="N", help="GPUs that each trial sees (all)")
    add("--seed", type=int, metavar="N", help="of the choice and of the runs (0)")
    add("--output-dir", metavar="DIR", help="where the folders of experiments are (runs)")
    add("--keep-going", action=argparse.BooleanOptionalAction, help="go on when a trial fails (yes)")
    add("--max-crashes", type=int, metavar="N", help="how often a trial whose process is killed is repeated (3)")
    add("--grace", type=float, metavar="SECONDS", help="what trials have to end after Ctrl-C (60)")
    add("--progress", action=argparse.BooleanOptionalAction, help="show a table, or lines (yes)")
    return made


def _fixed(experiment: "Experiment", words: Sequence[str]) -> dict[str, Any]:
    """The values that the experiment's own options give; they are not searched."""
    from trainlab.experiments.given import Given, Rank

    line = experiment.line(words)
    if line.wants_help or line.completion is not None:
        raise InvalidValueError("After -- come values of the experiment's parameters. Its help is the script's --help.")
    if line.problems:
        raise InvalidValueError("\n".join(line.problems))
    known = {parameter.name: parameter for parameter in experiment.parameters}
    return {
        name: Given(value, Rank.COMMAND_LINE, "command line", known[name].option).value_for(known[name])
        for name, value in line.words.items()
    }


def _space(experiment: "Experiment", texts: Sequence[str]) -> "dict[str, Search]":
    """What ``--search`` says of each parameter; whether there is such a one the search finds out."""
    known = {parameter.name: parameter for parameter in experiment.parameters}
    found: dict[str, Search] = {}
    for text in texts:
        name, equals, space = text.partition("=")
        if not name or not equals or not space:
            raise InvalidValueError(f"--search takes NAME=LOW:HIGH or NAME=A,B,C. Received: {text!r}.")
        if name in found:
            raise InvalidValueError(f"--search is given twice for {name}. Received: {text!r} too. Take one out.")
        found[name] = _searched(known.get(name), space)
    return found


def _searched(parameter: "Parameter | None", space: str) -> "Search":
    from trainlab.experiments.search_space import Search

    found = _RANGE.fullmatch(space)
    if found is None:
        return Search(choices=tuple(_choice(parameter, word.strip()) for word in space.split(",")))
    low, high, step = (None if word is None else _number(word) for word in found.groups()[1:])
    return Search(low, high, log=found[1] is not None, step=step)


def _choice(parameter: "Parameter | None", word: str) -> Any:
    """A word as what it is after the parameter's own option; what is none of its values the search refuses."""
    from pydantic import ValidationError

    from trainlab.experiments.given import Given, Rank

    if parameter is None:
        return word
    value = word if parameter.is_flag else Given([word], Rank.COMMAND_LINE, "", "").value_for(parameter)
    try:
        return parameter.adapter.validate_python(value)
    except ValidationError:
        return value


def _number(word: str) -> Any:
    """A word as the number that it is; else as it is, which the search refuses."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _length(text: str) -> "TrainUnit":
    from trainlab.schedule import Batch, Epoch

    found = re.fullmatch(r"\s*(\d+)\s*(batch(?:es)?|epochs?)\s*", text)
    if found is None:
        raise InvalidValueError(f"--max-length is a number of epochs or batches, '10 epochs'. Received: {text!r}.")
    return (Batch if found[2].startswith("batch") else Epoch)(int(found[1]))
