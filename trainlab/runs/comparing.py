"""What runs have in common and what not: parameters, metrics, versions; and the series of their metrics."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainlab.runs.listing import Read, RunInfo, number
from trainlab.runs.names import SERIES

__all__ = ["differences", "facts", "flat", "packages_of", "series"]

_MISSING = object()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Put nested values side by side.

    Args:
        values: Nested mappings.
        prefix: What their names begin with. Default nothing.

    Returns:
        Each value that is no mapping, or an empty one, by its dotted name.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value and (type(value) is dict or isinstance(value, Mapping)):  # the first is quick
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def facts(run: RunInfo, packages: Mapping[str, str]) -> dict[str, Any]:
    """Tell what runs are compared by.

    Args:
        run: The run.
        packages: The versions of its packages; see ``packages_of``.

    Returns:
        Parameters, metrics, status, commit, seed, versions and so on, by their dotted names.
    """
    record = run.record
    told = {f"params.{name}": value for name, value in flat(run.params).items()}
    told |= {f"metrics.{name}": value for name, value in flat(run.metrics).items()}
    told |= {"name": run.name, "status": run.status, "seed": record.get("random_seed", record.get("seed"))}
    told |= {name: record[name] for name in ("result", "batches_trained", "ranks", "device", "host") if name in record}
    for name in ("git", "versions"):
        values = record.get(name)
        told |= flat(values, f"{name}.") if isinstance(values, Mapping) else {}
    known = {name.partition(".")[2] for name in told if name.startswith("versions.")}
    return told | {f"packages.{name}": version for name, version in packages.items() if name not in known}


def differences(told: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Find what is not the same in all.

    Args:
        told: The facts of each run.

    Returns:
        The values, None where a run has none, by name; parameters and metrics first.
    """
    names = dict.fromkeys(name for facts in told for name in facts)
    apart = [name for name in names if not _are_same([facts.get(name, _MISSING) for facts in told])]
    order = {"params": 0, "metrics": 1, "versions": 3, "packages": 4}
    apart.sort(key=lambda name: order.get(name.partition(".")[0], 2))
    return {name: [facts.get(name) for facts in told] for name in apart}


def packages_of(text: str) -> dict[str, str]:
    """Read which packages a run had.

    Args:
        text: Of ``packages.txt``: lines as pip freezes them.

    Returns:
        The version, or where it is from, by name.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        for separator in ("==", " @ "):
            name, given, version = line.partition(separator)
            if given and not line.startswith(("#", "-")):
                found[name.strip()] = version.strip()
                break
    return found


def series(read: Read, names: set[str] | None = None) -> dict[str, list[tuple[int, float]]]:
    """Read how metrics went.

    Args:
        read: Reads a file of the run.
        names: Which, such as "train/loss" or "validation/accuracy". Default: all.

    Returns:
        The batches and the values, by name; what is no number is left out.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read(SERIES, -1).splitlines():
        try:
            record = json.loads(line)
            group = "train" if record["kind"] == "training" else record["kind"]
            batch, metrics = record["batch"], record["metrics"].items()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # a line that is being written, that a killed process did not finish, or that is none of ours
        for name, value in metrics:
            value = number(value)
            if isinstance(value, int | float) and (names is None or f"{group}/{name}" in names):
                found.setdefault(f"{group}/{name}", []).append((batch, float(value)))
    return found


def _are_same(values: Sequence[Any]) -> bool:
    first = values[0]
    # Of NaN, which is not equal to itself, any two are the same here.
    return all(value == first or (value != value and first != first) for value in values[1:])  # noqa: PLR0124
