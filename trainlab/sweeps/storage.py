"""Where a search's trials are kept: opened, and refused where several processes would damage it."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.experiments.searched import connect
from trainlab.runs.masking import mask_passwords

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["check_local", "file_system", "open_storage", "sqlite_url"]

_MOUNTS = "/proc/self/mounts"
# SQLite's locks, and its order of writes, are not to be relied on there.
# Source: https://www.sqlite.org/faq.html#q5 and https://www.sqlite.org/howtocorrupt.html, section 2.1.
_OF_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|lustre|gpfs|beegfs|ceph|glusterfs|9p|afs|ocfs2|gfs2|orangefs|pvfs2|wekafs|panfs|"
    r"fuse\.(sshfs|glusterfs|ceph|ceph-fuse|s3fs|rclone|gcsfuse|juicefs|mfs|beegfs|lizardfs|goofys|cvmfs2?)|vboxsf|vmhgfs"
)


def open_storage(url: str) -> "BaseStorage":
    """Open the storage of a search; a SQLite file is made if need be.

    Args:
        url: as for ``trainlab.experiments.searched.connect``.

    Returns:
        Optuna's storage.

    Raises:
        InvalidTypeError: it is no text.
        InvalidValueError: it is no URL; SQLite is in memory, or on a network's file system.
        MissingDependencyError: Optuna, or the database's driver, is not installed.
        StorageError: the storage cannot be reached.
    """
    if not isinstance(url, str):
        raise InvalidTypeError(
            f"storage is a URL, for each trial's process opens it anew. Received: {type(url).__name__}. "
            "Write 'postgresql://user@host/name', say."
        )
    if url.startswith("sqlite"):
        check_local(url)
    return connect(url)


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file.

    Args:
        path: the file.

    Returns:
        Such as "sqlite:////data/study.db".

    Raises:
        InvalidValueError: the path has a character that such a URL cannot have.
    """
    from sqlalchemy import make_url

    place = os.path.abspath(path)
    # SQLAlchemy unquotes the path from 2.1 on. Optuna fills in what stands in braces.
    for text in (re.sub(r"[%?#{}]", lambda found: quote(found[0]), place), place):
        if not re.search(r"[{}]", text) and make_url(url := f"sqlite:///{text}").database == place:
            return url
    raise InvalidValueError(
        f"A SQLite file cannot be in a folder of such a name. Received: {place}. Pass another output_dir, or storage."
    )


def file_system(path: Path, mounts: str | os.PathLike[str] = _MOUNTS) -> str:
    """The kind of the file system that a path is on.

    Args:
        path: a file or folder, which need not be there.
        mounts: the list of what is mounted, as the kernel gives it.

    Returns:
        Such as "ext4" or "nfs4"; "" where it is not known.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    resolved = path.resolve()
    found = ("", "")
    for line in lines:
        _, where, kind, *_ = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), where)
        # Of two that are mounted at one place the later one is seen.
        if resolved.is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]


def check_local(url: str, mounts: str | os.PathLike[str] = _MOUNTS) -> None:
    """See that a SQLite file is on a disk of this machine.

    Args:
        url: its URL.
        mounts: as for ``file_system``.

    Raises:
        InvalidValueError: it is in memory, or on a network's file system.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        name = make_url(url).database
    except ArgumentError:
        return  # which is told where it is opened
    if name in (None, "", ":memory:"):
        raise InvalidValueError(
            f"A search's trials are processes of their own, which share no memory. Received: {mask_passwords(url)}. "
            "Name a file: sqlite:////data/study.db; or leave storage out."
        )
    path = Path(name).absolute()
    kind = file_system(path, mounts)
    if _OF_NETWORK.fullmatch(kind):
        raise InvalidValueError(
            f"A SQLite file on a network's file system is damaged by several processes. Received: {path}, on {kind}. "
            "Pass storage='postgresql://user@host/name'; or a file on a local disk, 'sqlite:////tmp/study.db'; or "
            f"Optuna's journal, which can be on NFS, 'journal://{path.with_suffix('.log')}'."
        )
