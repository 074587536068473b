"""Helper processes of a run, and runs of experiments in a process of their own."""

import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError, LaunchError
from trainlab.experiments.searched import SEARCH
from trainlab.experiments.seeding import seed_process
from trainlab.launch.child import ChildProcess
from trainlab.runs import JoinedFolder, RankOutput
from trainlab.runs.current import CurrentRun, Seeds, begin_run, current_run, end_run
from trainlab.runs.masking import Masking
from trainlab.runs.sent_run import VARIABLE, sent_to_children
from trainlab.runs.traceback_text import hide

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.values import Values

__all__ = [
    "ExperimentProcess",
    "begin_children",
    "end_children",
    "is_subprocess",
    "launch_subprocess",
    "local_rank",
    "refuse_import",
    "run_experiment",
    "run_in_new_process",
]

logger = logging.getLogger("trainlab.experiments")

# How long they have to come to an end after a signal: a helper, and a run of its own, which may make a checkpoint.
_GRACE = 10.0
_GRACE_OF_RUN = 60.0
# What a helper shares with its run, by decision.
_SHARED = ("output_dir", "params_file", "random_seed")


class ExperimentProcess(ChildProcess):
    """A process that runs an experiment: a helper of the run that started it, or a run of its own.

    It has what ``ChildProcess`` has: ``pid``, ``join``, ``is_alive``, ``exitcode``, ``error``, ``result``,
    ``terminate``, ``kill``.

    Attributes:
        local_rank: the helper's number, from 1; 0 of a run of its own.
        was_awaited: whether somebody has waited for its end, and so knows of it.
    """

    local_rank = 0
    was_awaited = False

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end.

        Args:
            timeout: seconds at most. Default: as long as it takes.
        """
        super().join(timeout)
        self.was_awaited = self.was_awaited or not self.is_alive()

    def end(self, grace: float) -> None:
        """Let it come to an end, and kill it if it does not; Ctrl-C meanwhile kills it at once.

        Args:
            grace: seconds that it has.
        """
        self.was_awaited = True
        self.terminate()
        try:
            super().join(grace)
        finally:
            self.kill()
            super().join()


class _Children:
    """The processes that a run has started, with what they are to know of it."""

    def __init__(self, experiment: "Experiment", values: "Values") -> None:
        self.experiment, self.values = experiment, values
        self.pid = os.getpid()
        self.numbers = itertools.count(1)
        self.processes: list[ExperimentProcess] = []

    def end(self) -> None:
        """End those that still run, all at once, and log what nobody has asked about."""
        alive = [process for process in self.processes if process.is_alive()]
        for process in alive:
            process.terminate()
        try:
            deadline = time.monotonic() + _GRACE
            for process in alive:
                ChildProcess.join(process, max(deadline - time.monotonic(), 0.0))
        finally:
            for process in alive:
                process.kill()
                ChildProcess.join(process)
        for process in self.processes:
            if process not in alive and process.exitcode and not process.was_awaited:
                logger.error(
                    "%s ended with status %d, and nobody waited for it:\n%s",
                    f"The process of {process.name}",
                    process.exitcode,
                    process.error or "It left no traceback.",
                )


# Those of the run that this process is in the middle of.
_children: _Children | None = None


def begin_children(experiment: "Experiment", values: "Values") -> None:
    """Note what a run's helper processes are to run; a run that begins calls this.

    Args:
        experiment: which one runs.
        values: its parameters'.
    """
    global _children  # noqa: PLW0603  # one run at a time in a process, as current_run has it
    _children = _Children(experiment, values)


def end_children() -> None:
    """End the processes that the run has started and that still run; a run that ends calls this.

    They get SIGTERM, and are killed after 10 seconds, or when Ctrl-C is pressed meanwhile. The error of one that had
    failed is logged if nobody has waited for it.
    """
    global _children
    children, _children = _children, None
    if children is not None and children.pid == os.getpid():
        children.end()


def is_subprocess() -> bool:
    """Tell whether this process is one that ``launch_subprocess`` started.

    Returns:
        False in the run's own process, and without a run.
    """
    run = current_run()
    return run is not None and run.is_subprocess


def local_rank() -> int:
    """The number of this process within its run.

    Returns:
        From 1 on in those that ``launch_subprocess`` started; 0 in the run's own, and without a run.
    """
    run = current_run()
    return 0 if run is None else run.local_rank


def refuse_import(name: str) -> None:
    """Refuse to run an experiment while a new process only imports the script that it is defined in.

    Args:
        name: the experiment's.

    Raises:
        LaunchError: that is so.
    """
    if "TRAINLAB_IMPORTING" in os.environ:
        raise LaunchError(
            f"The experiment {name!r} was run while a new process imported the script. Put what runs it under "
            '`if __name__ == "__main__":`, so that only the script itself does.'
        )


def launch_subprocess(**overrides: Any) -> ExperimentProcess:
    """Start a helper of the running experiment: its main function in a process of its own.

    The helper has the run's parameters, its folder and its random seed, so that ``new_seed`` gives the same there; its
    log is ``log.rank-1.txt`` and so on. It ends with this process, and at the run's end at the latest.

    Args:
        **overrides: other values of parameters, checked as those of any run.

    Returns:
        The process, started: ``join()`` waits for its end, ``result()`` gives what the main function returned, and
        raises RankFailedError with the traceback if it failed.

    Raises:
        InvalidStateError: no experiment runs in this process, or it is a helper itself.
        InvalidValueError: an override is unknown, or cannot be used.
        LaunchError: the main function cannot be found by a new process.
    """
    run, children = current_run(), _children
    if run is not None and run.is_subprocess:
        raise InvalidStateError(
            "launch_subprocess() was called in a helper process, and helpers start none. Ask trainlab.is_subprocess() "
            "first, and start all of them in the run's own process."
        )
    if run is None or children is None or children.pid != os.getpid():
        raise InvalidStateError(
            "launch_subprocess() starts a helper of the experiment that runs in this process, and none does. Call it "
            "in an experiment's main function; to run one in a process of its own, call trainlab.run_experiment()."
        )
    values = _overridden(children.experiment, children.values, overrides)
    number = next(children.numbers)
    assert run.folder is not None  # a run that began children has one; kept for the type checker
    helper = _Helper(children.experiment, values, run.output_dir, run.folder.told, number, _log_number(number))
    process = _process(helper, f"helper {number} of {run.experiment}", values, TRAINLAB_CONSOLE_COPY="1")
    return _started(children, process, number)


def run_experiment(experiment: "Experiment", params: Mapping[str, Any] | None = None) -> Any:
    """Run an experiment in a process of its own, and wait for its end; within a running one, too.

    Args:
        experiment: which one.
        params: values of its parameters by name. Default none.

    Returns:
        What its main function returned.

    Raises:
        RankFailedError: it failed, with the traceback.
        InvalidValueError: the parameters are wrong.
        InvalidTypeError: it is no experiment.
    """
    from trainlab.experiments.definition import Experiment

    if not isinstance(experiment, Experiment):
        raise InvalidTypeError(
            f"run_experiment runs an experiment. Received: {experiment!r} ({type(experiment).__name__}). Pass the "
            "function that @trainlab.experiment stands above, itself and not its name."
        )
    process = run_in_new_process(experiment, experiment.read(params))
    try:
        return process.result()
    except BaseException:
        if process.is_alive():  # Ctrl-C, or whatever else came while it ran
            process.end(_GRACE_OF_RUN)
        raise


def run_in_new_process(experiment: "Experiment", values: "Values") -> ExperimentProcess:
    """Start a run of an experiment in a process of its own.

    Args:
        experiment: which one.
        values: its parameters'.

    Returns:
        The process, started. It ends with this one, and with the run that this one is in the middle of.

    Raises:
        LaunchError: the main function cannot be found by a new process.
    """
    return _started(_children, _process(_Run(experiment, values), experiment.path, values), 0)


def _process(function: "_Helper | _Run", name: str, values: "Values", **environment: str | None) -> ExperimentProcess:
    run = current_run()
    if run is not None:  # whose program may write what it hears from the process
        run.masking.add(values.secrets)
    # They are no trials of the search that this run may be one of, and begin runs for themselves.
    try:
        return ExperimentProcess(function, environment={SEARCH: None, VARIABLE: None, **environment}, name=name)
    except LaunchError as error:
        main = function.experiment.main
        if "<locals>" not in getattr(main, "__qualname__", ""):
            raise
        raise LaunchError(
            f"The experiment of {name} cannot be sent to another process: it is defined in a function. Received: "
            f"{main.__qualname__}. Define it at the top level of a module, or of the script."
        ) from error


def _started(children: _Children | None, process: ExperimentProcess, number: int) -> ExperimentProcess:
    process.local_rank = number
    process.start()
    if children is not None and children.pid == os.getpid():
        children.processes.append(process)
    return process


def _overridden(experiment: "Experiment", values: "Values", overrides: Mapping[str, Any]) -> "Values":
    """A helper's values: those of the run, but for some."""
    shared = [name for name in _SHARED if name in overrides]
    if shared:
        raise InvalidValueError(
            f"A helper process has the folder, the parameters and the random seed of its run. Received: {shared}. Call "
            "trainlab.run_experiment() for a run with others."
        )
    if not overrides:
        return values
    read = experiment.read_line(overrides, experiment.line([]), {}, base=values)
    origins = {
        name: origin if origin == "call" else values.origins.get(name, origin) for name, origin in read.origins.items()
    }
    return replace(
        read,
        params={**read.params, "params_file": values.params["params_file"]},
        origins=origins,
        secrets=(*values.secrets, *read.secrets),
    )


def _log_number(number: int) -> int:
    """The number in the name of a helper's log, which is that of no rank, and of no other rank's helper."""
    if "trainlab.distributed" not in sys.modules:
        return number
    from trainlab.distributed import get_context

    ranks = get_context()
    return number * ranks.size + ranks.rank


@dataclass(frozen=True)
class _Helper:
    """What a helper process does."""

    experiment: "Experiment"
    values: "Values"
    output_dir: Path
    told: Mapping[str, Any]
    number: int
    log_number: int

    def __call__(self) -> Any:
        params = self.values.params
        hide(self.values.secrets)
        folder = JoinedFolder(self.told, self.log_number, Masking(self.values.secrets))
        run = CurrentRun(
            experiment=self.experiment.path,
            output_dir=self.output_dir,
            params=params,
            random_seed=params["random_seed"],
            seeds=Seeds(params["random_seed"]),
            is_subprocess=True,
            local_rank=self.number,
            masking=folder.masking,
            is_trained=True,  # the run's folder is not for a training of the helper's
        )
        with ExitStack() as ending:
            ending.callback(folder.close)
            folder.attach_log()
            folder.attach_users_log()
            output = RankOutput.open(folder.path, self.log_number, folder.masking)
            del os.environ["TRAINLAB_CONSOLE_COPY"]  # a training of the helper's has a log of its own
            if output is not None:
                ending.callback(output.close)
            begin_run(run)
            ending.callback(end_run, run)
            ending.enter_context(sent_to_children(run))
            ending.enter_context(seed_process(run.random_seed))
            return _helped(self.experiment, self.values)


@dataclass(frozen=True)
class _Run:
    """What a process does that runs an experiment of its own."""

    experiment: "Experiment"
    values: "Values"

    def __call__(self) -> Any:
        from trainlab.experiments import running

        try:
            return running.run(self.experiment, self.values)
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None


def _helped(experiment: "Experiment", values: "Values") -> Any:
    from trainlab.experiments.debugging import debugged
    from trainlab.experiments.determinism import deterministic
    from trainlab.experiments.ending import signals_end_run
    from trainlab.experiments.running import call_main

    try:
        with (
            signals_end_run(),
            deterministic(values.params["deterministic"]),
            debugged(values.params["debug"], values.secrets),
        ):
            return call_main(experiment, values)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception:
        logger.exception("This helper process failed.")
        raise
