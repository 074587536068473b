"""Counts what one batch costs in Python calls, which no noise touches."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass
class CallCounter:
    """Counts Python calls, and instructions, in the files below one folder, between `start` and `stop`.

    Attributes:
        folder: the package's folder.
        calls: one (file, function) for each call of a function of the package.
        all_calls: the number of Python calls of any package.
        instructions: the number of bytecode instructions run in the package's files.
    """

    folder: Path
    calls: list[tuple[str, str]] = field(default_factory=list)
    all_calls: int = 0
    instructions: int = 0

    def start(self, *, instructions: bool = False) -> None:
        """Begin to count in this thread; instructions are counted in the frames below the caller, at a great cost."""
        if not instructions:
            sys.setprofile(self._profile)
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._is_ours(frame):
                frame.f_trace, frame.f_trace_opcodes = self._trace_ours, True
            frame = frame.f_back
        sys.settrace(self._trace)

    def stop(self) -> None:
        """Count no more."""
        sys.setprofile(None)
        sys.settrace(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        # A generator that goes on is an event "call" too, and costs as much.
        if event == "call":
            self.all_calls += 1
            if self._is_ours(frame):
                self.calls.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self._is_ours(frame):
            return None
        frame.f_trace_opcodes = True
        return self._trace_ours

    def _trace_ours(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.instructions += event == "opcode"
        return self._trace_ours

    def _is_ours(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(f"{self.folder}/")


def frames_above(folder: Path) -> list[tuple[str, str]]:
    """Tell which frames of the package lie between the caller and the function that called `fit`.

    Args:
        folder: the package's folder.

    Returns:
        (file, function) from the innermost frame on.
    """
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(f"{folder}/"):
            found.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
        frame = frame.f_back
    return found
