"""run_parameter_sweep: an experiment run with each of many sets of parameters."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidTypeError, InvalidValueError, SweepError
from trainlab.experiments.children import refuse_import
from trainlab.runs.ending import name_of_signal
from trainlab.runs.listing import RunInfo, number, read_run
from trainlab.sweeps.pool import Finished, Job, Pool, refuse_unguarded
from trainlab.sweeps.reading import read_members, refuse_local
from trainlab.sweeps.results import SweepResult, SweepRun
from trainlab.sweeps.stopping import stopped_by_signals
from trainlab.sweeps.sweep_folder import Entry, SweepFolder, check_unchanged
from trainlab.sweeps.table import SweepTable
from trainlab.sweeps.worker import is_whole

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trainlab.experiments.definition import Experiment
    from trainlab.launch import Platform

__all__ = ["run_parameter_sweep"]

logger = logging.getLogger("trainlab.sweeps")
_REFRESH_SECONDS = 1.0
_SHOWN_FAILURES = 10


def run_parameter_sweep(
    experiment: "Experiment",
    list_of_params: "Iterable[Mapping[str, Any] | BaseModel]",
    max_num_processes: int = 1,
    num_gpus_per_process: int | None = None,
    *,
    name: str | None = None,
    output_dir: str | Path | None = None,
    keep_going: bool | None = None,
    fail_fast: bool | None = None,
    grace: float = 60.0,
    platform: "Platform | None" = None,
    progress: bool = True,
) -> SweepResult:
    """Run an experiment with each set of parameters of a list, each in a process and a folder of its own, and wait.

    Called again with the same list it goes on: runs that are finished are left alone, the others are repeated in their
    folders, from their last checkpoints where they have any. A list that has changed goes on under the same ``name``.
    Keep the call under ``if __name__ == "__main__":``, for each process imports the script.

    Args:
        experiment: what to run.
        list_of_params: the parameters of each run by name, as ``param_matrix`` makes them. All are checked before the
            first run starts.
        max_num_processes: how many runs go on at once. Default 1.
        num_gpus_per_process: how many GPUs each run sees, the least used ones; 0: none. Default None: all.
        name: the sweep's, for its folder. Default None: made of the experiment and the list.
        output_dir: where the folders of experiments are. Default None: the parameter of this name; inside of a run of
            an experiment ``runs`` in its folder.
        keep_going: whether the others go on when a run fails. Default True, unless ``fail_fast`` is given.
        fail_fast: the opposite of ``keep_going``, in its place.
        grace: seconds that runs have to come to an end after Ctrl-C, or when another fails. Default 60.
        platform: with ``device="slurm"``: each run is a job of an array. Default None: this machine.
        progress: whether a table is shown, or lines where there is no terminal. Default True.

    Returns:
        What came of each run, in the order of the list.

    Raises:
        trainlab.errors.SweepError: runs failed; ``result`` has what came of all of them.
        InvalidTypeError: something is of a type that cannot be used.
        InvalidValueError: parameters or numbers cannot be used; then nothing was started.
        RunFolderError: another process makes the same sweep, or the folder cannot be used.
        KeyboardInterrupt: Ctrl-C, after the runs have ended.
        SystemExit: SIGTERM, likewise.
    """
    refuse_import(_checked(experiment).path)
    refuse_local(experiment)
    keeps_going = _checked_options(keep_going=keep_going, fail_fast=fail_fast, progress=progress, grace=grace)
    members = read_members(experiment, list_of_params)
    if platform is None:
        pool = Pool(max_num_processes, num_gpus_per_process)
        make = partial(_make_here, pool=pool, grace=grace, keep_going=keeps_going)
    else:
        from trainlab.sweeps.slurm import check_platform

        check_platform(platform, max_num_processes, num_gpus_per_process, keep_going=keeps_going)
        make = partial(_make_on_slurm, platform=platform, is_shown=progress)
    with SweepFolder.open(experiment, members, name=name, output_dir=output_dir) as folder:
        runs = _before(experiment, folder)
        table = SweepTable(f"{experiment.path} · {folder.name}", folder.entries, is_shown=progress)
        _tell_begin(folder, runs, table)
        make(experiment, folder, runs, table)
        result = _result(folder, runs)
    _refuse_failures(result)
    return result


def run_of(
    entry: Entry,
    found: RunInfo | None,
    *,
    exitcode: int | None = None,
    error: str = "",
    says_all: bool = False,
    is_skipped: bool = False,
) -> SweepRun:
    """Tell what came of a run, as its folder says.

    Args:
        entry: the run.
        found: what is in its folder; None for nothing.
        exitcode: of its process; None where there was none.
        error: what its process said at its end; "" for nothing.
        says_all: whether that tells more than the folder, as a traceback does.
        is_skipped: whether an earlier call finished it.

    Returns:
        It.
    """
    told = SweepRun(entry.key, entry.label, entry.member.params, entry.folder, exitcode=exitcode)
    if found is None:
        status = "not started" if exitcode is None and not error else "failed"
        return replace(told, status=status, error=error or _how(exitcode))
    metrics, result = dict(found.metrics), number(found.record.get("result"))
    if is_whole(found):
        return replace(told, status="finished", metrics=metrics, result=result, is_skipped=is_skipped)
    status = "damaged" if found.status == "finished" else found.status
    if not says_all:
        # The record tells more than the name of SystemExit.
        error = str(found.record.get("error") or "") or found.reason or error or _how(exitcode)
    return replace(told, status=status, error=error, metrics=metrics, result=result)


def _checked_options(*, keep_going: Any, fail_fast: Any, progress: Any, grace: Any) -> bool:
    """Whether the sweep goes on when a run fails."""
    for name, value in (("keep_going", keep_going), ("fail_fast", fail_fast), ("progress", progress)):
        if value is not None and not isinstance(value, bool):
            raise InvalidTypeError(f"{name} is True or False. Received: {value!r}.")
    if keep_going is not None and fail_fast is not None:
        raise InvalidValueError(
            "keep_going and fail_fast are opposite words for one thing. Received: "
            f"keep_going={keep_going!r} and fail_fast={fail_fast!r}. Pass one of them."
        )
    if isinstance(grace, bool) or not isinstance(grace, int | float) or not grace >= 0:
        raise InvalidValueError(f"grace is a number of seconds, at least 0. Received: {grace!r}.")
    return keep_going is not False and fail_fast is not True


def _checked(experiment: Any) -> "Experiment":
    from trainlab.experiments.definition import Experiment

    if not isinstance(experiment, Experiment):
        raise InvalidTypeError(
            "A sweep runs an experiment: a function with @trainlab.experiment above it. Received: "
            f"{experiment!r} ({type(experiment).__name__})."
        )
    return experiment


def _before(experiment: "Experiment", folder: SweepFolder) -> dict[str, SweepRun]:
    """The runs as earlier calls have left them, by key."""
    runs = {}
    for entry in folder.entries:
        found = read_run(entry.folder)
        if found is None:
            runs[entry.key] = run_of(entry, None)
            continue
        check_unchanged(experiment, entry, found.params)
        runs[entry.key] = run_of(entry, found, error="in an earlier call", is_skipped=True)
    return runs


def _make_here(
    experiment: "Experiment",
    folder: SweepFolder,
    runs: dict[str, SweepRun],
    table: SweepTable,
    *,
    pool: Pool,
    grace: float,
    keep_going: bool,
) -> None:
    """Make what is not finished in processes of this machine."""
    with pool, stopped_by_signals(pool, grace):
        with table:
            _make_runs(experiment, folder, runs, table, pool, None if keep_going else grace)
        table.say(_result(folder, runs).text())


def _make_runs(
    experiment: "Experiment",
    folder: SweepFolder,
    runs: dict[str, SweepRun],
    table: SweepTable,
    pool: Pool,
    stop_within: float | None,
) -> None:
    entries = {entry.key: entry for entry in folder.entries}
    waiting = [entry for entry in reversed(folder.entries) if not runs[entry.key].is_finished]
    while pool.running or (waiting and pool.has_room):
        while waiting and pool.has_room:
            entry = waiting.pop()
            running = pool.submit(Job(entry.key, experiment, entry.member.params, entry.folder, label=entry.label))
            if running is not None:
                table.started(entry.key, running.gpus)
        table.refresh(pool.running)
        finished = pool.wait(_REFRESH_SECONDS)
        if finished is None:
            continue
        run = _ended(entries[finished.job.key], finished)
        runs[run.key] = run
        table.ended(run, finished.seconds)
        if stop_within is not None and not run.is_finished:
            pool.stop(stop_within)


def _make_on_slurm(
    experiment: "Experiment",
    folder: SweepFolder,
    runs: dict[str, SweepRun],
    table: SweepTable,
    *,
    platform: "Platform",
    is_shown: bool,
) -> None:
    """Tell what came of jobs that have ended; have SLURM make what else is not finished, and wait if that is wanted."""
    from trainlab.sweeps.slurm import ended, submit, submitted_before, wait_for

    entries = [entry for entry in folder.entries if not runs[entry.key].is_finished]
    handles = submitted_before(experiment, folder, entries, platform)
    over = {key for key, handle in handles.items() if handle.done}
    handles |= submit(experiment, folder, [entry for entry in entries if entry.key not in handles], platform)
    if platform.wait and handles:
        wait_for(handles.values(), is_shown=is_shown)
        over = set(handles)
    for entry in entries:
        if entry.key not in over:
            runs[entry.key] = replace(runs[entry.key], status="submitted", error="")
            continue
        end = ended(handles[entry.key])
        found = read_run(entry.folder)
        run = run_of(entry, found, exitcode=end.exitcode, error=end.error, says_all=end.says_all)
        # Its job has ended, on a machine whose processes cannot be seen from here.
        status = {"running": "crashed", "not started": "failed"}.get(run.status, run.status)
        runs[entry.key] = replace(run, status=status)
        del folder.jobs[entry.key]  # the next call repeats it
    folder.write()
    table.say(_result(folder, runs).text())


def _ended(entry: Entry, finished: Finished) -> SweepRun:
    refuse_unguarded(finished)
    found = read_run(entry.folder)
    has_traceback = "\n" in finished.error.strip()
    run = run_of(entry, found, exitcode=finished.exitcode, error=finished.error, says_all=has_traceback)
    if finished.is_stopped and found is None:
        return replace(run, status="interrupted", error="before it began")
    if run.is_finished and finished.exitcode != 0:
        logger.warning("%s is finished, but its process %s.", entry.label, _how(finished.exitcode))
    return run


def _tell_begin(folder: SweepFolder, runs: Mapping[str, SweepRun], table: SweepTable) -> None:
    done = [run for run in runs.values() if run.is_finished]
    before = f", {len(done)} of them finished before" if done else ""
    table.say(f"{len(runs)} run{'s' * (len(runs) != 1)}{before}, in {folder.path}")
    for run in done:
        table.ended(run)


def _result(folder: SweepFolder, runs: Mapping[str, SweepRun]) -> SweepResult:
    return SweepResult(folder.name, folder.path, tuple(runs[entry.key] for entry in folder.entries))


def _refuse_failures(result: SweepResult) -> None:
    if not result.failed:
        return
    told = [f"  {run.label}: {run.status}: {run.reason}\n    {run.folder}" for run in result.failed]
    if len(told) > _SHOWN_FAILURES:
        told = [*told[:_SHOWN_FAILURES], f"  … and {len(told) - _SHOWN_FAILURES} more"]
    failures = "\n".join(told)
    damaged = any(run.status == "damaged" for run in result.failed)
    raise SweepError(
        f"Not all runs of the sweep came to their end ({result.text()}):\n{failures}\n"
        "Start the same sweep again to repeat them; those that are finished are left alone."
        + (" Of one that is damaged remove the folder before, or repair the record." if damaged else ""),
        result,
    )


def _how(exitcode: int | None) -> str:
    if exitcode is None:
        return ""
    if exitcode >= 0:
        return f"ended with exit status {exitcode}"
    return f"was ended by {name_of_signal(-exitcode)}"
