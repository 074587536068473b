"""``trainlab replay``: a new run like an earlier one, and what is not as it was then."""

import argparse
import sys
from collections.abc import Sequence

from trainlab.cli.begun_again import Command, command_of, missing_secrets, options_after, parser_of
from trainlab.cli.output import printable, short
from trainlab.cli.run_names import NamedRuns
from trainlab.cli.then_and_now import changes_since
from trainlab.runs.contents import RunFiles
from trainlab.runs.listing import RunInfo

__all__ = ["main", "parser"]

_DESCRIPTION = """\
Repeat a run in a new folder, with its parameters and its seed, in the folder that it was begun in; variables of the
environment that declare parameters are not read. First it is told what is not as it was then: commit, changes,
packages, Python, machine. What follows -- is given to the program as further options."""
_EPILOG = "The exit status is the program's; with --strict it is 1 if something differs."
_MOST_PACKAGES = 10


def main(arguments: Sequence[str]) -> int:
    """Repeat a run; this process becomes the program.

    Args:
        arguments: What follows ``trainlab replay``.

    Returns:
        0 if it was only to be told; 1 if something differs that must not.

    Raises:
        RunFolderError: The run cannot be repeated.
    """
    own, more = options_after(arguments)
    given = parser().parse_args(own)
    options = dict(given.storage_option)
    run = NamedRuns(given.root, options).readable(given.run_name)
    command = _command(run, command_of(run, more))
    differing = missing_secrets(run, more) | changes_since(run, RunFiles(run, options))
    _tell(differing)
    if differing and given.strict:
        sys.stderr.write("Not begun, for it is to be the same (--strict).\n")
        return 1
    if given.dry_run:
        sys.stdout.write(f"{command}\n")
        return 0
    return command.become()


def parser() -> argparse.ArgumentParser:
    """Make the parser of what stands before ``--``."""
    made = parser_of("replay", description=_DESCRIPTION, epilog=_EPILOG)
    made.add_argument("--strict", action="store_true", help="do not begin if anything differs")
    made.add_argument("--dry-run", action="store_true", help="only tell what differs, and the command")
    return made


def _command(run: RunInfo, command: Command) -> Command:
    command.environment["TRAINLAB_IGNORE_ENVIRONMENT"] = "1"
    seed = run.record.get("seed")
    if isinstance(seed, int) and run.record.get("experiment") is None:
        command.environment["TRAINLAB_SEED"] = str(seed)
    return command


def _tell(differing: dict[str, tuple[str, str]]) -> None:
    lines = [f"{name}: then {short(then)}, now {short(now)}" for name, (then, now) in differing.items()]
    packages = [line for line in lines if line.startswith("package ")]
    shown = [line for line in lines if not line.startswith("package ")] + packages[:_MOST_PACKAGES]
    if len(packages) > _MOST_PACKAGES:
        shown.append(f"and {len(packages) - _MOST_PACKAGES} more packages")
    head = "Not as it was then:" if lines else "All that is recorded is as it was then."
    sys.stderr.write("".join(f"{printable(line)}\n" for line in [head, *(f"  {line}" for line in shown)]))
