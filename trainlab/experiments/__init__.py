"""What a run is made of besides its training: its folder, its parameters, its record. No torch."""

from trainlab.experiments.joined_folder import JoinedFolder
from trainlab.experiments.run_folder import FolderLock, RunFolder, take_lock

__all__ = ["FolderLock", "JoinedFolder", "RunFolder", "take_lock"]
