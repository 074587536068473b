"""A forked child that writes the tensors as they were at the fork, while training goes on with its own copies."""

import ctypes
import gc
import json
import os
import signal
import sys
import warnings
from bisect import bisect_right
from pathlib import Path
from typing import Any

import torch

from trainlab.checkpoint.snapshot import Contents, Snapshot
from trainlab.checkpoint.writer import Files, Target, WriteAbortedError, undone, write_files
from trainlab.errors import CheckpointError

__all__ = ["ForkedWrite", "obstacle_to_fork"]

_PR_SET_PDEATHSIG = 1


def obstacle_to_fork(snapshot: Snapshot, target: Target) -> str | None:
    """Tell why a forked child cannot write a checkpoint.

    Args:
        snapshot: what is to be written.
        target: where to.

    Returns:
        The reason; None if it can.
    """
    if sys.platform != "linux":
        return f"the platform is {sys.platform}, and not linux"
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "CUDA is in use, which does not survive a fork"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "a process group is open, which does not survive a fork"
    if not target.store.is_local:
        return "the checkpoints are on a remote store, whose connections do not survive a fork"
    try:
        shared = _shared_mappings()
    except OSError as error:
        return f"it cannot be told which memory is shared ({error.strerror})"
    for file in snapshot.files:
        for source in file.sources:
            if source.device.type != "cpu":
                return f"a tensor is on {source.device}"
            if _is_in(shared, source.untyped_storage().data_ptr()):
                return "a tensor is in shared memory, which changes for the child, too"
    return None


def _shared_mappings() -> list[tuple[int, int]]:
    """Beginnings and ends of all memory that a child would share, in order: torch knows of its own alone."""
    found = []
    with Path("/proc/self/maps").open(encoding="ascii", errors="replace") as maps:
        for line in maps:
            addresses, permissions = line.split(maxsplit=2)[:2]
            if permissions.endswith("s"):
                begin, _, end = addresses.partition("-")
                found.append((int(begin, 16), int(end, 16)))
    return found


def _is_in(mappings: list[tuple[int, int]], address: int) -> bool:
    before = bisect_right(mappings, (address, sys.maxsize)) - 1
    return before >= 0 and address < mappings[before][1]


class ForkedWrite:
    """The files of a checkpoint, being written by a child process from the moment this is made.

    Args:
        target: where to.
        snapshot: what to write; all its tensors on the CPU, none in shared memory.

    Raises:
        OSError: the process cannot be forked.
    """

    def __init__(self, target: Target, snapshot: Snapshot) -> None:
        self._target = target
        self._ended = self._aborted = False
        # Made before the fork: the child only hands them to the system.
        contents: Contents = [(name, iter(list(pieces))) for name, pieces in snapshot.contents()]
        library = ctypes.CDLL(None, use_errno=True)
        parent = os.getpid()
        self._answer, answer = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                # The child takes no lock that another thread may hold: it writes bytes, and ends.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._pid = os.fork()
            if self._pid == 0:
                library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                _write_and_end(target, contents, parent, answer)
        except OSError:
            os.close(self._answer)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(answer)

    def abort(self) -> None:
        """End the child; ``result`` raises then."""
        self._aborted = True
        if not self._ended:
            os.kill(self._pid, signal.SIGKILL)

    def result(self) -> Files:
        """Wait for the child.

        Returns:
            What ``write_files`` gave there.

        Raises:
            CheckpointError: it could not write the files, or it died.
            WriteAbortedError: it was told to end.
        """
        with os.fdopen(self._answer, "rb") as pipe:
            answer = pipe.read()
        self._ended = True  # its number is another's once it is waited for
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # the program ignores SIGCHLD, and the system has waited for it
            status = 0
        if not answer:
            with undone(self._target):
                if self._aborted:
                    raise WriteAbortedError("The checkpoint being written was given up: the program is aborted.")
                raise CheckpointError(
                    f"A checkpoint was not written: the process that wrote it ended with status "
                    f"{os.waitstatus_to_exitcode(status)}. Received: {self._target.location}. "
                    "Look for a lack of memory, or leave out checkpoint_mode='fork'."
                )
        told: dict[str, Any] = json.loads(answer)
        if "error" in told:
            raise CheckpointError(told["error"])
        return dict(told["files"])


def _write_and_end(target: Target, contents: Contents, parent: int, answer: int) -> None:
    told: dict[str, Any] = {"error": "A checkpoint was not written: the process that wrote it was ended."}
    try:
        gc.disable()
        try:
            if os.getppid() == parent:
                told = {"files": write_files(target, contents)}
        except BaseException as error:
            told = {"error": str(error) or repr(error)}
        data = json.dumps(told).encode()
        while data:
            data = data[os.write(answer, data) :]
    finally:
        os._exit(0)  # whatever happens: it must not go on as a second training
