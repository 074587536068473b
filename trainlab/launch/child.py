"""ChildProcess: a call in a process of its own, which ends with this one. The child runs this file's ``main``."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidStateError, LaunchError, RankFailedError
from trainlab.launch.call import Call, can_import_main
from trainlab.launch.worker import pickled
from trainlab.runs.traceback_text import told_traceback

__all__ = ["ChildProcess", "main"]

_PR_SET_PDEATHSIG = 1
# What tells this process where it stands among ranks, and which launch it is of: not the child's.
_OF_THIS_RANK = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    *("TRAINLAB_RANK", "TRAINLAB_WORLD_SIZE", "TRAINLAB_LOCAL_RANK", "TRAINLAB_LOCAL_WORLD_SIZE"),
    *("TRAINLAB_NODE_RANK", "TRAINLAB_NODES", "TRAINLAB_MASTER_ADDR", "TRAINLAB_MASTER_PORT"),
    *("TRAINLAB_LAUNCH_ID", "TRAINLAB_LAUNCH_DIR", "TRAINLAB_LAUNCH_RUN", "TRAINLAB_ATTEMPT", "TRAINLAB_RUN_DIR"),
    *("TRAINLAB_LOGS", "TRAINLAB_LOG", "TRAINLAB_CONSOLE_COPY", "TRAINLAB_AGENT_PID", "TRAINLAB_RESUME"),
)


class ChildProcess:
    """A function's call in a new process, which imports the program anew and is killed when this one ends.

    It has a process group of its own, so that Ctrl-C reaches only this process, and no standard input. Of this
    process's place among ranks it knows nothing.

    Args:
        function: what to call; found by its module and name.
        args: its arguments, which can be pickled.
        environment: variables for the child beside this process's; None takes one away. Default none.
        output: the file that its standard output and errors are appended to. Default: this process's own.
        when_ended: what to call once it has ended, from another thread, with the child. Default nothing.
        name: for errors. Default the function's.

    Raises:
        LaunchError: the call cannot be sent.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        *,
        environment: Mapping[str, str | None] | None = None,
        output: Path | None = None,
        when_ended: "Callable[[ChildProcess], object] | None" = None,
        name: str | None = None,
    ) -> None:
        call = Call(function, args)
        self.name = name or call.name
        unused = {"authkey"} if can_import_main() else {"authkey", "init_main_from_path"}
        prepared = {key: value for key, value in spawn.get_preparation_data(self.name).items() if key not in unused}
        self._job = pickle.dumps((prepared, call.to_bytes()))
        self._path = os.pathsep.join(prepared["sys_path"])
        self._environment, self._output, self._when_ended = dict(environment or {}), output, when_ended
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: tuple[str, Any] | None = None

    def start(self) -> "ChildProcess":
        """Start the process; of threads that start some the main one is the best, for a thread's end may end them.

        Returns:
            This object.

        Raises:
            InvalidStateError: it was started before.
            LaunchError: it cannot be started.
        """
        if self._process is not None:
            raise InvalidStateError(f"The process of {self.name} was started before. Make another ChildProcess.")
        if "TRAINLAB_IMPORTING" in os.environ:
            raise LaunchError(
                f"{self.name} was to be started while a new process imported the script. Put what starts it under "
                '`if __name__ == "__main__":`, so that only the script itself does.'
            )
        output = None if self._output is None else self._output.open("ab")
        job, answer = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # the thread closes them
        job.write(self._job)
        job.seek(0)
        # This process's end of it is closed whenever and however this process ends.
        life_of_parent, held = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *map(str, (job.fileno(), answer.fileno(), life_of_parent))],
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                pass_fds=(job.fileno(), answer.fileno(), life_of_parent),
            )
        except OSError as error:
            os.close(held)
            answer.close()
            raise LaunchError(f"The process of {self.name} cannot be started: {error}.") from error
        finally:
            os.close(life_of_parent)
            job.close()
            if output is not None:
                output.close()
        threading.Thread(target=self._wait, args=(answer, held), name=f"trainlab-{self.name}", daemon=True).start()
        return self

    def _variables(self) -> dict[str, str]:
        variables: dict[str, str | None] = {**os.environ, **dict.fromkeys(_OF_THIS_RANK), **self._environment}
        main_thread = threading.current_thread() is threading.main_thread()
        variables["TRAINLAB_PARENT_PID"] = str(os.getpid()) if main_thread else None
        variables["TRAINLAB_CHILD_PATH"] = self._path
        return {name: value for name, value in variables.items() if value is not None}

    def _wait(self, answer: Any, held: int) -> None:
        assert self._process is not None  # start has set it; kept for the type checker
        self._process.wait()
        os.close(held)
        with answer:
            answer.seek(0)
            content = answer.read()
        try:
            self._answer = pickle.loads(content) if content else None
            if self._answer is not None and self._answer[0] == "result":
                self._answer = ("result", pickle.loads(self._answer[1]))
        except Exception as error:  # whatever a result's class may raise when it is made again
            self._answer = ("error", f"What the process returned cannot be read: {type(error).__name__}: {error}.")
        self._ended.set()
        if self._when_ended is not None:
            self._when_ended(self)

    @property
    def pid(self) -> int | None:
        """The process's number; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def exitcode(self) -> int | None:
        """Its exit status, -n for signal n; None before its end."""
        return self._process.returncode if self._process is not None and self._ended.is_set() else None

    @property
    def error(self) -> str:
        """The traceback of what ended it; "" for none, or before its end."""
        return str(self._answer[1]) if self._answer is not None and self._answer[0] == "error" else ""

    def is_alive(self) -> bool:
        """Tell whether it was started and has not ended."""
        return self._process is not None and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end.

        Args:
            timeout: seconds at most. Default: as long as it takes.

        Raises:
            InvalidStateError: it was not started.
        """
        if self._process is None:
            raise InvalidStateError(f"The process of {self.name} was not started. Call start() first.")
        self._ended.wait(timeout)

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing once it has ended.

        Args:
            number: the signal's.
        """
        if self._process is not None:
            self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def result(self) -> Any:
        """Wait for its end, and give what the function returned.

        Returns:
            It; None where it ended by ``sys.exit(0)``.

        Raises:
            RankFailedError: it failed, with the traceback and the exit status.
        """
        self.join()
        if self.exitcode == 0 and not self.error:
            return self._answer[1] if self._answer is not None else None
        how = f"by {signal.Signals(-self.exitcode).name}" if self.exitcode < 0 else f"with status {self.exitcode}"  # type: ignore[operator]  # it has ended
        last = f": {self.error.strip().splitlines()[-1]}" if self.error.strip() else "."
        raise RankFailedError(
            f"The process of {self.name} (number {self.pid}) ended {how}{last}",
            exitcode=self.exitcode,
            traceback=self.error,
        )


# Not `-m`, which would import the module twice. trainlab is found where this process has found it.
_PROGRAM = (
    'import os, sys; sys.path[:] = os.environ.pop("TRAINLAB_CHILD_PATH").split(os.pathsep); '
    "from trainlab.launch.child import main; main(*map(int, sys.argv[1:]))"
)


def main(job: int, answer: int, life_of_parent: int) -> None:
    """Do a child's work: the job is read, the program imported, the call made, and the answer written.

    Args:
        job: the descriptor of the file with the job.
        answer: that of the file for the answer.
        life_of_parent: that of a pipe which is closed when the parent ends.
    """
    for descriptor in (job, answer, life_of_parent):
        os.set_inheritable(descriptor, False)
    _end_with_parent(life_of_parent)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    with open(job, "rb") as file:
        prepared, content = pickle.load(file)
    told, status = _answer_to(prepared, content)
    with open(answer, "wb") as file:
        file.write(told)
    sys.exit(status)


def _answer_to(prepared: dict[str, Any], content: bytes) -> tuple[bytes, int | str | None]:
    """What is told to the parent, and the exit status."""
    try:
        os.environ["TRAINLAB_IMPORTING"] = "1"
        spawn.prepare(prepared)
        del os.environ["TRAINLAB_IMPORTING"]
        try:
            call = pickle.loads(content)
        except (AttributeError, ImportError) as error:
            raise LaunchError(
                f"A new process does not find what it is to call, or one of its arguments: {error}. Define it at the "
                'top level of a module, or of the script outside of `if __name__ == "__main__":`.'
            ) from error
        return pickle.dumps(("result", pickled(call()))), 0
    except SystemExit as error:
        return b"" if error.code in (None, 0) else pickle.dumps(("error", f"SystemExit: {error.code}")), error.code
    except BaseException as error:
        text = told_traceback(error)
        sys.stderr.write(text)
        sys.stderr.flush()
        return pickle.dumps(("error", text)), 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _end_with_parent(life: int) -> None:
    parent = os.environ.pop("TRAINLAB_PARENT_PID", None)
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(life,), name="trainlab-parent", daemon=True).start()


def _watch(life: int) -> None:
    # A fork of this process has the descriptor, but not the thread, and its parent's end is seen by its own means.
    os.read(life, 1)
    os.kill(os.getpid(), signal.SIGKILL)
