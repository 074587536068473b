"""The command that began a run, put together anew from its record, and started in the place of this process."""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from trainlab.cli.output import printable
from trainlab.cli.run_names import RUN, add_root
from trainlab.errors import InvalidValueError, RunFolderError
from trainlab.experiments.params_file import read_params_file
from trainlab.runs.listing import RunInfo, value_at
from trainlab.runs.masking import MASK
from trainlab.runs.names import PARAMS
from trainlab.runs.plain_numbers import standard_json
from trainlab.storage.cache import cache_folder

__all__ = ["Command", "command_of", "missing_secrets", "options_after", "parser_of"]

# What told the process of this command where it stands: not what it starts.
_OF_THIS_PROCESS = (
    *("TRAINLAB_RUN_DIR", "TRAINLAB_RESUME", "TRAINLAB_LAUNCH_ID", "TRAINLAB_LAUNCH_DIR", "TRAINLAB_LAUNCH_RUN"),
    *("TRAINLAB_ATTEMPT", "TRAINLAB_EXPERIMENT", "TRAINLAB_SEARCH", "TRAINLAB_IGNORE_ENVIRONMENT"),
)


def parser_of(name: str, *, description: str, epilog: str) -> argparse.ArgumentParser:
    """Make the parser of what stands before ``--`` where a run is begun again.

    Args:
        name: of the subcommand.
        description: what it does.
        epilog: what stands at the end of its help.

    Returns:
        The parser, with the run and where it is.
    """
    made = argparse.ArgumentParser(
        prog=f"trainlab {name}",
        usage=f"trainlab {name} [OPTIONS] RUN [-- MORE OPTIONS OF THE PROGRAM]",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
    )
    made.add_argument("run_name", metavar="RUN", help=RUN)
    add_root(made)
    return made


@dataclass
class Command:
    """A command that begins a run.

    Attributes:
        arguments: its words, the program first.
        cwd: the folder that it is run in.
        environment: variables beside those of this process.
    """

    arguments: list[str]
    cwd: str
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return f"cd {shlex.quote(self.cwd)} && {' '.join([*variables, shlex.join(self.arguments)])}"

    def become(self) -> NoReturn:
        """Run it in the place of this process: signals, output and exit status are its own."""
        kept = {name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS}
        os.chdir(self.cwd)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(self.arguments[0], self.arguments, {**kept, **self.environment})


def options_after(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a command line at its first ``--``.

    Args:
        arguments: It.

    Returns:
        What is before it, and what is after it.
    """
    words = list(arguments)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def command_of(run: RunInfo, more: Sequence[str]) -> Command:
    """Put together what began a run, for this Python.

    Args:
        run: The run.
        more: Options that come after those of the record.

    Returns:
        The command.

    Raises:
        RunFolderError: The record does not tell it, hides a secret of it that ``more`` does not give, or names a file
            or folder that is no longer there.
    """
    record = run.record
    cwd = str(record.get("cwd", ""))
    if not os.path.isdir(cwd):
        raise RunFolderError(
            f"The folder that the run was begun in is not there. Received: {run.path}, begun in {cwd or 'none'}. Bring "
            "it back; or begin the program yourself, which goes on with the run with TRAINLAB_RUN_DIR and "
            "TRAINLAB_RESUME=1 in its environment."
        )
    experiment = record.get("experiment")
    if isinstance(experiment, Mapping):
        words = ["-m", "trainlab", "run", _place_of(run, experiment), "--params-file", _params_file(run)]
        words += [*_not_of_file(experiment, more), *more]
    else:
        words = _program(run, cwd) + _without_given(_words(run), more, run)
    return Command([sys.executable, *words], cwd)


def _place_of(run: RunInfo, experiment: Mapping[str, Any]) -> str:
    """Where the experiment is defined, as ``trainlab run`` takes it."""
    name, module, file = str(experiment.get("path")), str(experiment.get("module")), str(experiment.get("file"))
    if module == "__main__":
        module = str(run.record.get("module") or "")
    if "." in module:  # a file of a package may import its neighbours, which it can only as a module
        return f"{module}:{name}"
    _require_script(file, run)
    return f"{file}:{name}"


def _require_script(path: str, run: RunInfo) -> None:
    if not os.path.isfile(path):
        raise RunFolderError(
            f"The run's script is not there. Received: {path}, of {run.path}. Bring it back; or begin the program "
            f"where it is now, for a resume with TRAINLAB_RUN_DIR={shlex.quote(str(run.path))} TRAINLAB_RESUME=1."
        )


def _params_file(run: RunInfo) -> str:
    """A file with the run's parameters, those of its last start: its params.yaml, or else a copy."""
    if isinstance(run.path, Path):
        file = run.path / PARAMS
        try:
            if file.exists() and standard_json(read_params_file(file)) == run.params:
                return str(file)
        except InvalidValueError as error:
            sys.stderr.write(f"Not read, for the run's record has its parameters, too: {printable(str(error))}\n")
    above = cache_folder() / "params"
    above.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run.params)
    copy = above / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    # Another program may be reading it.
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(copy)
    return str(copy)


def _not_of_file(experiment: Mapping[str, Any], more: Sequence[str]) -> list[str]:
    """The values that no params file may set, as options; but for those that are given anew, which would add up."""
    recorded = experiment.get("options")
    given = _options(more)
    options = recorded.items() if isinstance(recorded, Mapping) else []
    return [str(word) for name, words in options if str(name).replace("_", "-") not in given for word in words]


def _options(words: Sequence[str]) -> set[str]:
    """The names of the options among some words, with dashes."""
    return {word[2:].partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}


def missing_secrets(run: RunInfo, more: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Find the secrets that a run was given and that its repetition would not have.

    Args:
        run: The run.
        more: Options that come after those of the record.

    Returns:
        By the secret's name, how it was and how it is.
    """
    experiment, origins = run.record.get("experiment"), run.record.get("origins")
    if not isinstance(experiment, Mapping) or not isinstance(origins, Mapping):
        return {}  # of a script, the command line tells
    declared = experiment.get("variables")
    variables = declared if isinstance(declared, Mapping) else {}
    given = _options(more)
    return {
        f"secret {name}": ("given", "not given")
        for name, origin in origins.items()
        if origin != "default"
        and value_at(run.params, name) == MASK
        and str(name).replace("_", "-") not in given
        and not os.environ.get(str(variables.get(name, "")))
    }


def _words(run: RunInfo) -> list[str]:
    words = run.record.get("argv") or run.record.get("command")
    if not isinstance(words, list):
        raise RunFolderError(f"The run's record does not say what began it. Received: {run.path}.")
    return [str(word) for word in words[1:]]


def _program(run: RunInfo, cwd: str) -> list[str]:
    module, script = run.record.get("module"), run.record.get("script")
    if isinstance(module, str):
        return ["-m", module]
    if not isinstance(script, str):
        raise RunFolderError(
            f"The run was begun by no script and no module, but typed in or in a notebook. Received: {run.path}. "
            f"Begin it yourself, with TRAINLAB_RUN_DIR={shlex.quote(str(run.path))} TRAINLAB_RESUME=1."
        )
    _require_script(os.path.join(cwd, script), run)
    return [script]


def _without_given(words: list[str], more: Sequence[str], run: RunInfo) -> list[str]:
    """The recorded words and then those given, which stand for secrets that the record hides."""
    given = {word.partition("=")[0] for word in more if word.startswith("-")}
    kept: list[str] = []
    hidden: list[str] = []
    for word in words:
        if MASK not in word:
            kept.append(word)
            continue
        # --token=***, or the value of the option before it; in a URL the mask is only a part of it.
        is_option = word.startswith("-") and "=" in word
        option = word.partition("=")[0] if is_option else kept.pop() if kept and kept[-1].startswith("-") else ""
        if option not in given:
            hidden.append(option or word)
    if hidden:
        example = " ".join(f"{name} VALUE" for name in hidden if name.startswith("-"))
        raise RunFolderError(
            f"Secrets of the command line were not recorded: {', '.join(hidden)}. Received: {run.path}. "
            f"Give them again at the end: -- {example or 'OPTION VALUE'}."
        )
    return [*kept, *more]
