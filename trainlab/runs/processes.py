"""Is a process of this machine still there? Asked by process id, and not fooled by one that is used again."""

import os
import socket
from dataclasses import dataclass
from functools import cache

__all__ = ["Process", "host_id", "this_process"]


@dataclass(frozen=True)
class Process:
    """A process.

    Args:
        host: Of the machine and its space of process ids, as ``host_id`` tells it; "" where processes cannot be seen.
        pid: Its process id.
        started: When, in ticks since the machine's start.
    """

    host: str
    pid: int
    started: int

    @property
    def near(self) -> bool:
        """Whether this process can see it."""
        return bool(self.host) and self.host == host_id()

    def is_gone(self) -> bool:
        """Whether it has ended. One that its parent has not waited for yet has ended too.

        Returns:
            False also for a process that cannot be seen from here.
        """
        return self.near and _started(self.pid) != self.started


def this_process() -> Process:
    """The process that asks.

    Returns:
        What others on its machine recognise it by.
    """
    return Process(host_id(), os.getpid(), _started(os.getpid()) or 0)


@cache
def host_id() -> str:
    """Which machine this is, and which of its spaces of process ids.

    Returns:
        The same text in all processes that can see each other; "" where there is no Linux' /proc.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return f"{socket.gethostname()} {boot} {space}" if _started(os.getpid()) is not None else ""


def _started(pid: int) -> int | None:
    """When a process was started; None if it is gone or only waits for its parent to ask for its exit status."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in brackets, which may hold blanks and brackets itself.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])
