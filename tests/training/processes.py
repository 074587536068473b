"""Real processes that begin with torch imported: forked from a server, each with a group and an exit status."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 120


def serve() -> list[str] | None:
    """Fork processes as the standard input asks for them.

    Returns:
        In a forked process its arguments; in the server None, once its input ends.
    """
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        alive = os.open(Path(request["out"], "alive"), os.O_WRONLY)
        pid = os.fork()
        if pid == 0:  # it keeps `alive` open, and so does what it forks
            _stand_alone(Path(request["out"]))
            return list(request["arguments"])
        os.close(alive)
        print(pid, flush=True)
    return None


def _stand_alone(out: Path) -> None:
    os.setsid()
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(out / "stdout"), os.O_WRONLY | os.O_CREAT),
        (2, str(out / "stderr"), os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(name, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)


class Process:
    """A forked process.

    Args:
        server: who forked it.
        pid: its number, also that of its process group.
        out: the folder of its standard output, standard error and notes.
        alive: what can be read to its end once neither it nor a process that it forked is left; closed then.
    """

    def __init__(self, server: "Server", pid: int, out: Path, alive: int) -> None:
        self._server = server
        self._words: list[IO[str]] = []
        self._alive, self._close_alive = alive, weakref.finalize(self, os.close, alive)
        self.pid = pid
        self.out = out

    def told(self) -> str:
        """Wait for its next word; '' once no process is left that could say any."""
        if not self._words:
            # In the order in which the other side opens them.
            self._words = [(self.out / "told").open(), (self.out / "go").open("w")]
        return self._words[0].readline().rstrip("\n")

    def go(self, word: str = "on") -> None:
        """Let it go on; any word but 'on' makes it say anew where it is."""
        print(word, file=self._words[1], flush=True)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to it, or to its whole group: it and its loader's workers."""
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self) -> int:
        """Wait for its end and return its exit status, negative after a signal."""
        for file in self._words:
            file.close()
        status = int(self._server.ask({"wait": self.pid}))
        self._server.unfinished.discard(self.pid)
        return status

    def gone(self, seconds: float = _PATIENCE_SECONDS) -> bool:
        """Wait until no process is left, neither it nor one that it forked; False if one is left for so long."""
        if self._close_alive.alive:
            waiting = select.poll()
            waiting.register(self._alive, select.POLLHUP)
            if not waiting.poll(1000 * seconds):
                return False
            self._close_alive()
        return True

    @property
    def stderr(self) -> str:
        """What it wrote to its standard error."""
        return (self.out / "stderr").read_text()

    @property
    def result(self) -> dict[str, Any]:
        """What it found at its end."""
        return dict(json.loads((self.out / "result.json").read_text()))

    def trained(self) -> list[dict[str, Any]]:
        """What it trained, batch by batch: batch, epoch and the numbers of the records."""
        return self._noted("trained")

    def read(self) -> list[int]:
        """The numbers of the records that were read from its training set, in whatever process."""
        return self._noted("read")

    def begun(self) -> list[int]:
        """The batches at which it began to make a checkpoint; the one before was durable then."""
        return self._noted("begun")

    def told_durable(self) -> list[str]:
        """The names of the checkpoints that it was told are durable."""
        return self._noted("told_durable")

    def _noted(self, name: str) -> list[Any]:
        notes = self.out / name  # of a process that was killed at its very start there are none
        return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


class Server:
    """The server, seen from the tests.

    Args:
        process: it, started with ``--serve``.
        folder: where the processes' folders are made.
    """

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._started = 0
        self.unfinished: set[int] = set()

    def ask(self, request: dict[str, Any]) -> str:
        """Send a request and wait for the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def start(
        self, run_dir: Path, *arguments: object, pause_at: str | None = None, stderr_is_pipe: bool = False
    ) -> Process:
        """Start a process.

        Args:
            run_dir: the run's folder.
            *arguments: further ones of its command line.
            pause_at: a place and a number at which it says where it is, and waits.
            stderr_is_pipe: whether its standard error is a named pipe, that the test must open.
        """
        out = self.folder()
        if stderr_is_pipe:
            os.mkfifo(out / "stderr")
        command = ["--run-dir", str(run_dir), "--out", str(out), *map(str, arguments)]
        if pause_at is not None:
            for name in ("told", "go"):
                os.mkfifo(out / name)
            command += ["--pause-at", pause_at]
        os.mkfifo(out / "alive")
        alive = os.open(out / "alive", os.O_RDONLY | os.O_NONBLOCK)
        pid = int(self.ask({"arguments": command, "out": str(out)}))
        self.unfinished.add(pid)
        return Process(self, pid, out, alive)

    def run(self, run_dir: Path, *arguments: object) -> tuple[Process, int]:
        """Run a process to its end, and return it with its exit status."""
        process = self.start(run_dir, *arguments)
        return process, process.wait()

    def folder(self) -> Path:
        """Make a folder for the notes of one process."""
        self._started += 1
        out = self._folder / f"process-{self._started}"
        out.mkdir()
        return out


@contextmanager
def serving(module: str, folder: Path) -> Iterator[Server]:
    """Start the server.

    Args:
        module: a program that calls ``serve`` when it gets ``--serve``.
        folder: where the processes' folders are made.
    """
    command: Sequence[str] = [sys.executable, "-m", module, "--serve"]
    pipe = subprocess.PIPE
    with ExitStack() as closing:
        # What killed processes leave there, such as the sockets of workers, goes with it.
        scratch = closing.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        environment = {**os.environ, "TMPDIR": scratch}
        process = closing.enter_context(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)
        )
        server = Server(process, folder)
        try:
            yield server
        finally:
            for pid in server.unfinished:  # of tests that failed; nobody has waited for them, so the numbers are theirs
                os.kill(pid, signal.SIGKILL)
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
