"""What a run is made of besides its training: its folder, its parameters, its record. No torch."""

from trainlab.runs.folder_lock import FolderLock, take_lock
from trainlab.runs.joined_folder import JoinedFolder
from trainlab.runs.rank_output import RankOutput
from trainlab.runs.run_folder import RunFolder

__all__ = ["FolderLock", "JoinedFolder", "RankOutput", "RunFolder", "take_lock"]
