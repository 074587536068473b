"""Several ranks write one checkpoint: each its own files, and the first, the chief, makes them one by the manifest."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trainlab.checkpoint.manifest import UNFINISHED
from trainlab.checkpoint.parts import Box, tiles
from trainlab.checkpoint.shared_place import leave_mark, remove_mark, told_unseen, why_unseen
from trainlab.checkpoint.snapshot import Contents, Snapshot, folder_of_rank
from trainlab.checkpoint.writer import (
    BeforeCommit,
    Files,
    Target,
    WriteAbortedError,
    commit,
    described,
    explained,
    make_folder,
    undo,
    undone,
    write_and_call,
    write_contents,
)
from trainlab.errors import CheckpointError, PeerFailedError
from trainlab.storage import Store, reached

__all__ = ["Channel", "Together"]

_CHIEF = 0
# What can go wrong, the worst first.
_KINDS = ("other", "checkpoint", "aborted")
# What a rank tells the others: JSON with these members, each only where it has something to say.
_Told = dict[str, Any]


class Channel(Protocol):
    """What the threads that write checkpoints talk through; an error of another rank comes out of it."""

    def gather(self, value: bytes) -> list[bytes] | None:
        """Send the chief a value of every rank.

        Args:
            value: this rank's.

        Returns:
            On the chief all of them, by rank; None elsewhere.
        """
        ...

    def broadcast(self, value: bytes | None = None) -> bytes:
        """Send all ranks a value of the chief's.

        Args:
            value: the value; default None, elsewhere.

        Returns:
            The value.
        """
        ...


class Together:
    """This rank's side of writing checkpoints together.

    If a rank cannot write, no rank has a checkpoint, and the chief removes what was written. If one is gone, nobody
    knows whether the others still write: what was written stays, with the mark by which the next start removes it.

    Args:
        channel: to the same object on the other ranks.
        rank: this rank.
        ranks: how many they are.
    """

    def __init__(self, channel: Channel, rank: int, ranks: int) -> None:
        self._channel = channel
        self.rank = rank
        self.ranks = ranks

    def agree(self, find: Callable[[], list[str]], store: Store) -> list[str]:
        """Let the chief find something in a store, tell the others, and see that they have the same store.

        Args:
            find: called on the chief only.
            store: where it looks, as this rank has it. If nothing can be written there, nothing is compared.

        Returns:
            What it found, on every rank.

        Raises:
            CheckpointError: the chief could not find it, or a rank does not see the store.
        """
        if self.rank == _CHIEF:
            with self._telling():
                found = find()
                mark = leave_mark(store)
            self._tell({"names": found, "mark": mark})
        else:
            told = self._outcome(None)
            found, mark = list(told["names"]), told["mark"]
        if mark is not None:
            self._require_shared(store, mark)
        return found

    def write(
        self,
        target: Target,
        snapshot: Snapshot,
        contents: Contents,
        *,
        before_commit: BeforeCommit | None,
        before_publish: Callable[[], None],
        is_aborted: Callable[[], bool],
        after_commit: Callable[[], list[str]],
    ) -> list[str]:
        """Write a checkpoint. Every rank calls this.

        Args:
            target: where to; the same on every rank, but for the sequence, which is the chief's.
            snapshot: what to write, of this rank.
            contents: its bytes.
            before_commit: as for ``write_files``; called on the chief only. In a local store the folder has the files
                of all ranks, of which it may change only the chief's; in a remote one it has the chief's.
            before_publish: called on the chief before the manifest is written.
            is_aborted: asked between the pieces.
            after_commit: called on the chief when the checkpoint is there.

        Returns:
            What ``after_commit`` gave, on every rank.

        Raises:
            CheckpointError: it could not be written, by this rank or another one.
            WriteAbortedError: it was given up, by this rank or another one.
            PeerFailedError: another rank failed in another way.
        """
        if self.rank == _CHIEF:
            with self._telling():
                make_folder(target)
            self._tell({"name": target.name})
            name = target.name
        else:
            name = self._outcome(None)["name"]
        hook = before_commit if self.rank == _CHIEF and not target.store.is_local else None
        error, own = self._own_part(target, name, snapshot, contents, hook, is_aborted)
        answers = self._channel.gather(_packed(own))
        if answers is None:
            return list(self._outcome(error)["names"])
        parts = [_unpacked(answer) for answer in answers]
        self._require_all(target, parts, error)
        with self._telling():
            with undone(target):
                files = _joined(target, parts, before_commit if target.store.is_local else None)
            reached("data durable")
            ranks = [{"weights": part["weights"], "state": part["state"]} for part in parts[1:]]
            commit(target, snapshot, files, ranks=ranks, before_publish=before_publish)
        names = after_commit()
        self._tell({"names": names})
        return names

    def _own_part(
        self,
        target: Target,
        name: str,
        snapshot: Snapshot,
        contents: Contents,
        hook: BeforeCommit | None,
        is_aborted: Callable[[], bool],
    ) -> tuple[Exception | None, _Told]:
        """Write this rank's files; what went wrong, and what the chief is told."""
        try:
            if name != target.name:
                raise CheckpointError(
                    f"The ranks of a run write one checkpoint under one name. Received: {target.name!r} on rank "
                    f"{self.rank}, and {name!r} on rank 0. Give all the name that the first rank's next_name gives."
                )
            folder = folder_of_rank(self.rank)
            with explained(target):
                if folder:
                    _require_mark(target)
                    target.store.make_folder(f"{target.name}/{folder.rstrip('/')}")
            if hook is not None:
                files = write_and_call(target, contents, hook, is_aborted)
            else:
                files = write_contents(target, contents, is_aborted)
            with explained(target):
                target.store.sync_folder(f"{target.name}/{folder}".rstrip("/"))
        except Exception as error:
            return error, {**_told_of(error), "rank": self.rank}
        told = {"files": files, "weights": snapshot.weights, "state": snapshot.state, "parts": snapshot.told_parts()}
        return None, told

    def _require_shared(self, store: Store, mark: str) -> None:
        """Raise on all ranks if one does not see what the chief has left in the store."""
        if self.rank == _CHIEF:
            try:
                answers = self._channel.gather(_packed({})) or []
            finally:
                remove_mark(store, mark)
            unseen = {rank: told["unseen"] for rank, told in enumerate(map(_unpacked, answers)) if "unseen" in told}
            outcome: _Told = {"blind": min(unseen), "text": told_unseen(store, unseen)} if unseen else {}
            self._tell(outcome)
        else:
            reason = why_unseen(store, mark)
            self._channel.gather(_packed({} if reason is None else {"unseen": reason}))
            outcome = self._outcome(None)
        if outcome:
            error = CheckpointError(outcome["text"])
            if outcome["blind"] != self.rank:  # so that one rank tells, and the others only what it told
                error.__cause__ = PeerFailedError(f"Rank {outcome['blind']} does not see the place of checkpoints.")
            raise error

    def _require_all(self, target: Target, parts: list[_Told], own: Exception | None) -> None:
        """Raise on all ranks what went wrong on one: an error rather than that it was given up."""
        failed = [part for part in parts if "error" in part]
        if not failed:
            return
        worst = min(failed, key=lambda part: (_KINDS.index(part["kind"]), part["rank"]))
        undo(target)  # nobody writes any more
        self._tell(worst)
        if own is not None and worst["rank"] == _CHIEF:
            raise own
        raise _error_of(worst)

    def _tell(self, told: _Told) -> None:
        self._channel.broadcast(_packed(told))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the other ranks what goes wrong on the chief."""
        try:
            yield
        except Exception as error:
            self._tell({**_told_of(error), "rank": _CHIEF})
            raise

    def _outcome(self, own: Exception | None) -> _Told:
        """What the chief tells; an error is raised, this rank's own if that is the one."""
        told = _unpacked(self._channel.broadcast(None))
        if "error" in told:
            if own is not None and told["rank"] == self.rank:
                raise own
            error = _error_of(told)
            error.__cause__ = error.__cause__ if own is None else own
            raise error
        return told


def _told_of(error: Exception) -> _Told:
    if isinstance(error, WriteAbortedError):
        return {"kind": "aborted", "error": str(error)}
    if isinstance(error, CheckpointError):
        return {"kind": "checkpoint", "error": str(error)}
    return {"kind": "other", "error": f"{type(error).__name__}: {error}"}


def _error_of(told: _Told) -> Exception:
    if told["kind"] == "aborted":
        return WriteAbortedError(told["error"])
    failure = PeerFailedError(f"Rank {told['rank']} failed while a checkpoint was written: {told['error']}")
    if told["kind"] != "checkpoint":
        return failure
    error = CheckpointError(f"Rank {told['rank']}: {told['error']}" if told["rank"] else told["error"])
    error.__cause__ = failure  # so that only that rank is taken to have failed
    return error


def _require_mark(target: Target) -> None:
    """See that the folder is the one that the chief has made."""
    try:
        target.store.size(f"{target.name}/{UNFINISHED}")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"A rank does not see the folder that rank 0 has made for a checkpoint. Received: {target.location}. "
            "Put the run's folder where all ranks see the same files: a file system that the machines share, or an "
            "object store."
        ) from error


def _joined(target: Target, parts: list[_Told], hook: BeforeCommit | None) -> Files:
    """The files of all ranks, if they are there and what they hold fits together."""
    _require_whole(parts)
    others: Files = {name: entry for part in parts[1:] for name, entry in part["files"].items()}
    own: Files = parts[0]["files"]
    if hook is not None:
        folder = Path(target.store.location(target.name))
        before = {name: _stamp(folder / name) for name in others}
        hook(folder)
        changed = [name for name in others if _stamp(folder / name) != before[name]]
        if changed:
            raise CheckpointError(
                f"A hook that runs before the commit may add files, and may not change those of other ranks. "
                f"Received: {target.location}, with {changed[0]} changed."
            )
        own = described(target.store, target.name, without=others)
    files = {**own, **others}
    with explained(target):
        there = target.store.files(target.name)
    missing = [name for name, entry in files.items() if there.get(name) != entry["size"]]
    if missing:
        raise CheckpointError(
            f"Rank 0 does not see what other ranks have written of a checkpoint. Received: {target.location}, without "
            f"all of {missing[0]}. Put the run's folder where all ranks see the same files: a file system that the "
            "machines share, or an object store."
        )
    return files


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _require_whole(parts: list[_Told]) -> None:
    """See that a reader will find each element of each tensor once."""
    held: dict[tuple[str, str], list[tuple[Box, tuple[Any, ...]]]] = {}
    for part in parts:
        for file, names in part["parts"].items():
            for name, (offset, shape, whole, dtype) in names.items():
                form = (tuple(whole), dtype)
                held.setdefault((file, name), []).append((Box(tuple(offset), tuple(shape)), form))
    for (file, name), found in held.items():
        boxes, forms = zip(*found, strict=True)
        if len(set(forms)) > 1 or not tiles(forms[0][0], boxes):
            raise CheckpointError(
                f"What the ranks hold of a tensor is not the whole of it, each element once. Received: {name} in "
                f"{file}, {str(found)[:300]}. Give all ranks the same models, and states of the same form."
            )


def _packed(told: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(told).encode(), 1)


def _unpacked(data: bytes) -> _Told:
    told: _Told = json.loads(zlib.decompress(data))
    return told
