"""``trainlab completion``: what lets a shell complete trainlab's commands and their options."""

import argparse
import sys
from collections.abc import Sequence

from trainlab.cli import checkpoint, command, replay, resume, runs
from trainlab.errors import MissingDependencyError

__all__ = ["main"]

_DESCRIPTION = """\
Print what lets a shell complete trainlab's commands and their options, to be put where the shell looks for it:
trainlab completion bash > ~/.local/share/bash-completion/completions/trainlab"""
_SHELLS = ("bash", "zsh", "tcsh")


def main(arguments: Sequence[str]) -> int:
    """Print it.

    Args:
        arguments: What follows ``trainlab completion``.

    Returns:
        The exit status.

    Raises:
        MissingDependencyError: shtab is not installed.
    """
    parser = argparse.ArgumentParser(prog="trainlab completion", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("shell", choices=_SHELLS)
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
        "replay": replay.parser(),
        "resume": resume.parser(),
        "runs": runs.parser(),
    }
    sys.stdout.write(str(shtab.complete(command.parser(inner), shell=shell)) + "\n")
    return 0
