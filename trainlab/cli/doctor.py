"""``trainlab doctor``: what this machine offers, what is wrong with it, and how to mend it."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainlab.cli import accelerators, machine, round_trip, surroundings
from trainlab.cli.facts import Fact, gather
from trainlab.cli.output import write_json

if TYPE_CHECKING:
    from rich.status import Status

__all__ = ["main", "parser"]

_DESCRIPTION = "Tell what this machine offers for training, what is wrong with it, and how to mend that."
_EPILOG = "The exit status is 0 if nothing is wrong, else 1."
_NAMES_WIDE = len("CPUs that this process may use") + 1
_PROBES = {**machine.PROBES, **accelerators.PROBES, **surroundings.PROBES, **round_trip.PROBES}


def main(arguments: Sequence[str]) -> int:
    """Look at the machine and tell.

    Args:
        arguments: What follows ``trainlab doctor``.

    Returns:
        The exit status.
    """
    given = parser().parse_args(arguments)
    facts: list[Fact] = []
    for group, probes in _PROBES.items():
        with _status(group, quiet=given.json):
            found = gather(group, probes)
        facts += found
        if not given.json:
            _show_group(group, found)
    if given.json:
        write_json(_as_json(facts))
    else:
        _show_problems(facts)
    return int(any(fact.problem for fact in facts))


def parser() -> argparse.ArgumentParser:
    """Make the parser of the options.

    Returns:
        The parser.
    """
    made = argparse.ArgumentParser(prog="trainlab doctor", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="write JSON")
    return made


def _status(group: str, *, quiet: bool) -> "Status":
    from rich.console import Console

    # Shown on a terminal alone, and gone before the group's facts are shown.
    return Console(stderr=True, quiet=quiet).status(f"Looking at: {group} …")


def _as_json(facts: list[Fact]) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for fact in facts:
        groups.setdefault(fact.group, {})[fact.name] = fact.value
    wrong = [
        {"group": fact.group, "name": fact.name, "problem": fact.problem, "remedy": fact.remedy}
        for fact in facts
        if fact.problem
    ]
    return {"ok": not wrong, "facts": groups, "problems": wrong}


def _show_group(group: str, facts: list[Fact]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # The same widths for each group, of which the next is not known yet.
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(width=max(map(len, _PROBES)))
    table.add_column(width=_NAMES_WIDE)
    table.add_column()
    for index, fact in enumerate(facts):
        heading = "" if index else group
        table.add_row(Text(heading, "bold"), Text(fact.name), Text(_plain(fact.value), "red" if fact.problem else ""))
    Console(highlight=False).print(table)


def _show_problems(facts: list[Fact]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    wrong = [fact for fact in facts if fact.problem]
    for fact in wrong:
        console.print(Text(f"\n{fact.group}: {fact.problem}", "red"), soft_wrap=True)
        console.print(Text(f"  {fact.remedy}"), soft_wrap=True)
    console.print(Text(f"\nWrong: {len(wrong)}.", "red") if wrong else Text("\nNothing is wrong.", "green"))


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    return str(value)
