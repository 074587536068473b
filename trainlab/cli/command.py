"""The frame of the command line: finds the subcommand and loads nothing else."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from trainlab import __version__
from trainlab.errors import TrainlabError

__all__ = ["main"]

# Each is a module beside this one with `main(arguments) -> exit status`.
_COMMANDS = {
    "doctor": "tell what this machine offers, what is wrong with it, and how to mend it",
    "launch": "run a script on one or more processes, nodes, or under SLURM",
}
# 128 and the signal's number, as a shell gives it.
_INTERRUPTED, _PIPE_CLOSED = 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: What follows ``trainlab``. Default None: the program's own.

    Returns:
        The exit status: the subcommand's own, 2 for an error of trainlab, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = _parser().parse_args(given[:1]).command
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are text streams
    try:
        status: int = importlib.import_module(f"trainlab.cli.{command}").main(given[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would be written at the end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except TrainlabError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainlab",
        description="Training PyTorch models on one machine or many.",
        epilog="trainlab COMMAND --help tells more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trainlab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser
