"""Marks: what a program of the tests notes of itself, and the places at which it dies, waits or raises."""

import json
import mmap
import os
import signal
from pathlib import Path
from typing import Any

import trainlab

# Where a run can be interrupted: in the user's code, in the hooks, ...
PLACES = ("train", "stepped", "counted", "evaluate", "report", "save", "write", "committed", "read")
# ... and at the instants that trainlab.storage.faults names, in the thread or the child that writes a checkpoint.
WRITING = (
    "folder made",
    "file begun",
    "piece written",
    "file written",
    "file synced",
    "folder synced",
    "data durable",
    "manifest begun",
    "manifest written",
    "manifest synced",
    "published",
    "published durably",
    "committed",
)
REMOVING = ("retention chosen", "first removed", "part removed", "folder removed", "retention done", "rubbish removed")
BESIDE = ("staged", "forked")
POINTS = (*BESIDE, *WRITING, *REMOVING)


class Marks:
    """Notes where the program is; at the place where it is told to, it dies, waits or raises.

    A place is given as ``place:number``, and is reached the first time that it is passed with at least this number.
    A point of ``trainlab.storage.faults`` is ``point:name:number``, and is reached when it is passed so many times,
    by the process or its children.

    Args:
        out: the folder of the notes.
        kill_at: where the whole process gets SIGKILL.
        pause_at: where it says where it is, and goes on at the word 'on'.
        raise_at: where it raises.
    """

    def __init__(self, out: Path, kill_at: str | None, pause_at: str | None, raise_at: str | None) -> None:
        self._process = os.getpid()
        self._kill, self._pause, self._raise = map(_place, (kill_at, pause_at, raise_at))
        self._passed = {mark[0]: mmap.mmap(-1, 1) for mark in (self._kill, self._pause) if mark is not None}
        self._stop: Any = None
        append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._notes = {
            name: os.open(out / name, append, 0o644) for name in ("trained", "read", "begun", "told_durable")
        }
        if self._pause is not None:
            self._told = (out / "told").open("w")
            self._go = (out / "go").open()

    def watch(self, context: trainlab.TrialContext) -> None:
        """Say whether this context is asked to stop, where the program waits."""
        self._stop = context.get_stop_requested

    def note(self, name: str, fact: Any) -> None:
        """Note a fact, in one write that a kill cannot tear."""
        os.write(self._notes[name], json.dumps(fact).encode() + b"\n")

    def at(self, place: str, number: int) -> None:
        """Pass a place."""
        if _reached(self._kill, place, number):
            os.kill(self._process, signal.SIGKILL)
        if _reached(self._raise, place, number):
            raise ZeroDivisionError("in the user's code")
        if _reached(self._pause, place, number):
            self._pause = None
            word = ""
            while word != "on":
                print(place, number, self._stop(), file=self._told, flush=True)
                word = self._go.readline().strip()

    def at_point(self, name: str) -> None:
        """Pass a point of ``trainlab.storage.faults``."""
        place = f"point:{name}"
        passed = self._passed.get(place)
        if passed is None:
            return
        passed[0] += 1
        self.at(place, passed[0])
        if os.getpid() != self._process and _reached(self._kill, place, passed[0]):
            signal.pause()  # a child ends with its parent, and at this point


def _place(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    place, _, number = text.rpartition(":")
    return place, int(number)


def _reached(mark: tuple[str, int] | None, place: str, number: int) -> bool:
    return mark is not None and mark[0] == place and number >= mark[1]
