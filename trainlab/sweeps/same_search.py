"""Whether a search is the one that a study and a folder were begun for."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidValueError
from trainlab.runs.folder_lock import unusable
from trainlab.runs.masking import mask_passwords
from trainlab.sweeps.space import Space
from trainlab.sweeps.storage import sqlite_url
from trainlab.sweeps.trials import SearchTrial

__all__ = ["DATABASE", "claim", "refuse_another"]

# In a search's folder: its study, where no other storage is named, and which search it is.
DATABASE = "study.db"
_FILE = "search.json"


def refuse_another(first: SearchTrial, asked: Mapping[str, Any], space: Space, *, storage: str, folder: Path) -> str:
    """Refuse to go on with a search that was begun otherwise. What its first trial says holds for all searchers.

    Args:
        first: the first trial.
        asked: what the call asks for.
        space: what it searches.
        storage: where the study is.
        folder: the search's.

    Returns:
        What the search is known by.

    Raises:
        InvalidValueError: the search is another.
    """
    begun = first.begun
    if begun is None:
        raise InvalidValueError(
            f"The study is not one of trainlab's, and has trials. Received: {mask_passwords(storage)}. Pass another "
            "study."
        )
    if differing := _differing(space, asked, begun):
        anew = f", or remove {folder}, to begin anew" if storage == sqlite_url(folder / DATABASE) else ""
        raise InvalidValueError(
            f"A search of this name was begun otherwise. Received: {'; '.join(differing)}. Pass another study{anew}."
        )
    return str(begun["id"])


def claim(folder: Path, search: str) -> None:
    """Note in a search's folder which search it is of.

    Args:
        folder: it.
        search: what the search is known by.

    Raises:
        InvalidValueError: it is another's, whose trials would be taken for this one's.
        RunFolderError: the note cannot be written or read.
    """
    # Whoever makes a trial has written the note before.
    has_trials = any(folder.glob("trial-*"))
    file = folder / _FILE
    try:
        if not file.exists() and not has_trials:
            temporary = file.with_name(f".{_FILE}.{secrets.token_hex(4)}")
            temporary.write_text(json.dumps({"search": search}) + "\n", encoding="utf-8")
            temporary.replace(file)
        noted = json.loads(file.read_text(encoding="utf-8"))["search"] if file.exists() else None
    except OSError as error:
        raise unusable(file, "used", error) from error
    except (ValueError, KeyError, TypeError):
        noted = None
    if noted != search:
        raise InvalidValueError(
            f"The folder holds trials of another search, which would be taken for this one's. Received: {folder}. Pass "
            "another study or output_dir, or remove the folder."
        )


def _differing(space: Space, asked: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """What a search was begun with otherwise, for people."""
    names = [name for name in asked if name not in ("space", "params") and before.get(name) != asked[name]]
    pairs = [(name, repr(asked[name]), repr(before.get(name))) for name in names]
    if before["space"] != asked["space"]:
        pairs.append(("space", *space.differing_from(before["space"])))
    # A parameter that has come to the program since is no other value.
    known = before["params"]
    pairs += [
        (name, value, known[name]) for name, value in asked["params"].items() if name in known and known[name] != value
    ]
    return [f"{name}: {now}, and it has {then}" for name, now, then in pairs]
