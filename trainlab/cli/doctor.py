"""``trainlab doctor``: what this machine offers, what is wrong with it, and how to mend it."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from trainlab.cli import accelerators, machine, round_trip, surroundings
from trainlab.cli.facts import Fact, gather

__all__ = ["main"]

_DESCRIPTION = "Tell what this machine offers for training, what is wrong with it, and how to mend that."
_EPILOG = "The exit status is 0 if nothing is wrong, else 1."
_PROBES = {**machine.PROBES, **accelerators.PROBES, **surroundings.PROBES, **round_trip.PROBES}


def main(arguments: Sequence[str]) -> int:
    """Look at the machine and tell.

    Args:
        arguments: What follows ``trainlab doctor``.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="trainlab doctor", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="write JSON")
    given = parser.parse_args(arguments)
    facts = _look(quiet=given.json)
    if given.json:
        sys.stdout.write(json.dumps(_as_json(facts), indent=1) + "\n")
    else:
        _show(facts)
    return int(any(fact.problem for fact in facts))


def _look(*, quiet: bool) -> list[Fact]:
    from rich.console import Console

    # Shown on a terminal alone.
    with Console(stderr=True, quiet=quiet).status("Looking at this machine …"):
        return [fact for group, probes in _PROBES.items() for fact in gather(group, probes)]


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


def _show(facts: list[Fact]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table("", "", "", show_header=False, box=None, pad_edge=False)
    group = ""
    for fact in facts:
        heading, group = "" if fact.group == group else fact.group, fact.group
        table.add_row(Text(heading, "bold"), Text(fact.name), Text(_plain(fact.value), "red" if fact.problem else ""))
    console.print(table)
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
