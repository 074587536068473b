"""What a rank is started for: a function or a script."""

import os
import pickle
import runpy
import sys
from dataclasses import dataclass
from multiprocessing import spawn
from typing import Any

from trainlab.errors import LaunchError
from trainlab.launch.platform import Platform

__all__ = ["FunctionTask", "ScriptTask"]


@dataclass(frozen=True)
class FunctionTask:
    """A function that each rank calls.

    Args:
        content: the call, as ``Call.to_bytes`` gave it.
        main: how a new process finds the program that the call comes from.
        platform: as given to ``launch``.
    """

    content: bytes
    main: dict[str, Any]
    platform: Platform

    def run(self) -> bytes:
        """Call the function.

        Returns:
            What it returns, pickled; None of a function that ends with ``sys.exit()``.

        Raises:
            LaunchError: a new process does not find the function, or what it returned cannot be sent.
        """
        from trainlab.launch.worker import pickled, run_rank

        os.environ["TRAINLAB_IMPORTING"] = "1"
        spawn.prepare(self.main)
        del os.environ["TRAINLAB_IMPORTING"]
        try:
            call = pickle.loads(self.content)
        except (AttributeError, ImportError) as error:
            raise LaunchError(
                f"A new process does not find what is launched, or one of its arguments: {error}. Define it at the top "
                'level of a module, or of the script outside of `if __name__ == "__main__":`.'
            ) from error
        try:
            result = run_rank(call, self.platform)
        except SystemExit as error:
            if error.code not in {None, 0}:
                raise
            result = None
        return pickled(result)


@dataclass(frozen=True)
class ScriptTask:
    """A script or a module that each rank runs as its program.

    Args:
        script: the path, or None.
        module: the name, as after ``python -m``, or None.
        argv: what comes after it on the command line.
    """

    script: str | None
    module: str | None
    argv: tuple[str, ...]

    def run(self) -> None:
        """Run it."""
        if self.module is not None:
            sys.argv = [self.module, *self.argv]
            sys.path[0] = os.getcwd()  # as python -m has it
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
            return
        assert self.script is not None  # one of the two is given; kept for the type checker
        sys.argv = [self.script, *self.argv]
        sys.path[0] = os.path.dirname(os.path.abspath(self.script))
        runpy.run_path(self.script, run_name="__main__")
