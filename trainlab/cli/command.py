"""The frame of the command line: finds the subcommand, loads nothing else, and turns errors into an exit status."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from trainlab import __version__
from trainlab.cli.output import printable
from trainlab.cli.subcommands import refuse_unknown
from trainlab.errors import TrainlabError

__all__ = ["main", "parser"]

# Each is a module beside this one with `main(arguments) -> exit status`.
_COMMANDS = {
    "run": "run an experiment of a script or a module",
    "runs": "list, show, compare, tag and remove runs",
    "resume": "go on with a run, by the command that began it",
    "replay": "repeat a run in a new folder, with its parameters and its seed",
    "search": "choose an experiment's parameters so that a metric is best",
    "checkpoint": "list, show, verify and prune checkpoints",
    "launch": "run a script on one or more processes, nodes, or under SLURM",
    "completion": "print what lets a shell complete these commands",
    "doctor": "tell what this machine offers, what is wrong with it, and how to mend it",
}
# Whose errors of the file system may be those of a person's program, which wants its traceback.
_RUNNING_PROGRAMS = {"launch", "run", "search"}
# 128 and the signal's number, as a shell gives it.
_INTERRUPTED, _PIPE_CLOSED = 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: What follows ``trainlab``. Default None: the program's own.

    Returns:
        The exit status: the subcommand's own, 2 for an error of trainlab or of the file system, 130 after Ctrl-C.
    """
    _open_closed_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    made = parser()
    refuse_unknown(made, given, _COMMANDS)
    command = made.parse_args(given[:1]).command
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are text streams
    told: tuple[type[Exception], ...] = (TrainlabError,) if command in _RUNNING_PROGRAMS else (TrainlabError, OSError)
    try:
        status: int = importlib.import_module(f"trainlab.cli.{command}").main(given[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would be written at the end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except told as error:
        sys.stderr.write("".join(f"{printable(line)}\n" for line in str(error).split("\n")))
        return 2
    return status


def _open_closed_streams() -> None:
    """Give what is written to a stream that the shell has closed (``>&-``) a place to vanish, here and in children."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # to the end of the process
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def parser(inner: Mapping[str, argparse.ArgumentParser] | None = None) -> argparse.ArgumentParser:
    """Make the parser of the whole.

    Args:
        inner: Parsers of subcommands by their names, without help. Default none: of a command line only the first word
            is read by it.

    Returns:
        The parser.
    """
    made = argparse.ArgumentParser(
        prog="trainlab",
        description="Training PyTorch models on one machine or many.",
        epilog="trainlab COMMAND --help tells more.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"trainlab {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
        if inner is not None and name in inner:
            commands.choices[name] = inner[name]
    return made
