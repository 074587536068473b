"""Scripts by which a shell completes names and options, without starting Python at each Tab."""

import argparse
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from trainlab.errors import InvalidValueError, MissingDependencyError, did_you_mean
from trainlab.experiments.annotations import is_kind_of, item_types, members
from trainlab.experiments.definition import Experiment
from trainlab.experiments.help_text import SHELLS, describe

__all__ = ["completion_script"]

# shtab's scripts divide other choices at spaces, and run what is a command in one.
_PLAIN = re.compile(r"[\w.,@%+=/-]+")


def completion_script(shell: str, target: Experiment | Mapping[str, Any], program: str) -> str:
    """The script that makes a shell complete a program's command lines.

    Args:
        shell: "bash", "zsh" or "tcsh".
        target: the program's experiment, or all of its experiments and groups by name.
        program: the program's name, as it is typed.

    Returns:
        The text, to be sourced by the shell.

    Raises:
        InvalidValueError: the shell is another one.
        MissingDependencyError: shtab is not installed.
    """
    if shell not in SHELLS:
        raise InvalidValueError(
            f"--print-completion takes {', '.join(SHELLS)}.{did_you_mean(shell, SHELLS)} Received: {shell!r}."
        )
    try:
        import shtab
    except ImportError as error:
        raise MissingDependencyError(
            "Shell completion needs shtab. Install it: pip install 'trainlab[completion]'."
        ) from error
    return str(shtab.complete(_parser(target, program), shell=shell)) + "\n"


def _parser(target: Experiment | Mapping[str, Any], program: str) -> argparse.ArgumentParser:
    if isinstance(target, Experiment):
        parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
        _complete_values(target, describe(target, parser))
    else:
        parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
        _add_children(parser, target)
    return parser


def _add_children(parser: argparse.ArgumentParser, children: Mapping[str, Any]) -> None:
    commands = parser.add_subparsers()
    for name, child in children.items():
        first = child.help.partition("\n")[0].replace("%", "%%")
        if isinstance(child, Experiment):
            inner = commands.add_parser(name, help=first, add_help=False, allow_abbrev=False)
            _complete_values(child, describe(child, inner))
        else:
            _add_children(commands.add_parser(name, help=first, allow_abbrev=False), child.children)


def _complete_values(experiment: Experiment, actions: Mapping[str, argparse.Action]) -> None:
    """Let values that are paths be completed as files, and folders as such; and plain words alone as choices."""
    import shtab

    for action in actions.values():
        choices = [*(action.choices or [])]
        if not all(map(_PLAIN.fullmatch, choices)):
            action.choices, action.metavar = [*filter(_PLAIN.fullmatch, choices)] or None, "CHOICE"
    for parameter in experiment.parameters:
        kinds = item_types(parameter.annotation) or members(parameter.annotation)
        if parameter.name not in actions or not any(is_kind_of(kind, PurePath) for kind in kinds):
            continue
        form = shtab.DIRECTORY if parameter.name.endswith("_dir") else shtab.FILE
        actions[parameter.name].complete = form  # type: ignore[attr-defined]  # what shtab looks for
