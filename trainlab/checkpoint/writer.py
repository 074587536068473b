"""Writing a checkpoint: data first, the manifest last; whatever stops it leaves the earlier ones as they are."""

import logging
import os
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainlab.checkpoint.manifest import (
    FORMAT,
    FORMAT_VERSION,
    LARGEST_SEQUENCE,
    MANIFEST,
    UNFINISHED,
    is_inside,
    render_manifest,
)
from trainlab.checkpoint.snapshot import Contents, Snapshot
from trainlab.errors import CheckpointError
from trainlab.storage import Checksum, Store, open_store

__all__ = [
    "BeforeCommit",
    "Files",
    "Target",
    "WriteAbortedError",
    "commit",
    "described",
    "explained",
    "make_folder",
    "undo",
    "undone",
    "write_and_call",
    "write_contents",
    "write_files",
]

# Small enough that a stop is noticed soon, large enough that the interpreter's lock is seldom needed.
_CHUNK = 8 * 2**20
_PARALLEL_UPLOADS = 4

logger = logging.getLogger("trainlab.checkpoint")

# Size and checksum of each file, as in a manifest.
Files = dict[str, dict[str, Any]]
BeforeCommit = Callable[[Path], None]


class WriteAbortedError(CheckpointError):
    """A write was given up because the program is being aborted."""


@dataclass(frozen=True)
class Target:
    """Where a checkpoint goes.

    Attributes:
        store: the store.
        name: the folder's name in it, of which nothing is there yet.
        sequence: the checkpoint's number among those of the store.
    """

    store: Store
    name: str
    sequence: int

    @property
    def location(self) -> Path | str:
        """What opens the checkpoint: a path, or a URL."""
        return self.store.location(self.name)


def write_files(
    target: Target,
    contents: Contents,
    *,
    before_commit: BeforeCommit | None = None,
    is_aborted: Callable[[], bool] = lambda: False,
) -> Files:
    """Write the data of a checkpoint and bring it to the disk; if this raises, nothing of it is left.

    Args:
        target: where to.
        contents: the files' bytes.
        before_commit: called with a local folder that holds the files; what it adds there becomes part of the
            checkpoint. Default None.
        is_aborted: asked between the pieces.

    Returns:
        The files for the manifest.

    Raises:
        CheckpointError: it cannot be written, or what ``before_commit`` left cannot be part of a checkpoint.
        WriteAbortedError: ``is_aborted`` said so.
    """
    make_folder(target)
    with undone(target):
        if before_commit is None:
            files = write_contents(target, contents, is_aborted)
        else:
            files = write_and_call(target, contents, before_commit, is_aborted)
        with explained(target):
            target.store.sync_folder(target.name)
    return files


def make_folder(target: Target) -> None:
    """Make a checkpoint's folder, with the mark of what is not finished; if this raises, nothing of it is left.

    Args:
        target: where it goes.

    Raises:
        CheckpointError: it cannot be made, or there is something already.
    """
    with explained(target):
        target.store.make_folder(target.name)
    with undone(target), explained(target):
        target.store.write(f"{target.name}/{UNFINISHED}", [])
        target.store.sync_folder(target.name)


def write_contents(target: Target, contents: Contents, is_aborted: Callable[[], bool]) -> Files:
    """Write files into a checkpoint's folder; what was written stays on an error.

    Args:
        target: where to; the folders are there.
        contents: the files' bytes.
        is_aborted: asked between the pieces.

    Returns:
        The files for the manifest.

    Raises:
        CheckpointError: they cannot be written.
        WriteAbortedError: ``is_aborted`` said so.
    """
    with explained(target):
        return _write_all(target.store, target.name, contents, is_aborted)


def commit(
    target: Target,
    snapshot: Snapshot,
    files: Files,
    *,
    ranks: Sequence[Mapping[str, Any]] = (),
    before_publish: Callable[[], None] = lambda: None,
) -> None:
    """Make the files that were written a checkpoint, by the manifest; if this raises, nothing of it is left.

    Args:
        target: where they are.
        snapshot: what the manifest tells.
        files: what ``write_files`` gave, and other ranks' files.
        ranks: of each further rank the names of its files: ``weights`` and ``state``, as of its snapshot. Default none.
        before_publish: called before the manifest is written. Default: nothing.

    Raises:
        CheckpointError: the manifest cannot be written.
    """
    if target.sequence > LARGEST_SEQUENCE:
        raise CheckpointError(
            f"There is no number left for a checkpoint after those in {target.store.url}. Received: {target.sequence}. "
            "Remove the checkpoint there with the greatest sequence, which no run can have given it."
        )
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sequence": target.sequence,
        "created": datetime.now(timezone.utc).isoformat(),
        "files": dict(sorted(files.items())),
        "weights": snapshot.weights,
        "state": snapshot.state,
        "ranks": list(ranks),
        **snapshot.told,
    }
    with undone(target), explained(target):
        _require_own_files(target, manifest)
        before_publish()
        target.store.publish(f"{target.name}/{MANIFEST}", render_manifest(manifest))
    try:
        target.store.remove(f"{target.name}/{UNFINISHED}")
    except OSError as error:  # with a manifest it means nothing
        logger.warning("The mark of a write cannot be removed from the checkpoint %s: %s.", target.location, error)


def _write_all(store: Store, folder: str, contents: Contents, is_aborted: Callable[[], bool]) -> Files:
    def write(name: str, pieces: Iterator[memoryview]) -> tuple[str, dict[str, Any]]:
        measure = _Measure(pieces, is_aborted)
        store.write(f"{folder}/{name}", measure)
        return name, {"size": measure.size, "checksum": measure.checksum.text}

    if store.is_local:
        return dict(write(name, pieces) for name, pieces in contents)
    with ThreadPoolExecutor(_PARALLEL_UPLOADS, thread_name_prefix="trainlab-upload") as pool:
        return dict(pool.map(lambda file: write(*file), contents))


class _Measure:
    """Pieces on their way to a store, cut small, counted and summed."""

    def __init__(self, pieces: Iterator[memoryview], is_aborted: Callable[[], bool]) -> None:
        self._pieces = pieces
        self._is_aborted = is_aborted
        self.size = 0
        self.checksum = Checksum()

    def __iter__(self) -> Iterator[memoryview]:
        for piece in self._pieces:
            for begin in range(0, len(piece), _CHUNK):
                if self._is_aborted():
                    raise WriteAbortedError("The checkpoint being written was given up: the program is aborted.")
                chunk = piece[begin : begin + _CHUNK]
                self.checksum.update(chunk)
                self.size += len(chunk)
                yield chunk


def write_and_call(
    target: Target, contents: Contents, before_commit: BeforeCommit, is_aborted: Callable[[], bool]
) -> Files:
    """Let the user's hook see the files; those of a remote checkpoint are written here first, and uploaded after it.

    Args:
        target: where to; the folder is there.
        contents: the files' bytes.
        before_commit: the hook, which gets the local folder of the files.
        is_aborted: asked between the pieces.

    Returns:
        The files for the manifest, the hook's too.

    Raises:
        CheckpointError: they cannot be written, or what the hook left cannot be part of a checkpoint.
        WriteAbortedError: ``is_aborted`` said so.
    """
    with ExitStack() as closing:
        here = target.store
        if not here.is_local:
            here = open_store(closing.enter_context(tempfile.TemporaryDirectory(prefix="trainlab-")))
            here.make_folder(target.name)
        folder = Path(here.location(target.name))
        with explained(target):
            _write_all(here, target.name, contents, is_aborted)
        before_commit(folder)
        with explained(target):
            files = described(here, target.name)
            if here is not target.store:
                uploads: Contents = [(file, _read_pieces(folder / file)) for file in files]
                _write_all(target.store, target.name, uploads, is_aborted)
    return files


def described(store: Store, name: str, *, without: Container[str] = ()) -> Files:
    """Tell what is there after the user's hook, which may have changed the files, too.

    Args:
        store: where the folder is, on this machine.
        name: the folder.
        without: files that are left out; default none.

    Returns:
        The files for the manifest, durable.

    Raises:
        CheckpointError: one of them has a name that none of a checkpoint may have.
    """
    folder = Path(store.location(name))
    files: Files = {}
    for file, size in store.files(name).items():
        if file == UNFINISHED or file in without:
            continue
        if not is_inside(file):
            raise CheckpointError(f"A checkpoint cannot hold a file of this name. Received: {file!r}. Rename it.")
        files[file] = {"size": size, "checksum": _checksum_on_disk(folder / file)}
    for inside in {parent for file in files for parent in Path(name, file).parents[:-2]}:
        store.sync_folder(inside.as_posix())
    return files


def _checksum_on_disk(path: Path) -> str:
    checksum = Checksum()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
        os.fsync(file.fileno())
    return checksum.text


def _read_pieces(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield memoryview(chunk)


def _require_own_files(target: Target, manifest: dict[str, Any]) -> None:
    used = [manifest, *manifest["ranks"]]
    own = {file for of in used for names in (of["state"], *of["weights"].values()) for file in names.values()}
    missing = sorted(own - set(manifest["files"]))
    if missing:
        raise CheckpointError(
            f"Files of a checkpoint were removed before it was committed. Received: {target.location}, without "
            f"{', '.join(missing)}. A hook that runs before the commit may add files, and remove none."
        )


@contextmanager
def explained(target: Target) -> Iterator[None]:
    """Turn errors of the store into errors of the checkpoint.

    Args:
        target: where it goes.

    Raises:
        CheckpointError: the block raised an OSError.
    """
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"A checkpoint cannot be written: {str(error.strerror or error).rstrip('.')}. Received: {target.location}. "
            "Nothing of it is left, and earlier ones are as they were. Make room there, or make it writable."
        ) from error


@contextmanager
def undone(target: Target) -> Iterator[None]:
    """Remove what was written of a checkpoint if the block raises.

    Args:
        target: where it goes.
    """
    try:
        yield
    except BaseException:
        undo(target)
        raise


def undo(target: Target) -> None:
    """Remove what was written of a checkpoint; if it cannot be removed, that is logged.

    Args:
        target: where it goes.
    """
    try:
        # The manifest first: a crash in the middle leaves rubbish, and no damaged checkpoint.
        target.store.remove(f"{target.name}/{MANIFEST}")
        target.store.remove_folder(target.name)
    except OSError as error:
        logger.error("The half-written checkpoint %s cannot be removed: %s.", target.location, error)
