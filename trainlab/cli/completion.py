"""``trainlab completion``: what lets a shell complete trainlab's commands and their options."""

import argparse
import sys
from collections.abc import Sequence

from trainlab.cli import checkpoint, command, doctor, launch, replay, resume, run, runs, search
from trainlab.errors import MissingDependencyError

__all__ = ["main"]

_DESCRIPTION = """\
Print what lets a shell complete trainlab's commands and their options, to be put where the shell looks for it:
trainlab completion bash > ~/.local/share/bash-completion/completions/trainlab"""


def main(arguments: Sequence[str]) -> int:
    """Print it.

    Args:
        arguments: What follows ``trainlab completion``.

    Returns:
        The exit status.

    Raises:
        MissingDependencyError: shtab is not installed.
    """
    from trainlab.experiments.help_text import SHELLS

    parser = argparse.ArgumentParser(prog="trainlab completion", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    try:
        import shtab
    except ImportError as error:
        raise MissingDependencyError(
            "Shell completion needs shtab. Install it: pip install 'trainlab[completion]'."
        ) from error
    inner = {
        "checkpoint": checkpoint.parser(),
        "completion": parser,
        "doctor": doctor.parser(),
        "launch": launch.parser(),
        "replay": replay.parser(),
        "resume": resume.parser(),
        "run": run.parser(),
        "runs": runs.parser(),
        "search": search.parser(),
    }
    sys.stdout.write(str(shtab.complete(command.parser(inner), shell=shell)) + "\n")
    return 0
