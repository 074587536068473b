"""How the subcommands are told which run is meant: its path or URL, or a part of its name that no other run has."""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from trainlab.cli.places import add_storage_options
from trainlab.errors import RunFolderError
from trainlab.runs.listing import RunInfo, is_url, read_run, run_folders

__all__ = ["add_root", "found_run", "readable_run"]

RUN = "a run: its path or URL, the end of its path, or a part of its path that only one run below ROOT has"
_MOST_SHOWN = 10


def add_root(parser: argparse.ArgumentParser) -> None:
    """Give a parser ``--root`` and ``--storage-option``.

    Args:
        parser: It.
    """
    parser.add_argument("--root", default="runs", metavar="ROOT", help="where runs are looked for (default: runs)")
    add_storage_options(parser)


def found_run(text: str, root: str, storage_options: Mapping[str, Any]) -> RunInfo:
    """Find the run that a person means.

    Args:
        text: What the person wrote.
        root: The folder or URL below which it is looked for, unless it is a path or a URL itself.
        storage_options: For URLs.

    Returns:
        The run, which may be damaged.

    Raises:
        RunFolderError: None is meant, or more than one.
    """
    run = read_run(text, storage_options if is_url(text) else None)
    if run is not None:
        return run
    if is_url(text):
        raise RunFolderError(f"There is no run at this URL: it has no run.json. Received: {text}.")
    options = storage_options if is_url(root) else None
    meant = _meant(text.rstrip("/"), root, run_folders(root, options) if is_url(root) or os.path.isdir(root) else [])
    if len(meant) == 1 and (run := read_run(meant[0], options)) is not None:
        return run
    if not meant:
        raise RunFolderError(
            f"There is no such run: neither a folder with a run.json, nor one below {root} of which it is a part. "
            f"Received: {text!r}. `trainlab runs list {root}` tells which there are; --root looks elsewhere."
        )
    shown = "".join(f"\n  {one}" for one in sorted(meant)[:_MOST_SHOWN])
    more = f"\n  and {len(meant) - _MOST_SHOWN} more" if len(meant) > _MOST_SHOWN else ""
    raise RunFolderError(f"Several runs are meant. Received: {text!r}. Write more of one of these paths:{shown}{more}")


def readable_run(text: str, root: str, storage_options: Mapping[str, Any]) -> RunInfo:
    """Find a run whose record can be read.

    Args:
        text: As for ``found_run``.
        root: As for ``found_run``.
        storage_options: As for ``found_run``.

    Returns:
        The run.

    Raises:
        RunFolderError: None is meant, or more than one, or it is damaged.
    """
    run = found_run(text, root, storage_options)
    if run.status == "damaged":
        raise RunFolderError(f"The run's record cannot be read. Received: {run.reason}. Repair the file.")
    return run


def _meant(text: str, root: str, folders: list[str]) -> list[str]:
    """The folders that a text means: by their end, or else by a part of their path below the root."""
    ending = [folder for folder in folders if folder.endswith(f"/{text}")]
    if not ending:
        ending = [folder for folder in folders if folder.endswith(text)]
    above = len(root.rstrip("/") if is_url(root) else os.path.abspath(root)) + 1
    return ending or [folder for folder in folders if text in folder[above:]]
