"""How the subcommands are told which run is meant: its path or URL, or a part of its name that no other run has."""

import argparse
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from trainlab.cli.places import add_storage_options
from trainlab.errors import RunFolderError, did_you_mean
from trainlab.runs.listing import RunInfo, as_path, is_url, read_run, run_folders

__all__ = ["RUN", "NamedRuns", "add_root"]

RUN = "a run: its path or URL, the end of its path, or a part of its path that only one run below ROOT has"
_MOST_SHOWN = 10


def add_root(parser: argparse.ArgumentParser) -> None:
    """Give a parser ``--root`` and ``--storage-option``.

    Args:
        parser: It.
    """
    parser.add_argument("--root", default="runs", metavar="ROOT", help="where runs are looked for (default: runs)")
    add_storage_options(parser)


class NamedRuns:
    """The runs that a person may mean; what is below the root is looked for once.

    Args:
        root: The folder or URL below which they are looked for, unless a path or a URL is given.
        storage_options: For URLs.
    """

    def __init__(self, root: str, storage_options: Mapping[str, Any]) -> None:
        self._root = root
        self._options = storage_options
        self._options_of_root = storage_options if is_url(root) else None

    def found(self, text: str) -> RunInfo:
        """Find the run that a person means.

        Args:
            text: What the person wrote.

        Returns:
            The run, which may be damaged.

        Raises:
            RunFolderError: None is meant, or more than one.
        """
        if not text.strip().rstrip("/"):
            raise RunFolderError(f"No run is named. Received: {text!r}. A run's name or path is asked for here.")
        run = read_run(text, self._options if is_url(text) else None)
        if run is not None:
            return run
        if is_url(text):
            raise RunFolderError(f"There is no run at this URL: it has no run.json. Received: {text}.")
        if os.path.isfile(os.path.join(text, "sweep.json")):
            raise RunFolderError(
                f"This folder is a sweep's, and not a run's. Received: {text!r}. `trainlab runs list {text}` tells "
                "which runs are in it."
            )
        meant = self._meant(text.rstrip("/"))
        if len(meant) == 1 and (run := read_run(meant[0], self._options_of_root)) is not None:
            return run
        if not meant:
            raise self._unknown(text)
        shown = "".join(f"\n  {one}" for one in sorted(meant)[:_MOST_SHOWN])
        more = f"\n  and {len(meant) - _MOST_SHOWN} more" if len(meant) > _MOST_SHOWN else ""
        raise RunFolderError(
            f"Several runs are meant. Received: {text!r}. Write more of one of these paths:{shown}{more}"
        )

    def readable(self, text: str) -> RunInfo:
        """Find a run whose record can be read.

        Args:
            text: What the person wrote.

        Returns:
            The run.

        Raises:
            RunFolderError: None is meant, or more than one, or it is damaged.
        """
        run = self.found(text)
        if run.status == "damaged":
            raise RunFolderError(f"The run's record cannot be read. Received: {run.reason}. Repair the file.")
        return run

    @cached_property
    def _above(self) -> str:
        return self._root.rstrip("/") if is_url(self._root) else as_path(self._root)

    @cached_property
    def _folders(self) -> list[str]:
        is_there = is_url(self._root) or os.path.isdir(self._above)
        return run_folders(self._root, self._options_of_root) if is_there else []

    def _meant(self, text: str) -> list[str]:
        """The folders that a text means: by their end, or else by a part of their path below the root."""
        ending = [folder for folder in self._folders if folder.endswith(f"/{text}")]
        if not ending:
            ending = [folder for folder in self._folders if folder.endswith(text)]
        return ending or [folder for folder in self._folders if text in folder[len(self._above) + 1 :]]

    def _unknown(self, text: str) -> RunFolderError:
        below = [folder[len(self._above) + 1 :] for folder in self._folders]
        ends = {name.rpartition(mark)[2] for name in below for mark in "/_"}
        meant = did_you_mean(text, [*below, *ends])
        return RunFolderError(
            f"There is no such run: neither a folder with a run.json, nor one below {self._root} of which it is a "
            f"part. Received: {text!r}.{meant} `trainlab runs list {self._root}` tells which there are; --root looks "
            "elsewhere."
        )
