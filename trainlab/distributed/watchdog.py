"""Watchdog: what this rank is doing, what went wrong first on any rank, and the end of a process that is stuck."""

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict

from trainlab.distributed.activity import Activity
from trainlab.distributed.failure import Failure, is_consequence, is_timeout
from trainlab.distributed.heartbeat import Heartbeat
from trainlab.distributed.launched import note
from trainlab.distributed.store import JobStore
from trainlab.errors import DistributedError, InvalidStateError, InvalidValueError, PeerFailedError

__all__ = ["Watchdog"]

_logger = logging.getLogger(__name__)

_TELLING = 3.0  # seconds that this rank waits at most until the store, or the other ranks, have what it says
_FLUSHING = 0.5
_SOURCE_LINE = re.compile(r"^\[[^\]]*\.cc:\d+\] ")


class Watchdog:
    """Finds the first failure of a job and brings it to all ranks. In one process it does nothing.

    Once a failure is known, a rank has ``grace`` seconds to come out of what it does, by the error of its broken
    collective or by itself; then its process is ended with status 1. A rank that raised an error itself, that has come
    out of ``guard`` with an error or that has ``left`` is not ended.

    Args:
        store: The store of the job; None, the default, in one process.
        rank: Of this process, default 0.
        size: Number of ranks, default 1.
        heartbeat_timeout: Seconds without a sign of life after which a rank is taken for frozen, default 60.
        grace: Seconds from a failure to the end of a process that is stuck, default 5. As long is waited for the cause
            of a broken connection.

    Raises:
        InvalidValueError: A time is not above 0, or there are several ranks and no store.
    """

    def __init__(
        self,
        store: JobStore | None = None,
        rank: int = 0,
        size: int = 1,
        *,
        heartbeat_timeout: float = 60.0,
        grace: float = 5.0,
    ) -> None:
        for name, seconds in (("heartbeat_timeout", heartbeat_timeout), ("grace", grace)):
            if not seconds > 0:
                raise InvalidValueError(f"{name} is a time in seconds above 0. Received: {seconds!r}.")
        if size > 1 and store is None:
            raise InvalidValueError(f"Several ranks watch each other through a store. Received: size={size}, no store.")
        self._rank, self._size, self._grace = rank, size, grace
        self._pid = os.getpid()
        self._activity = Activity()
        self._out, self._told, self._called = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Failure], None]] = []
        self._raised: BaseException | None = None
        self._exit_agreed = self._has_left = False
        self._heart: Heartbeat | None = None
        if store is not None and size > 1:
            self._heart = Heartbeat(store, rank, size, self._activity, timeout=heartbeat_timeout, tell=self._on_failure)
            atexit.register(self._at_exit)

    @property
    def failure(self) -> Failure | None:
        """The job's first failure, None as long as there is none."""
        return None if self._heart is None else self._heart.failure

    @property
    def left_ranks(self) -> frozenset[int]:
        """The other ranks that are known to have ended as they should."""
        return frozenset() if self._heart is None else self._heart.left - {self._rank}

    def phase(self, name: str, batch: int | None = None) -> None:
        """Say what this rank is doing from now on.

        Args:
            name: Such as "train", "validate" or "checkpoint".
            batch: At which batch, default None.
        """
        before = self._activity.now[0]
        if self._activity.now != (name, batch):  # which counts its seconds
            self._activity.now = (name, batch)
        # The others are told of each phase at once, and of batches with the next beat.
        if name != before and self._heart is not None:
            self._heart.beat_now()

    def doing(self, what: str, caller: str | None = None) -> AbstractContextManager[None]:
        """This thread waits for other ranks during the block.

        Args:
            what: In which call, such as "allgather".
            caller: The line that made it, such as "my.py:12"; default None.

        Returns:
            A context manager.
        """
        return nullcontext() if self._heart is None else self._activity.waiting(what, caller)

    def on_failure(self, function: Callable[[Failure], None]) -> None:
        """Register a function that is told of the job's first failure, once, in a thread of its own.

        Args:
            function: Gets the failure; called at once, in the calling thread, if there is one already.
        """
        with self._lock:
            self._callbacks.append(function)
            late = self._told.is_set()
        if late and self.failure is not None:
            function(self.failure)

    def report(self, error: BaseException) -> None:
        """Tell all ranks that this one fails with an error of its own. Waits for nobody but the store, for 3 s at most.

        Args:
            error: What was raised; an error that only follows from another rank's failure is not reported.
        """
        if self._heart is None:
            return
        if threading.current_thread() is threading.main_thread():
            self._out.set()
        if self.failure is None and not is_consequence(error):
            self._heart.submit(Failure.of(error, self._rank, *self._activity.now))
            self._heart.await_failure(_TELLING)
        self._spread()

    def explain(self, error: BaseException) -> BaseException:
        """Find the cause of an error: waits up to ``grace`` seconds for it where another rank's failure may be it.

        Args:
            error: What a collective or the store raised.

        Returns:
            The error that tells the cause: a PeerFailedError; a DistributedError where this rank itself was found to
            have failed, or found that the ranks wait for different things. ``error`` itself if it follows from
            nothing else.
        """
        if self._heart is None or isinstance(error, PeerFailedError) or not is_consequence(error):
            return error
        late = is_timeout(error)
        failure = self._heart.await_failure(min(self._grace, 2 * self._heart.interval + 0.5) if late else self._grace)
        if failure is None:
            failure = self._ask(error, late)
        kind = DistributedError if failure.rank == self._rank else PeerFailedError
        self._raised = kind(failure.headline(self._size))
        return self._raised

    def guard(self) -> AbstractContextManager[None]:
        """Put round the user's work: its error is told to all ranks, and another rank's failure is told here.

        Returns:
            A context manager. An error of this rank's own comes out unchanged. One that only follows from another
            rank's failure comes out as a PeerFailedError with the first cause. A SystemExit without a status, with 0
            or after ``expect_exit`` is no failure.
        """
        return nullcontext() if self._heart is None else self._guarded()

    def end(self, error: BaseException) -> BaseException:
        """An error ends this rank's work: tell the other ranks, or find whose failure it follows from.

        Args:
            error: What came out of the user's work, of a block of ``guard`` or without one.

        Returns:
            ``error`` itself if it is this rank's own, or if a ``guard`` gave it; else the PeerFailedError that it
            stands for.
        """
        if self._heart is None or (isinstance(error, SystemExit) and (self._exit_agreed or error.code in (None, 0))):
            return error
        self._out.set()
        if error is self._raised:
            self._spread()
            return error
        cause = self.explain(error)
        if cause is not error:
            self._spread()
            return cause
        self._raised = error
        self.report(error)
        self._note(error)
        return error

    def expect_exit(self) -> None:
        """All ranks have agreed to stop: a SystemExit with any status is no failure from now on."""
        self._exit_agreed = True

    def left(self) -> None:
        """This rank ends as it should: from now on the end of its process is no failure, and it is not ended.

        The chief waits until the others have heard of it, a second or two, since its store ends with it.
        """
        self._out.set()
        if self._heart is not None and not self._has_left:
            self._has_left = True
            self._heart.leave(_TELLING)
            self._heart.await_others(_TELLING)

    def close(self) -> None:
        """Leave if nothing has failed, and end the thread. A second call does nothing."""
        self._out.set()
        if self._heart is None:
            return
        if self.failure is None:
            self.left()
        self._spread()
        atexit.unregister(self._at_exit)
        self._heart.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self.failure is not None:
            raise PeerFailedError(self.failure.headline(self._size))
        try:
            yield
        except BaseException as error:
            cause = self.end(error)
            if cause is error:
                raise
            raise cause from error

    def _ask(self, error: BaseException, late: bool) -> Failure:
        """No rank has failed, and still this one waited in vain: let the thread find out from what each is doing."""
        if self._heart is None:
            raise InvalidStateError("There is one process only.")
        text = _SOURCE_LINE.sub("", str(error).split(". This is typically caused", maxsplit=1)[0]).strip()
        kind, reason = ("timeout", "late") if late else ("error", "broken")
        guess = Failure(self._rank, kind, *self._activity.now, text)  # type: ignore[arg-type]
        self._heart.submit(guess, reason)  # type: ignore[arg-type]
        return self._heart.await_failure(_TELLING) or guess

    def _spread(self) -> None:
        """Let a known failure reach who has to hear of it before this process may end."""
        if self._heart is not None and self.failure is not None:
            self._called.wait(_TELLING)
            self._heart.await_others(_TELLING)

    def _note(self, error: BaseException) -> None:
        phase, batch = self._activity.now
        where = f"rank {self._rank} of {self._size} in {phase}" + ("" if batch is None else f" at batch {batch}")
        text = f"Raised on {where}."
        if self.failure is not None and self.failure.rank != self._rank:
            text += f" It was not the first: {self.failure.headline(self._size)}"
        if isinstance(error, PeerFailedError):
            return
        if sys.version_info >= (3, 11):
            error.add_note(text)
        else:
            _logger.error("%s", text)

    def _on_failure(self, failure: Failure) -> None:
        """In the heartbeat's thread. What follows may block, so it has threads of its own."""
        note("failure", asdict(failure))
        with self._lock:
            callbacks = list(self._callbacks)
            self._told.set()
        threads = [
            threading.Thread(target=self._call, args=(callbacks, failure), name="trainlab-failure", daemon=True),
            threading.Thread(target=self._end, args=(failure,), name="trainlab-grace", daemon=True),
        ]
        for thread in threads:
            with contextlib.suppress(RuntimeError):  # the interpreter is ending, which is all that was wanted
                thread.start()

    def _call(self, callbacks: list[Callable[[Failure], None]], failure: Failure) -> None:
        for function in callbacks:
            try:
                function(failure)
            except Exception:
                _logger.exception("A function that is told of failures failed itself.")
        self._called.set()

    def _end(self, failure: Failure) -> None:
        """End the process if the main thread does not come out by itself."""
        if self._out.wait(self._grace):
            return
        if self._heart is not None:
            self._heart.await_others(_TELLING)
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(_FLUSHING)
        text = (
            f"trainlab: {failure.headline(self._size)}\ntrainlab: rank {self._rank} did not come out by itself within"
        )
        os.write(2, f"{text} {self._grace:g} s and is ended.\n".encode(errors="replace"))
        os._exit(1)

    def _at_exit(self) -> None:
        """The interpreter ends, and the rank has not said that it may."""
        if self._heart is None or os.getpid() != self._pid:
            return
        self._out.set()
        if self.failure is None and not self._has_left:
            error = getattr(sys, "last_value", None)
            if error is not None:
                self.report(error)
            else:
                message = "its script ended, or called sys.exit, without closing the DistributedContext"
                self._heart.submit(Failure(self._rank, "ended", *self._activity.now, message))
                self._heart.await_failure(_TELLING)
        self.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
