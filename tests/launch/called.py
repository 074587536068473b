"""What the children of test_child.py do."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any


class Stubborn:
    """Can be written, and not be read again."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def surroundings() -> dict[str, Any]:
    """What a process sees around itself, and says to whoever reads its output."""
    sys.stdout.write("said\n")
    sys.stderr.write("warned\n")
    return {
        "environ": dict(os.environ),
        "pid": os.getpid(),
        "group": os.getpgrp(),
        "input": sys.stdin.read(),
        "argv": sys.argv,
        "path": sys.path[0],
    }


def fail() -> None:
    """Raise an error of the user's."""
    raise KeyError("the user's mistake")


def leave(status: object) -> None:
    """End by sys.exit."""
    sys.exit(status)  # type: ignore[arg-type]


def kill_itself(number: int) -> None:
    """End by a signal."""
    os.kill(os.getpid(), number)


def unreadable() -> Stubborn:
    """Return what no other process can read."""
    return Stubborn()


def unwritable() -> Any:
    """Return what cannot be sent."""
    return threading.Lock()


def wait_for_ever(mark: Path) -> None:
    """Tell the process's number, and wait."""
    temporary = mark.with_suffix(".tmp")
    temporary.write_text(str(os.getpid()))
    temporary.rename(mark)
    threading.Event().wait()


def leave_behind(mark: Path, *, waits: bool) -> None:
    """Start a process that does not hear SIGTERM, tell both numbers, and end, or wait."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, b".")
        threading.Event().wait()
    os.read(read, 1)
    temporary = mark.with_suffix(".tmp")
    temporary.write_text(f"{os.getpid()} {pid}")
    temporary.rename(mark)
    if waits:
        threading.Event().wait()


def _refuse() -> None:
    raise RuntimeError("not to be read")
