"""``trainlab resume``: goes on with a run in its folder, by the command that began it."""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from trainlab.cli.begun_again import Command, command_of, missing_secrets, options_after, parser_of
from trainlab.cli.run_names import NamedRuns
from trainlab.errors import RunFolderError
from trainlab.runs.listing import RunInfo

__all__ = ["main", "parser"]

_DESCRIPTION = """\
Go on with a run in its own folder, from its newest checkpoint: by the command that began it, in the folder that it was
begun in, with its parameters. What follows -- is given to the program as further options: a longer training, a secret
that was not recorded."""
_EPILOG = "The exit status is the program's."


def main(arguments: Sequence[str]) -> int:
    """Go on with a run; this process becomes the program.

    Args:
        arguments: What follows ``trainlab resume``.

    Returns:
        0, if it was only to be told.

    Raises:
        RunFolderError: The run cannot be gone on with.
    """
    own, more = options_after(arguments)
    given = parser().parse_args(own)
    options = dict(given.storage_option)
    run = NamedRuns(given.root, options).readable(given.run_name)
    command = _command(run, command_of(run, more))
    lacking = [f"The run had the {name}, which is not given now." for name in missing_secrets(run, more)]
    for note in [*_notes(run), *lacking]:
        sys.stderr.write(f"{note}\n")
    if given.dry_run:
        sys.stdout.write(f"{command}\n")
        return 0
    return command.become()


def parser() -> argparse.ArgumentParser:
    """Make the parser of what stands before ``--``."""
    made = parser_of("resume", description=_DESCRIPTION, epilog=_EPILOG)
    made.add_argument("--dry-run", action="store_true", help="only tell the command")
    return made


def _command(run: RunInfo, command: Command) -> Command:
    if run.status == "running" and _is_seen(run):
        raise RunFolderError(
            f"The run is running: process {run.record.get('pid')} on {run.record.get('host')} holds it. "
            f"Received: {run.path}. Wait until it ends, or stop it."
        )
    if run.record.get("experiment") is not None:
        command.environment["TRAINLAB_IGNORE_ENVIRONMENT"] = "1"  # its parameters are those of its last start
    command.environment |= {"TRAINLAB_RUN_DIR": str(run.path), "TRAINLAB_RESUME": "1"}
    return command


def _notes(run: RunInfo) -> list[str]:
    notes = []
    if run.status == "finished" and "batches_trained" in run.record:
        notes.append("This run has finished: there is something to do only if it is told to train for longer.")
    elif run.status == "finished":
        notes.append(
            "This run has finished, by a loop of its own: what it does not keep in a checkpoint, it does all again."
        )
    if run.status == "running":
        notes.append(
            f"The run's record says that process {run.record.get('pid')} on {run.record.get('host')} works in it, "
            "which cannot be seen from here. If that is so, stop one of the two."
        )
    ranks = run.record.get("ranks")
    if isinstance(ranks, int) and ranks > 1 and not run.params.get("distributed"):
        notes.append(
            f"The run was last on {ranks} processes, and goes on with one. To go on with several, launch the program "
            f"as you did, with TRAINLAB_RUN_DIR={run.path} TRAINLAB_RESUME=1."
        )
    return notes


def _is_seen(run: RunInfo) -> bool:
    """Whether that it runs was found out, and not only written down."""
    return isinstance(run.path, Path) and run.record.get("host") == socket.gethostname()
