"""Names of files and folders in a store: relative, with ``/`` between the parts."""

from trainlab.errors import StorageError

__all__ = ["MARK", "checked_name"]

# A file of this name in a folder says that the folder is not whole; it is the last to be removed.
MARK = ".unfinished"


def checked_name(name: str) -> str:
    """Refuse a name that could lead out of its store, or be another spelling of a name.

    Args:
        name: the name of a file or folder in a store.

    Returns:
        The name.

    Raises:
        StorageError: it is absolute, has a part that is empty, ``.`` or ``..``, or a character that no path can hold.
    """
    if any(part in {"", ".", ".."} for part in name.split("/")) or "\0" in name:
        raise StorageError(f"A name in a store is relative, without '.' or '..' as parts. Received: {name!r}")
    return name
