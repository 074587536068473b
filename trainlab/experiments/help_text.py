"""What ``--help`` prints: an experiment's options by group, or a group's experiments as a tree."""

import argparse
import functools
import json
import shutil
import textwrap
from collections import deque
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, get_origin

from trainlab.experiments.annotations import (
    Converter,
    choice_text,
    choices_of,
    item_count,
    item_types,
    members,
    metadata,
)
from trainlab.experiments.definition import Experiment
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.values import MASK, as_plain

__all__ = ["SHELLS", "describe", "help_of", "parser_of", "tree_of"]

SHELLS = ("bash", "zsh", "tcsh")
_OWN = "parameters"
_OTHER = "help"
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "{yes,no}", bytes: "TEXT"}
_LONGEST_CHOICES = 60
_INDENT = 30


def help_of(experiment: Experiment, program: str) -> str:
    """The help of an experiment.

    Args:
        experiment: the experiment.
        program: what is typed before the options.

    Returns:
        Lines as wide as the terminal.
    """
    return parser_of(experiment, program).format_help()


def tree_of(children: Mapping[str, Any], program: str, text: str) -> str:
    """The help of a group: its experiments as a tree.

    Args:
        children: experiments and groups by name.
        program: what is typed before the options, with EXPERIMENT for an experiment's name.
        text: what the group is.

    Returns:
        Lines as wide as the terminal.
    """
    lines = [f"usage: {program} [OPTIONS]", ""]
    if text:
        lines += [_wrapped(text), ""]
    lines += ["experiments:", *(_branches(children, "  ") or ["  none"]), ""]
    lines.append(_wrapped(f"{program} --help tells an experiment's options."))
    return "\n".join(lines) + "\n"


def _branches(children: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, child in children.items():
        start = f"{indent}{name}".ljust(_INDENT - 2)
        first = child.help.partition("\n\n")[0].replace("\n", " ")
        line = f"{start}  {first}".rstrip()
        lines += textwrap.wrap(line, _width(), subsequent_indent=" " * _INDENT, drop_whitespace=True) or [line]
        if not isinstance(child, Experiment):
            lines += _branches(child.children, f"{indent}  ")
    return lines


def parser_of(experiment: Experiment, program: str) -> argparse.ArgumentParser:
    """What describes an experiment's options; the line itself is read by ``command_line``.

    Args:
        experiment: the experiment.
        program: what is typed before the options.

    Returns:
        The parser, which makes the help, and from which shells learn to complete.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=_literal(f"{program} [OPTIONS]"),
        description=_shown_as_it_is(_wrapped(experiment.help)),
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=_INDENT),
        add_help=False,
        allow_abbrev=False,
    )
    describe(experiment, parser)
    return parser


def describe(experiment: Experiment, parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Add an experiment's options to a parser.

    Args:
        experiment: the experiment.
        parser: the parser, which has no options yet.

    Returns:
        The options by the parameter's name.
    """
    helps = experiment.group_helps
    headings: dict[str, Any] = {}
    actions: dict[str, argparse.Action] = {}
    for parameter in _grouped(experiment.parameters):
        title = parameter.group or _OWN
        if title not in headings:
            text = _shown_as_it_is(_wrapped(helps.get(title, ""), 2))
            headings[title] = parser.add_argument_group(title, text or None)
        form = _form(parameter)
        actions[parameter.name] = headings[title].add_argument(parameter.option, dest=parameter.name, **form)
    other = parser.add_argument_group(_OTHER)
    other.add_argument("-h", "--help", action="help", help="show this")
    other.add_argument("--print-completion", choices=SHELLS, help="print what lets a shell complete the options")
    return actions


def _grouped(parameters: tuple[Parameter, ...]) -> list[Parameter]:
    """Those that are shown: without a heading first, then each heading's together, at last those of all experiments."""
    order = list(dict.fromkeys((one.is_default, one.group) for one in parameters))
    return sorted(
        (one for one in parameters if not one.hidden),
        key=lambda one: (one.is_default, one.group is not None, order.index((one.is_default, one.group))),
    )


def _form(parameter: Parameter) -> dict[str, Any]:
    form: dict[str, Any] = {"help": _literal(_told(parameter)), "default": argparse.SUPPRESS}
    if parameter.is_flag:
        return form | {"action": argparse.BooleanOptionalAction}
    many = parameter.form in {"words", "pairs"}
    choices = _choices(parameter)
    if choices:
        form["choices"] = choices
    form["metavar"] = _metavar(parameter, choices)
    return form | ({"nargs": "*"} if many else {})


def _told(parameter: Parameter) -> str:
    """The help of a parameter with all facts about it."""
    facts = []
    if parameter.required:
        facts.append("required")
    if parameter.only_with:
        facts.append(f"only with {' or '.join(parameter.only_with)}")
    default = _default(parameter)
    if default:
        facts.append(f"default: {default}")
    if parameter.envvar:
        facts.append(f"environment: {parameter.envvar}")
    return " ".join([*([parameter.help] if parameter.help else []), *([f"[{'; '.join(facts)}]"] if facts else [])])


def _default(parameter: Parameter) -> str:
    if parameter.default_help is not None:
        return parameter.default_help
    if parameter.default_factory is not None:
        return "made for each run"
    if parameter.default is None:
        return "" if parameter.required or not parameter.is_field else "none"
    return MASK if parameter.is_secret else _shown(parameter.default)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return _shown(value.value) if isinstance(value.value, (str, int, float)) else value.name
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return " ".join(map(_shown, value)) or "empty"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_shown(inner)}" for key, inner in value.items()) or "empty"
    if value == "":
        return "''"
    plain = as_plain(value)
    return str(plain) if isinstance(plain, (str, int, float)) else json.dumps(plain)


def _choices(parameter: Parameter) -> list[str] | None:
    """The words that can be given; None for any."""
    annotation = parameter.annotation
    if parameter.allowed_values is not None:
        return [_shown(value) for value in parameter.allowed_values]
    kinds = item_types(annotation) if parameter.form == "words" else None
    if kinds is not None and len(kinds) == 1:
        annotation = kinds[0]
    choices = choices_of(annotation)
    return [_word(choice) for choice in choices] if choices else None


def _word(choice: Any) -> str:
    is_named = isinstance(choice, Enum) and not isinstance(choice.value, (str, int, float))
    return choice.name if is_named else choice_text(choice)


def _metavar(parameter: Parameter, choices: list[str] | None) -> Any:
    if choices and len(shown := f"{{{','.join(choices)}}}") <= _LONGEST_CHOICES:
        return shown
    if choices:
        return "CHOICE"
    if parameter.form == "pairs":
        return "KEY=VALUE"
    if parameter.form == "yaml":
        return "YAML"
    kinds = item_types(parameter.annotation) if parameter.form == "words" else None
    if kinds is not None and item_count(parameter.annotation) is None:
        return _name(kinds[0])
    return " ".join(map(_name, kinds)) if kinds is not None else _name(parameter.annotation)


def _name(annotation: Any) -> str:
    converters = [item.function for item in metadata(annotation) if isinstance(item, Converter)]
    if converters:
        name = getattr(converters[0], "__name__", "")
        return name.upper() if name.isidentifier() else "VALUE"
    kinds = members(annotation)
    if not kinds:
        return "none"
    if len(kinds) > 1:
        return "|".join(dict.fromkeys(map(_name, kinds)))
    kind = get_origin(kinds[0]) or kinds[0]
    if choices_of(kinds[0]):
        return "|".join(map(_word, choices_of(kinds[0]) or []))
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "PATH"
    name = getattr(kind, "__name__", "VALUE").lstrip("_").removeprefix("Secret")
    return _METAVARS.get(kind, "TEXT" if name == "Str" else name.upper()) if isinstance(kind, type) else name.upper()


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _shown_as_it_is(text: str) -> str:
    # argparse puts something in for % only in a description that names the program.
    return _literal(text) if "%(prog)" in text else text


def _wrapped(text: str, indent: int = 0) -> str:
    """A text with each of its paragraphs as wide as the terminal; indented ones stay as they are."""
    paragraphs = [
        part if part.startswith(" ") else textwrap.fill(part, max(_width() - indent, 20))
        for part in text.strip("\n").split("\n\n")
    ]
    return "\n\n".join(paragraphs)


def _width() -> int:
    # As argparse has it.
    return max(shutil.get_terminal_size().columns - 2, 20)
