"""The tags that a person gives to runs, in a file of their own beside the record, which is the run's."""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidValueError
from trainlab.runs.listing import RunInfo, tags_in
from trainlab.runs.names import TAGS
from trainlab.runs.run_record import replace_text
from trainlab.storage import open_store

__all__ = ["change_tags", "checked_tag"]


def checked_tag(tag: str) -> str:
    """Refuse what cannot be a tag.

    Args:
        tag: It.

    Returns:
        The same.

    Raises:
        InvalidValueError: It is empty, or has a space, a comma or a control character in it.
    """
    if not tag or not tag.isprintable() or any(one.isspace() or one == "," for one in tag):
        raise InvalidValueError(f"A tag is one word, without spaces and commas. Received: {tag!r}.")
    return tag


def change_tags(
    run: RunInfo, add: Iterable[str], remove: Iterable[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Give tags to a run, and take some away; a second call at the same time on this machine waits for the first.

    Args:
        run: The run.
        add: The tags that it is to have.
        remove: Those that it is not to have; one that it has not is no error.
        storage_options: For a URL, what its file system asks for. Default none.

    Returns:
        All its tags now.

    Raises:
        InvalidValueError: What is added cannot be a tag.
        OSError: The tags cannot be read, or not be written to a store.
        RunFolderError: The tags cannot be written to a folder.
    """
    add, remove = [checked_tag(tag) for tag in add], list(remove)
    if isinstance(run.path, Path):
        return _change_local(run.path, add, remove)
    store = open_store(run.path, storage_options)
    tags = _changed(run.tags, add, remove)
    store.publish(TAGS, _text(tags).encode())
    return tags


def _change_local(folder: Path, add: list[str], remove: list[str]) -> tuple[str, ...]:
    # The lock is that of the folder above: a run that goes on has its own, and a recorder may have the folder itself.
    descriptor = os.open(folder.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        file = folder / TAGS
        tags = _changed(tags_in(file.read_bytes()) if file.exists() else (), add, remove)
        replace_text(file, _text(tags))
        return tags
    finally:
        os.close(descriptor)


def _changed(tags: Iterable[str], add: list[str], remove: list[str]) -> tuple[str, ...]:
    return tuple(sorted(({*tags} | {*add}) - {*remove}))


def _text(tags: Iterable[str]) -> str:
    return json.dumps(list(tags)) + "\n"
