"""How the subcommands are told where something is, and asked whether they may remove it."""

import argparse
import json
import sys
from typing import Any

__all__ = ["add_storage_options", "is_confirmed", "require_terminal"]


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser ``--storage-option KEY=VALUE``, which comes as a list of pairs ``storage_option``.

    Args:
        parser: It.
    """
    parser.add_argument(
        "--storage-option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="for the file system of a URL, as fsspec takes it; a value that is JSON is read as such: "
        'anon=true, client_kwargs={"endpoint_url": "http://127.0.0.1:9000"}; digits that are text: key=\'"007"\'',
    )


def require_terminal(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End the program with status 2 if something is to be removed and nobody can be asked.

    Args:
        parser: The command's.
        given: Its arguments, with ``yes`` and ``dry_run``.
    """
    if not given.yes and not given.dry_run and not (sys.stdin and sys.stdin.isatty()):
        parser.error("there is no terminal to ask at: pass --yes, or --dry-run to see what would be removed")


def is_confirmed(question: str) -> bool:
    """Ask at the terminal.

    Args:
        question: What is asked.

    Returns:
        Whether the answer is yes.
    """
    sys.stdout.flush()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _option(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"not KEY=VALUE: {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
