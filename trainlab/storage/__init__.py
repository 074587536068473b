"""Folders on any file system: written durably, published atomically, read back with checksums."""

from trainlab.storage.checksums import ALGORITHM, Checksum, is_checksum
from trainlab.storage.faults import reached
from trainlab.storage.names import MARK
from trainlab.storage.store import Store, open_store

__all__ = ["ALGORITHM", "MARK", "Checksum", "Store", "is_checksum", "open_store", "reached"]
