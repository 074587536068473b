"""Programs run on a real terminal, and what is then seen on its screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


def run_on_terminal(program: str, columns: int = 120, stdout: int | None = None) -> tuple[int, str]:
    """Run a program with a terminal as its output; give its exit code and all that reached the terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    for name in ("COLUMNS", "NO_COLOR", "PYTHONUNBUFFERED"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    received = b""
    try:
        while chunk := os.read(ours, 65536):
            received += chunk
    except OSError:  # how Linux says that the other side has been closed
        pass
    os.close(ours)
    return process.wait(timeout=60), received.decode()


def rows_of(received: str) -> list[str]:
    """The rows that a terminal shows after what it received, colours left out."""
    rows, column = [""], 0
    for match in CODE.finditer(received):
        piece = match[0]
        if piece == "\r":
            column = 0
        elif piece == "\n":
            rows.append("")  # the terminal has made \r\n of it
        elif match[2] == "K":
            rows[-1] = "" if match[1] == "2" else rows[-1][:column]
        elif match[2] == "m":
            continue
        elif match[2]:
            raise AssertionError(f"a code that a line needs no terminal for: {piece!r}")
        else:
            rows[-1] = rows[-1].ljust(column)[:column] + piece + rows[-1][column + len(piece) :]
            column += len(piece)
    return [row.rstrip() for row in rows]
