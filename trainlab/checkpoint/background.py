"""CheckpointWriter: writes checkpoints one after the other, beside the training, and removes those no longer kept."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from trainlab.checkpoint.forked import ForkedWrite, obstacle_to_fork
from trainlab.checkpoint.layout import checkpoint_name, list_checkpoints, remove_checkpoint
from trainlab.checkpoint.manifest import LARGEST_MANIFEST, MANIFEST, read_manifest, read_sequence
from trainlab.checkpoint.reader import Checkpoint
from trainlab.checkpoint.retention import Entry, Retention, expired
from trainlab.checkpoint.snapshot import Contents, Snapshot, Staging
from trainlab.checkpoint.together import Channel, Together
from trainlab.checkpoint.tree import decode
from trainlab.checkpoint.writer import BeforeCommit, Files, Target, commit, write_files
from trainlab.errors import CheckpointError, InvalidValueError
from trainlab.storage import Store, reached

__all__ = ["MODES", "CheckpointWriter", "SaveMode", "Write"]

SaveMode = Literal["async", "sync", "fork"]
MODES: tuple[SaveMode, ...] = ("async", "sync", "fork")

logger = logging.getLogger("trainlab.checkpoint")


@dataclass
class Write:
    """A checkpoint that is being written, or was.

    Attributes:
        target: where it goes.
        entry: what retention has to know of it.
        error: why it was not written; None while it is, and if it was.
    """

    target: Target
    entry: Entry
    error: BaseException | None = None
    # An event, for a join that a signal's handler interrupts takes the thread to have ended.
    _done: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def location(self) -> Path | str:
        """What opens the checkpoint, once it is written: a path, or a URL."""
        return self.target.location

    @property
    def is_done(self) -> bool:
        """Whether it is written and durable, or has failed."""
        return self._done.is_set()

    def wait(self) -> None:
        """Wait until it is done."""
        self._done.wait()


class CheckpointWriter:
    """Writes the checkpoints of one run into a store that no other process writes to but the run's own ranks.

    Of several ranks each has one, and calls its methods as the others do: each writes its own files, and the first
    rank, the chief, commits, numbers and removes checkpoints. They have the same outcome: all that is told of a write
    once it is settled is the same on every rank, and that it is settled, if every rank waits for it.

    Args:
        store: the folder of the checkpoints.
        mode: how training goes on meanwhile. "async": on copies in memory kept for that; "fork": a forked child has
            the copies (Linux, on the CPU, a local store; otherwise as "async"); "sync": it waits.
        retention: which checkpoints are kept.
        metric: the validation metric that tells which is the best; None if none does.
        smaller_is_better: whether a smaller value is better.
        pinned: whether the tensors are on a CUDA device.
        whole: the newest checkpoint that was found whole, if one was. Newer ones are damaged: no rule counts them, and
            they stay as they are. If there are none, what a process that was killed right after it did not come to
            remove is removed now. Default None.
        before_publish: called when the data of a checkpoint is durable, before it is committed; an ``OSError`` that it
            raises is one of the checkpoint. Default: nothing. On the chief only.
        channel: to the writers of the other ranks, used by one thread at a time. Making the writer then is a collective
            call, in which they also find out whether all see the store. Default: none, for one process.
        rank: this rank; default 0.
        ranks: how many there are; default 1.

    Raises:
        CheckpointError: the store cannot be read, or not all ranks see it.
    """

    def __init__(
        self,
        store: Store,
        *,
        mode: SaveMode = "async",
        retention: Retention = Retention(),  # noqa: B008 (it is frozen)
        metric: str | None = None,
        smaller_is_better: bool = True,
        pinned: bool = False,
        whole: Path | str | None = None,
        before_publish: Callable[[], None] = lambda: None,
        channel: Channel | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if ranks > 1 and channel is None:
            raise InvalidValueError(f"Several ranks write checkpoints through a channel. Received: {ranks} and none.")
        self._together = Together(channel, rank, ranks) if channel is not None and ranks > 1 else None
        self._store = store
        self._mode = mode
        self._retention = retention
        self._metric = metric
        self._smaller_is_better = smaller_is_better
        self._before_publish = before_publish
        self._staging = Staging(pinned=pinned)
        self._reserving: threading.Thread | None = None
        self._aborted = threading.Event()
        self._entries: dict[str, Entry] = {}
        self._known_whole: set[str] = set()
        self._last_sequence = 0
        self._taken: set[str] = set()
        # Of several ranks the chief alone knows more than the names.
        look = partial(self._look, whole)
        self._names = look() if self._together is None else self._together.agree(look, store)
        self._in_flight: Write | None = None
        self._told_no_fork = False
        self._child: ForkedWrite | None = None

    @property
    def names(self) -> list[str]:
        """The names of the checkpoints that are durable."""
        return list(self._names)

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._in_flight is not None and not self._in_flight.is_done

    @property
    def is_done(self) -> bool:
        """Whether a write is done, or has failed, and not settled yet: each rank sees it at another time."""
        return self._in_flight is not None and self._in_flight.is_done

    def location(self, name: str) -> Path | str:
        """Give what opens a checkpoint.

        Args:
            name: its name.

        Returns:
            A path, or a URL.
        """
        return self._store.location(name)

    def next_name(self, batches_trained: int) -> str:
        """Give the name that the next checkpoint gets. Of several ranks the chief asks, and tells the others.

        Args:
            batches_trained: how many batches were trained.

        Returns:
            ``batch-0000500``, or ``batch-0000500.1`` and so on where there is, or was to be, something of that name.
        """
        return checkpoint_name(batches_trained, self._taken)

    def reserve(self, snapshot: Snapshot) -> None:
        """Take the memory for copies, beside the training, so that the first checkpoint need not.

        Args:
            snapshot: one of the size of those to come.
        """
        if self._mode == "async" and self._reserving is None:
            self._reserving = threading.Thread(
                target=self._take_memory, args=(snapshot.size,), name="trainlab-staging", daemon=True
            )
            self._reserving.start()

    def start(
        self, snapshot: Snapshot, entry: Entry, *, before_commit: BeforeCommit | None = None, wait: bool
    ) -> Write:
        """Write a checkpoint. One that is still being written must have been settled before.

        Args:
            snapshot: what to write; its tensors may change once this returns.
            entry: what retention has to know of it, with the name that ``next_name`` gave; its sequence is set here.
            before_commit: called with a local folder of the data; makes this wait. Default None. Of several ranks only
                the chief calls it.
            wait: whether to return only when it is done; nothing is copied then.

        Returns:
            The write; ``settle`` returns it when it is done.
        """
        target = Target(self._store, entry.name, self._last_sequence + 1)
        write = Write(target, replace(entry, sequence=target.sequence))
        self._taken.add(entry.name)
        beside = not wait and self._mode != "sync" and before_commit is None
        work = self._work_beside(snapshot, target) if beside else None
        self._in_flight = write  # not before: an error of the copy is raised, and no write is there to be settled
        if work is None:
            self._finish(write, self._work(snapshot, target, snapshot.contents(), before_commit=before_commit))
            return write
        threading.Thread(target=self._finish, args=(write, work), name="trainlab-checkpoint", daemon=True).start()
        return write

    def settle(self, *, wait: bool = False) -> Write | None:
        """Ask for a write that is done.

        Args:
            wait: whether to wait for one that is not done yet.

        Returns:
            The write, once; None if there is none, or it is not done.
        """
        write = self._in_flight
        if write is None or not (wait or write.is_done):
            return None
        begun = time.monotonic()
        write.wait()
        if wait:
            logger.debug("Waited %.1f s for %s.", time.monotonic() - begun, write.location)
        self._in_flight = None
        return write

    def abort(self) -> None:
        """Give up what is being written; it is settled soon, with an error."""
        self._aborted.set()
        if self._child is not None:
            self._child.abort()

    def close(self) -> None:
        """Give the memory for copies back; nothing may be written any more."""
        if self._reserving is not None:
            self._reserving.join()
        self._staging.release()

    def _take_memory(self, size: int) -> str | None:
        """Take the memory for copies; the reason, if there is not so much."""
        try:
            self._staging.reserve(size)
        except (RuntimeError, MemoryError) as error:  # torch's allocators raise the former
            return str(error)
        return None

    def _work(
        self,
        snapshot: Snapshot,
        target: Target,
        contents: Contents,
        *,
        before_commit: BeforeCommit | None = None,
        is_aborted: Callable[[], bool] = lambda: False,
    ) -> Callable[[Write], None]:
        """What makes a checkpoint of its bytes."""
        if self._together is None:
            written = partial(write_files, target, contents, before_commit=before_commit, is_aborted=is_aborted)
            return partial(self._commit, snapshot, written)
        together = self._together

        def work(write: Write) -> None:
            self._names = together.write(
                target,
                snapshot,
                contents,
                before_commit=before_commit,
                before_publish=self._before_publish,
                is_aborted=is_aborted,
                after_commit=lambda: self._note(write),
            )

        return work

    def _commit(self, snapshot: Snapshot, written: Callable[[], Files], write: Write) -> None:
        files = written()
        reached("data durable")
        commit(write.target, snapshot, files, before_publish=self._before_publish)
        self._note(write)

    def _note(self, write: Write) -> list[str]:
        """Take note of a checkpoint that is there, and remove those that are no longer kept; the names of the rest."""
        reached("committed")
        self._last_sequence = write.target.sequence
        self._entries[write.entry.name] = write.entry
        self._known_whole.add(write.entry.name)
        self._remove_expired()
        self._names = list(self._entries)
        return self._names

    def _work_beside(self, snapshot: Snapshot, target: Target) -> Callable[[Write], None] | None:
        """Copy the tensors, and say what a thread has to do to have the files written; None without memory for it."""
        if self._mode == "fork":
            several = "several processes write them together"
            obstacle = obstacle_to_fork(snapshot, target) if self._together is None else several
            if obstacle is None:
                try:
                    self._child = ForkedWrite(target, snapshot)
                except OSError as error:
                    obstacle = f"the process cannot be forked ({error.strerror})"
                else:
                    reached("forked")
                    return partial(self._commit, snapshot, self._child.result)
            if not self._told_no_fork:
                logger.warning("Checkpoints are copied in memory instead of by a fork: %s.", obstacle)
                self._told_no_fork = True
        if self._reserving is not None:
            self._reserving.join()
        lack = self._take_memory(snapshot.size)
        if lack is not None:
            logger.warning(
                "Training waits while %s is written, for there is no memory for a copy of its %d MB: %s",
                target.location,
                snapshot.size / 1e6,
                lack,
            )
            return None
        contents = snapshot.contents(self._staging.copy(snapshot))
        reached("staged")
        return self._work(snapshot, target, contents, is_aborted=self._aborted.is_set)

    def _finish(self, write: Write, work: Callable[[Write], None]) -> None:
        try:
            work(write)
        except BaseException as error:  # it is raised where the write is settled
            write.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            write._done.set()

    def _look(self, whole: Path | str | None) -> list[str]:
        """Look at what is there, and remove what a killed process did not come to; the names of the checkpoints."""
        self._entries, self._last_sequence = _found(self._store)
        # Nobody else writes here, so that the store need not be asked again while training waits.
        self._taken = set(self._store.folders())
        found = next((entry for entry in self._entries.values() if self.location(entry.name) == whole), None)
        if found is not None:
            self._known_whole.add(found.name)
            for entry in [entry for entry in self._entries.values() if entry.sequence > found.sequence]:
                self._leave_out(entry.name)
            if found.sequence == self._last_sequence:
                self._remove_expired()
        return list(self._entries)

    def _leave_out(self, name: str) -> None:
        """Count one no more that is not whole: it would be kept in the place of one that is."""
        del self._entries[name]
        logger.warning(
            "Checkpoint %s is not whole: it does not count among those that are kept, and is left as it is. Remove it "
            "by hand when it is of no use.",
            self._store.location(name),
        )

    def _expired(self) -> list[str]:
        return expired(
            list(self._entries.values()),
            self._retention,
            metric=self._metric,
            smaller_is_better=self._smaller_is_better,
        )

    def _know_the_last(self) -> None:
        """See that those that are kept as the last ones are whole; an earlier process's are read for it, once."""
        while unknown := [name for name in self._last() if name not in self._known_whole]:
            for name in unknown:
                try:
                    Checkpoint.open_in(self._store, name).close()
                except CheckpointError as error:
                    logger.error("A checkpoint that was to be kept is of no use. %s", error)
                    self._leave_out(name)
                else:
                    self._known_whole.add(name)

    def _last(self) -> list[str]:
        in_order = sorted(self._entries.values(), key=lambda entry: entry.sequence)
        return [entry.name for entry in in_order[-(self._retention.keep_last or 0) :]]

    def _remove_expired(self) -> None:
        if self._expired():
            self._know_the_last()
        chosen = self._expired()
        for name in chosen:
            reached("retention chosen")
            try:
                if remove_checkpoint(self._store, name):
                    del self._entries[name]
                    self._taken.discard(name)
                    logger.info("Removed checkpoint %s, which is no longer kept.", name)
                else:
                    logger.info("Checkpoint %s is being read, and removed later.", name)
            except OSError as error:
                del self._entries[name]  # told once, and tried again by the next start
                logger.error(
                    "Checkpoint %s, no longer kept, cannot be removed: %s",
                    self._store.location(name),
                    str(error).rstrip(".") + ".",
                )
        reached("retention done")


def _found(store: Store) -> tuple[dict[str, Entry], int]:
    """All checkpoints that can be made out, by name, and the greatest sequence; a damaged one is never removed."""
    entries, last = {}, 0
    for name in list_checkpoints(store):
        try:
            data = store.read(f"{name}/{MANIFEST}", LARGEST_MANIFEST)
            last = max(last, read_sequence(data) or 0)
            manifest = read_manifest(data, str(store.location(name)))
            entries[name] = Entry.of(name, manifest.sequence, decode(manifest.progress, {}))
        except (CheckpointError, OSError) as error:
            logger.warning("Checkpoint %s cannot be read, and is left as it is: %s", store.location(name), error)
    return entries, last
