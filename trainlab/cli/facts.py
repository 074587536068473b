"""What the doctor finds out: facts, and what is wrong with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Fact", "Probe", "gather", "gibibytes"]


@dataclass(frozen=True)
class Fact:
    """One row of the doctor's table.

    Args:
        group: what it is about, such as "memory".
        name: what was looked at.
        value: what was found, as JSON takes it.
        problem: what is wrong with it; None where nothing is.
        remedy: how to mend that.
    """

    group: str
    name: str
    value: Any
    problem: str | None = None
    remedy: str | None = None


Probe = Callable[[], list[Fact]]


def gather(group: str, probes: list[Probe]) -> list[Fact]:
    """Ask probes, and let none of them end the others.

    Args:
        group: what they are about.
        probes: each gives facts.

    Returns:
        The facts, in order; for a probe that failed one fact that says so.
    """
    found: list[Fact] = []
    for probe in probes:
        try:
            found += probe()
        except Exception as error:
            what = getattr(probe, "__name__", "probe").strip("_").replace("_", " ")
            told = f"{type(error).__name__}: {error}"
            found.append(Fact(group, what, None, f"{what} cannot be looked at: {told}", "See what that error says."))
    return found


def gibibytes(count: float) -> float:
    """A number of bytes for a person.

    Args:
        count: of bytes.

    Returns:
        GiB, with two decimals.
    """
    return round(count / 2**30, 2)
