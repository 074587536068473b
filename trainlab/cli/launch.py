"""``trainlab launch``: a script on a platform, whose options are those of ``trainlab.launch.Platform``."""

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from trainlab.errors import LaunchError, RankFailedError
from trainlab.experiments.annotations import members
from trainlab.launch.platform import Platform

__all__ = ["main", "parse", "parser"]

_USAGE = "trainlab launch [OPTIONS] SCRIPT [ARGS]\n       trainlab launch [OPTIONS] -m MODULE [ARGS]"
_DESCRIPTION = """\
Run a script, or a module as `python -m` does, on one or more processes. Everything after the script is the script's
own. With --nodes, start the same command on each node."""
_EPILOG = "The exit status is the script's: 0, or that of the rank that failed first; 128 + n after signal n."
# The first of the options that are for a job of SLURM alone.
_FIRST_OF_SLURM = "executor"


def main(arguments: Sequence[str]) -> int:
    """Run a script on a platform.

    Args:
        arguments: What follows ``trainlab launch``.

    Returns:
        The exit status.
    """
    platform, target, argv = parse(arguments)
    _load_torch()
    from trainlab.experiments.ending import exit_status
    from trainlab.launch import launch_script

    try:
        return int(launch_script(platform, argv=argv, **target))
    except RankFailedError as error:
        sys.stderr.write(f"{error}\n")
        return exit_status(error)
    except LaunchError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _load_torch() -> None:
    """Load torch so that its C++ code does not print a stack for each connection to a node that is lost."""
    name = "TORCH_CPP_LOG_LEVEL"
    if name in os.environ:
        return
    os.environ[name] = "ERROR"
    try:
        importlib.import_module("torch")
    finally:
        del os.environ[name]  # the ranks say what they have to


def parse(arguments: Sequence[str]) -> tuple[Platform, dict[str, str], list[str]]:
    """Read a command line; a wrong one ends the program with status 2, as argparse does.

    Args:
        arguments: What follows ``trainlab launch``.

    Returns:
        The platform, what is run on it (``{"script": path}`` or ``{"module": name}``), and its arguments.

    Raises:
        InvalidValueError: An option's value cannot be used, or options contradict each other.
    """
    made = parser()
    options, rest = _split(list(arguments), _switches())
    given = {name: value for name, value in vars(made.parse_args(options)).items() if value is not None}
    module = given.pop("m", None)
    if module is None and not rest:
        made.error("there is nothing to run. Name a script, or a module with -m")
    if "extra" in given:
        given["extra"] = dict(given["extra"])
    target, argv = ({"module": module}, rest) if module is not None else ({"script": rest[0]}, rest[1:])
    return Platform(**given), target, argv


def _split(arguments: list[str], switches: set[str]) -> tuple[list[str], list[str]]:
    """Our options, and what is run with its own; argparse would take options of ours from among the script's."""
    place = 0
    while place < len(arguments):
        word = arguments[place]
        if word == "--":
            return arguments[:place], arguments[place + 1 :]
        if not word.startswith("-") or word == "-":
            break
        if word.startswith("-m") and not word.startswith("--"):
            place += 1 + (word == "-m")
            break
        place += 1 if "=" in word or word in switches else 2
    return arguments[:place], arguments[place:]


def _switches() -> set[str]:
    """The options that take no value."""
    named = [
        name.replace("_", "-") for name, field in Platform.model_fields.items() if bool in members(field.annotation)
    ]
    return {"-h", "--help", *(f"--{name}" for name in named), *(f"--no-{name}" for name in named)}


def parser() -> argparse.ArgumentParser:
    """Make the parser of the options.

    Returns:
        The parser, without the script and its own arguments.
    """
    made = argparse.ArgumentParser(
        prog="trainlab launch", usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    made.add_argument("-m", metavar="MODULE", help="run a module instead of a script; ends the options")
    group = made.add_argument_group("platform")
    told = _told()
    for name, field in Platform.model_fields.items():
        if name == _FIRST_OF_SLURM:
            group = made.add_argument_group("with --device slurm")
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=name, help=told[name].replace("%", "%%"), default=None, **_form(field.annotation))
    return made


def _told() -> dict[str, str]:
    """What the docstring of Platform says about each option."""
    lines = re.sub(r"``(.*?)``", r"\1", Platform.__doc__ or "")
    found = re.findall(r"^ {8}(\w+): (.+?)(?=\n {8}\w+: |\n\n)", lines, re.MULTILINE | re.DOTALL)
    told = {name: " ".join(text.split()) for name, text in found}
    return {name: told.get(name, "") for name in Platform.model_fields}


def _form(annotation: Any) -> dict[str, Any]:
    """How argparse reads an option of a type."""
    kinds = members(annotation)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return {"choices": choices}
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction}
    if int in kinds:
        return {"type": _number_or_text, "metavar": "N"} if str in kinds else {"type": int, "metavar": "N"}
    if float in kinds:
        return {"type": float, "metavar": "SECONDS"}
    if any(get_origin(kind) is Mapping for kind in kinds):
        return {"type": _pair, "action": "append", "metavar": "KEY=VALUE"}
    if Sequence[str] in kinds:
        return {"action": "append", "metavar": "LINE"}
    if any(get_origin(kind) is Sequence for kind in kinds):
        return {"type": _lists, "metavar": "[[0,1],[2,3]]"}
    return {"metavar": "TEXT"}


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"not KEY=VALUE: {text!r}")
    return key, value


def _lists(text: str) -> list[list[int]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(ranks, list) for ranks in found):
        raise argparse.ArgumentTypeError(f"not lists of ranks such as [[0,1],[2,3]]: {text!r}")
    return found
