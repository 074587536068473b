"""What older manifests are turned into before they are read: one function a version."""

from collections.abc import Callable
from typing import Any

__all__ = ["FORMAT_VERSION", "MIGRATIONS", "migrate"]

# The version that is written.
FORMAT_VERSION = 3


def migrate(content: dict[str, Any]) -> dict[str, Any]:
    """Turn the manifest of an older version into one of the present version, a version at a time.

    Args:
        content: The manifest, without its own checksum. It is not changed.

    Returns:
        What a writer of the present version would have written.

    Raises:
        ValueError: It is no manifest of its version.
    """
    for version in range(content["format_version"], FORMAT_VERSION):
        try:
            content = {**MIGRATIONS[version](content), "format_version": version + 1}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it is no manifest of format version {version}") from error
    return content


def _from_1_to_2(content: dict[str, Any]) -> dict[str, Any]:
    """Checksums tell their algorithm, and a place for the state of data sets, which nothing wrote, is gone."""
    rest = dict(content)
    if rest.pop("data_set_state") is not None:
        raise ValueError("it names a state of data sets")
    files = {}
    for name, entry in content["files"].items():
        if entry.keys() != {"size", "sha256"}:
            raise ValueError("it describes a file by more than its size and checksum")
        files[name] = {"size": entry["size"], "checksum": f"sha256:{entry['sha256']}"}
    return {**rest, "files": files}


def _from_2_to_3(content: dict[str, Any]) -> dict[str, Any]:
    """One process wrote all of it."""
    if "ranks" in content:
        raise ValueError("it tells of other ranks")
    return {**content, "ranks": []}


# By the version that is left behind.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1_to_2, 2: _from_2_to_3}
