"""ChildProcess: a call in a process of its own, which ends with this one. The child runs this file's ``main``."""

import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from trainlab.errors import InvalidStateError, LaunchError, RankFailedError
from trainlab.launch.call import Call, can_import_main
from trainlab.launch.worker import pickled
from trainlab.runs.ending import name_of_signal
from trainlab.runs.traceback_text import reason_of, told_text, told_traceback

__all__ = ["ChildProcess", "main"]

_LOOK_SECONDS = 1.0
# What a process has left behind has so long to end.
_ENDING_SECONDS = 1.0
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

    It has a process group of its own, so that Ctrl-C reaches only this process, and no standard input. What it has
    started and left in that group gets SIGTERM when it has ended, however that was, and a second later SIGKILL. Of
    this process's place among ranks it knows nothing.

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
        self._answer: tuple[Any, ...] | None = None

    def start(self) -> "ChildProcess":
        """Start the process.

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
        try:
            with ExitStack() as opened:
                answer = opened.enter_context(tempfile.TemporaryFile())
                # This process's end of it is closed whenever and however this process ends.
                life_of_parent, held = os.pipe()
                opened.callback(os.close, held)
                self._process = self._popen(answer, life_of_parent)
                opened.pop_all()
        except OSError as error:
            raise LaunchError(f"The process of {self.name} cannot be started: {error}.") from error
        self._job = b""
        threading.Thread(target=self._wait, args=(answer, held), name=f"trainlab-{self.name}", daemon=True).start()
        return self

    def _popen(self, answer: Any, life_of_parent: int) -> "subprocess.Popen[bytes]":
        with ExitStack() as handed:
            handed.callback(os.close, life_of_parent)
            output = None if self._output is None else handed.enter_context(self._output.open("ab"))
            job = handed.enter_context(tempfile.TemporaryFile())
            job.write(self._job)
            job.seek(0)
            descriptors = (job.fileno(), answer.fileno(), life_of_parent)
            return subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *map(str, descriptors)],
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                pass_fds=descriptors,
            )

    def _variables(self) -> dict[str, str]:
        variables: dict[str, str | None] = {**os.environ, **dict.fromkeys(_OF_THIS_RANK), **self._environment}
        variables["TRAINLAB_PARENT_PID"] = str(os.getpid())
        variables["TRAINLAB_CHILD_PATH"] = self._path
        return {name: value for name, value in variables.items() if value is not None}

    def _wait(self, answer: Any, held: int) -> None:
        assert self._process is not None  # start has set it; kept for the type checker
        self._process.wait()
        _end_group(self._process.pid)
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
        return str(self._answer[1]) if self._answer is not None and self._answer[0] in ("error", "unguarded") else ""

    @property
    def unguarded(self) -> str:
        """What is to be said of a script that starts processes on import, where that has ended it; else ""."""
        return str(self._answer[2]) if self._answer is not None and self._answer[0] == "unguarded" else ""

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
        assert self.exitcode is not None  # it has ended; kept for the type checker
        how = f"by {name_of_signal(-self.exitcode)}" if self.exitcode < 0 else f"with status {self.exitcode}"
        last = f": {reason_of(self.error)}" if self.error.strip() else "."
        raise RankFailedError(
            f"The process of {self.name} (number {self.pid}) ended {how}{last}",
            exitcode=self.exitcode,
            traceback=self.error,
        )


def _end_group(group: int) -> None:
    """End what a process has left behind."""
    end = time.monotonic() + _ENDING_SECONDS
    with suppress(ProcessLookupError, PermissionError):  # nothing is there any more, or only another user's
        # multiprocessing's tracker of shared memory does not hear it, and ends when it has tidied up.
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.01)
        os.killpg(group, signal.SIGKILL)


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
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    parent = int(os.environ.pop("TRAINLAB_PARENT_PID"))
    threading.Thread(target=_watch, args=(life_of_parent, parent), name="trainlab-parent", daemon=True).start()
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
        if error.code in (None, 0):
            return b"", error.code
        told = told_text(str(error.code))
        return pickle.dumps(("error", f"SystemExit: {told}")), error.code if isinstance(error.code, int) else told
    except BaseException as error:
        text = told_traceback(error)
        with suppress(OSError, ValueError):  # the disk may be full, which may be what is to be told
            sys.stderr.write(text)
            sys.stderr.flush()
        if isinstance(error, LaunchError) and "TRAINLAB_IMPORTING" in os.environ:
            return pickle.dumps(("unguarded", text, str(error))), 1
        return pickle.dumps(("error", text)), 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _watch(life: int, parent: int) -> None:
    # A fork of the parent may hold the other end of the pipe, too, and outlive it.
    pipe = select.poll()
    pipe.register(life, select.POLLIN)
    while os.getppid() == parent and not pipe.poll(_LOOK_SECONDS * 1000):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)
