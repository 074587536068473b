"""A run on a store in a process of its own: ``python -m tests.runs.remote_run URL OPTIONS HOW``.

HOW is ``wait``: push three lines, write a fourth, and wait; or the number of copied files after which the process
kills itself, while it pushes a series of several files and closes.
"""

import json
import os
import signal
import sys

from trainlab.runs import RunFolder
from trainlab.storage import faults


def main(url: str, options: str, how: str) -> None:
    if how != "wait":
        faults.hook = kill_after(int(how))
    folder = RunFolder.open(name="digits", run_dir=url, storage_options=json.loads(options))
    write(folder, 3)
    folder.push()
    write(folder, 1)
    if how == "wait":
        print(os.getpid(), flush=True)
        sys.stdin.read()
    folder.write_record(status="finished")
    folder.close()


def write(folder: RunFolder, lines: int) -> None:
    """Append lines to the metrics, and to as many files of TensorBoard."""
    folder.tensorboard.mkdir(exist_ok=True)
    for _ in range(lines):
        with folder.metrics_file.open("a") as file:
            file.write("x\n")
        with (folder.tensorboard / "events").open("a") as file:
            file.write("y\n")


def kill_after(files: int) -> "faults.Callable[[str], None]":
    """A hook that kills the process once so many files were copied."""
    left = files

    def kill(point: str) -> None:
        nonlocal left
        left -= point == "run file pushed"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


if __name__ == "__main__":
    main(*sys.argv[1:])
