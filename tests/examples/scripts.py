"""Run a script in a process that has loaded what it imports: to itself it is the program of a fresh interpreter."""

import os
import runpy
import sys
import warnings

from tests.distributed.ranks import environment


def run_script(script: str, folder: str, *arguments: str) -> None:
    """Run it as ``python -W error::UserWarning:__main__`` does; torchrun's variables are left to it."""
    warnings.resetwarnings()
    warnings.filterwarnings("error", category=UserWarning, module="__main__")
    os.chdir(folder)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def run_script_alone(script: str, folder: str, *arguments: str) -> None:
    """The same, as a shell does: no variables of torchrun's, and no run's folder."""
    for name in {*environment(0, 1, port=0), "TRAINLAB_RUN_DIR"} - {"OMP_NUM_THREADS"}:
        os.environ.pop(name, None)
    run_script(script, folder, *arguments)
