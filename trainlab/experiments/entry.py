"""What a command line does: help, completion, an experiment's run; and what is said of a wrong one."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainlab.errors import InvalidValueError, MissingDependencyError, RankFailedError, did_you_mean
from trainlab.experiments.command_line import checked_words
from trainlab.experiments.definition import Experiment
from trainlab.experiments.values import Values

__all__ = ["program_name", "run_line", "run_named", "show"]

_WRONG_LINE = _NOT_WRITTEN = 1
# 128 and the signal's number, as a shell gives it.
_PIPE_CLOSED = 141


def run_line(experiment: Experiment, argv: Sequence[str], *, exit_on_error: bool = True, program: str = "") -> Any:
    """Run an experiment as a command line says.

    Args:
        experiment: the experiment.
        argv: the words after its name.
        exit_on_error: whether a wrong line ends the program.
        program: what stands before these words. Default: the program's name.

    Returns:
        What the main function returns.

    Raises:
        InvalidValueError: the line is wrong, and ``exit_on_error`` is False.
        SystemExit: help was asked for, or the line is wrong.
    """
    from trainlab.experiments.help_text import help_of

    program = program or program_name()
    line = experiment.line(argv)
    if line.wants_help:
        show(help_of(experiment, program))
        raise SystemExit(0)
    if line.completion is not None:
        _print_completion(line.completion, experiment, exit_on_error)
    try:
        values = experiment.read_line(None, line)
    except InvalidValueError as error:
        if not exit_on_error:
            raise
        refuse(str(error), help_of(experiment, program))
    return _run(experiment, values) if exit_on_error else _running().run(experiment, values)


def show(text: str) -> None:
    """Write to standard output, be it closed, a full disk, or a pipe that is closed or knows no Unicode.

    Args:
        text: what is written.

    Raises:
        SystemExit: it cannot be written, or nobody reads it any more.
    """
    if sys.stdout is None:  # closed before Python began
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered would be written at the end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(_PIPE_CLOSED) from None
        sys.stderr.write(f"Standard output cannot be written to: {error.strerror}.\n")
        raise SystemExit(_NOT_WRITTEN) from None


def _run(experiment: Experiment, values: Values) -> Any:
    """Run it; what is no error of the program's own is told in a line, instead of a traceback."""
    from trainlab.experiments.ending import exit_status, told_failure

    try:
        return _running().run(experiment, values)
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{experiment.path} was interrupted.\n")
        raise SystemExit(exit_status(error)) from error
    except RankFailedError as error:
        sys.stderr.write(f"{told_failure(error)}\n")
        raise SystemExit(exit_status(error)) from error
    except Exception as error:
        is_programs = _running().is_of_main(error)
        if is_programs and values.params["debug"]:  # it is shown, without the secrets that Python would show
            raise SystemExit(exit_status(error)) from error
        if not is_programs and isinstance(error, InvalidValueError):
            sys.stderr.write(f"{error}\n")
            raise SystemExit(_WRONG_LINE) from error
        raise


def _running() -> Any:
    # Loaded to run, not to print help.
    from trainlab.experiments import running

    return running


def _print_completion(shell: str, target: Experiment | Mapping[str, Any], exit_on_error: bool) -> NoReturn:
    from trainlab.experiments.completion import completion_script

    try:
        show(completion_script(shell, target, Path(sys.argv[0]).name))
    except (InvalidValueError, MissingDependencyError) as error:
        if not exit_on_error:
            raise
        sys.stderr.write(f"{error}\n")
        raise SystemExit(_WRONG_LINE) from error
    raise SystemExit(0)


def refuse(problems: str, help_text: str) -> NoReturn:
    """Print the help and what is wrong with a line, and end the program.

    Args:
        problems: what is wrong, a line each.
        help_text: the help.

    Raises:
        SystemExit: always.
    """
    sys.stderr.write(f"{help_text}\n{problems}\n")
    raise SystemExit(_WRONG_LINE)


def program_name() -> str:
    """What is typed to run this program: "python train.py", "python -m package.train"."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    name = Path(sys.argv[0] or "python").name
    return f"python {name}" if name.endswith(".py") else name


def run_named(
    children: Mapping[str, Any],
    argv: Sequence[str],
    *,
    help: str,
    exit_on_error: bool = True,
    program: str = "",
) -> Any:
    """Run the experiment that a command line names.

    Args:
        children: experiments and groups by name.
        argv: the words: names, then options.
        help: what the children are.
        exit_on_error: whether a wrong line ends the program.
        program: what stands before these words. Default: the program's name.

    Returns:
        What the main function returns.

    Raises:
        InvalidTypeError: the line is no list of texts.
        InvalidValueError: the line is wrong, and ``exit_on_error`` is False.
        SystemExit: help was asked for, or the line is wrong.
    """
    from trainlab.experiments.help_text import tree_of

    program = program or program_name()
    words = checked_words(argv)
    first, rest = (words[0], words[1:]) if words else ("", [])
    child = children.get(first)
    if isinstance(child, Experiment):
        return run_line(child, rest, exit_on_error=exit_on_error, program=f"{program} {first}")
    if child is not None:
        inner = f"{program} {first}"
        return run_named(child.children, rest, help=child.help, exit_on_error=exit_on_error, program=inner)
    text = tree_of(children, f"{program} EXPERIMENT", help)
    if first in {"-h", "--help"}:
        show(text)
        raise SystemExit(0)
    if first.partition("=")[0] == "--print-completion":
        _print_completion(first.partition("=")[2] or " ".join(rest[:1]), children, exit_on_error)
    problem = "Which experiment?" if not first else f"There is no experiment {first!r}.{did_you_mean(first, children)}"
    problem = f"{problem} There are: {', '.join(children) or 'none'}."
    if not exit_on_error:
        raise InvalidValueError(problem)
    return refuse(problem, text)
