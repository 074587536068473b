"""What a run is made of besides its training: its folder, its parameters, its record. No torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlab.runs.folder_lock import FolderLock, take_lock
    from trainlab.runs.joined_folder import JoinedFolder
    from trainlab.runs.rank_output import RankOutput
    from trainlab.runs.run_folder import RunFolder

__all__ = ["FolderLock", "JoinedFolder", "RankOutput", "RunFolder", "take_lock"]

# Where each name lives, loaded when it is first touched: a command line's `--help` needs no folder.
_HOMES = {
    "FolderLock": "folder_lock",
    "JoinedFolder": "joined_folder",
    "RankOutput": "rank_output",
    "RunFolder": "run_folder",
    "take_lock": "folder_lock",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
