"""A word on the command line that names no command is answered with those that there are."""

import argparse
from collections.abc import Iterable, Sequence

from trainlab.errors import did_you_mean

__all__ = ["refuse_unknown"]


def refuse_unknown(parser: argparse.ArgumentParser, arguments: Sequence[str], known: Iterable[str]) -> None:
    """End the program with status 2, as argparse does, if the first argument should be a command and is none.

    Args:
        parser: The parser whose commands they are.
        arguments: The command line.
        known: The commands.
    """
    names = list(known)
    if not arguments or arguments[0].startswith("-") or arguments[0] in names:
        return
    meant = did_you_mean(arguments[0], names)
    parser.error(f"there is no command {arguments[0]!r}.{meant} There are: {', '.join(names)}.")
