"""What a run is made of besides its training: its folder, its parameters, its record. No torch."""

from trainlab.experiments.folder_lock import FolderLock, take_lock
from trainlab.experiments.joined_folder import JoinedFolder
from trainlab.experiments.rank_output import RankOutput
from trainlab.experiments.run_folder import RunFolder

__all__ = ["FolderLock", "JoinedFolder", "RankOutput", "RunFolder", "take_lock"]
