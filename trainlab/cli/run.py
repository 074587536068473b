"""``trainlab run``: an experiment that a file or a module defines, with its own options."""

import argparse
from collections.abc import Sequence

__all__ = ["main", "parser"]

_PROGRAM = "trainlab run"
_DESCRIPTION = """\
Run an experiment that a file or a module defines; what stands under `if __name__ == "__main__":` does not run. Where
there is only one, its name may be left out."""
_EPILOG = f"{_PROGRAM} FILE:EXPERIMENT --help tells the experiment's options."


def main(arguments: Sequence[str]) -> int:
    """Run an experiment.

    Args:
        arguments: What follows ``trainlab run``.

    Returns:
        0; an experiment that fails raises its error.

    Raises:
        SystemExit: help was asked for, or the line is wrong.
        InvalidValueError: there is no such file, module or experiment.
    """
    place = parser().parse_args(arguments[:1]).place
    from trainlab.experiments.entry import run_line, show
    from trainlab.experiments.help_text import tree_of
    from trainlab.experiments.loading import load, pick

    found, name = load(place)
    program, rest = f"{_PROGRAM} {place}", arguments[1:]
    if not name and len(found) > 1 and rest[:1] in (["-h"], ["--help"]):
        show(tree_of(found, f"{program}:EXPERIMENT", ""))
        raise SystemExit(0)
    run_line(pick(found, name, place), rest, program=program)
    return 0


def parser() -> argparse.ArgumentParser:
    """Make the parser of the place.

    Returns:
        The parser, without the options of the experiment that is found there.
    """
    made = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} FILE[:EXPERIMENT] [OPTIONS]\n       {_PROGRAM} MODULE[:EXPERIMENT] [OPTIONS]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    made.add_argument(
        "place", metavar="FILE[:EXPERIMENT]", help="such as train.py, train.py:group/train, package.train:name"
    )
    return made
