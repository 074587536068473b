"""The program of a rank that the agent starts: ``python -m trainlab.launch.rank FOLDER``."""

import ctypes
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainlab.launch.tasks import FunctionTask
from trainlab.runs import RankOutput

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
# Where the process stands that launched this one; they would win over what the agent says.
_OF_OUTER = [
    f"TRAINLAB_{name}"
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "NODES",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
]


def main(folder: str) -> None:
    """Run a task in this process, one rank of several.

    Args:
        folder: the agent's, with a file for each rank that the task is in.
    """
    file = Path(folder, f"task-{os.environ['LOCAL_RANK']}")
    content = file.read_bytes()
    file.unlink()  # it may hold secrets, and is not to be there after an agent that is killed
    for name in _OF_OUTER:
        os.environ.pop(name, None)
    os.environ.update(json.loads(Path(folder, "variables").read_text(encoding="utf-8")))
    _end_with(int(os.environ["TRAINLAB_AGENT_PID"]))
    # Ctrl-C reaches the agent alone, which passes it on once: a second one means "at once".
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    _redirect()
    from trainlab.distributed import gpu_environment

    os.environ.update(gpu_environment(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])))
    task = pickle.loads(content)
    if isinstance(task, FunctionTask):
        _write(Path(folder, "notes", f"rank-{os.environ['RANK']}.result"), _told(task.run))
    else:
        _told(task.run)


def _told(function: Callable[[], Any]) -> Any:
    """Call a function; its error is shown, and noted for the agent."""
    from trainlab.launch.worker import note_error

    try:
        return function()
    except SystemExit as error:
        if isinstance(error.code, str):
            note_error(error)
        raise
    except BaseException as error:
        sys.stderr.write(note_error(error))
        sys.stderr.flush()
        sys.exit(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)


def _end_with(parent: int) -> None:
    """End as soon as the agent does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), name="trainlab-parent", daemon=True).start()
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def _redirect() -> None:
    """The chief keeps the console, of which there is a copy; the others write to files."""
    logs = Path(os.environ["TRAINLAB_LOGS"])
    if os.environ["RANK"] == "0":
        os.environ["TRAINLAB_CONSOLE_COPY"] = "1"
        RankOutput.open(logs, 0)
        return
    log = logs / f"log.rank-{os.environ['RANK']}.txt"
    os.environ["TRAINLAB_LOG"] = str(log)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in streams:
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what a killed rank has said is kept


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(content)
    temporary.replace(path)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:  # while torch is loaded, say
        sys.exit(128 + signal.SIGINT)
