"""search: an experiment's parameters chosen so that a metric is best."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainlab.errors import InvalidTypeError, InvalidValueError, SweepError
from trainlab.experiments.searched import SearchedBy, check_installed, disconnect
from trainlab.runs.current import current_run
from trainlab.runs.masking import mask_passwords
from trainlab.schedule import Batch, Epoch, TrainUnit
from trainlab.sweeps.best_params import fixed_values, write_best
from trainlab.sweeps.importance import importances
from trainlab.sweeps.liveness import Heartbeat, Watch
from trainlab.sweeps.methods import check_sampler, make_pruner, pickled
from trainlab.sweeps.pool import Pool
from trainlab.sweeps.reading import module_of, refuse_local
from trainlab.sweeps.same_search import DATABASE
from trainlab.sweeps.search_result import SearchResult, best_of, folder_name, result_of
from trainlab.sweeps.search_table import SearchTable
from trainlab.sweeps.searcher import Searcher, Wanted
from trainlab.sweeps.space import Space
from trainlab.sweeps.stopping import stopped_by_signals
from trainlab.sweeps.storage import open_storage, sqlite_url
from trainlab.sweeps.sweep_folder import folder_of
from trainlab.sweeps.trials import SearchTrial, Trials

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from trainlab.experiments.definition import Experiment

__all__ = ["search"]

logger = logging.getLogger("trainlab.sweeps")

DIRECTIONS = ("minimize", "maximize")
_NOT_IN_NAMES = re.compile(r"[^\w.+=-]+")
_SHOWN_FAILURES = 5


def search(
    experiment: "Experiment",
    *,
    metric: str,
    trials: int,
    direction: Literal["minimize", "maximize"] = "minimize",
    params: Mapping[str, Any] | None = None,
    space: Mapping[str, Any] | None = None,
    sampler: "str | BaseSampler" = "tpe",
    pruner: "str | BasePruner" = "none",
    storage: str | None = None,
    study: str | None = None,
    max_num_processes: int = 1,
    num_gpus_per_process: int | None = None,
    max_length: TrainUnit | None = None,
    seed: int = 0,
    output_dir: str | Path | None = None,
    keep_going: bool = True,
    max_crashes: int = 3,
    grace: float = 60.0,
    progress: bool = True,
) -> SearchResult:
    """Run an experiment again and again, with parameters that Optuna chooses so that a metric becomes best, and wait.

    What is searched is declared beside the parameters, ``search=trainlab.Search(1e-5, 1e-1, log=True)``, or in
    ``space``. Each trial is a run in a process and a folder of its own, ``<output_dir>/<experiment>/search_<study>/
    trial-0007``. Called again the search goes on: trials that were broken off are gone on with from their checkpoints,
    and one that is done returns at once. Calls on several machines share a search by one ``storage``.
    Keep the call under ``if __name__ == "__main__":``, for each process imports the script.

    Args:
        experiment: what to run.
        metric: the name of the metric: one of the validation, or of what the main function returns.
        trials: how many there are to be, by all callers together; pruned and failed ones are counted.
        direction: "minimize" or "maximize". Default "minimize".
        params: the parameters that are not searched, by name. Default: the experiment's.
        space: ``trainlab.Search`` by the parameter's name, beside what is declared, or in its place. Default none.
        sampler: what chooses: "tpe", "random", "grid", "cmaes", or one of Optuna's. Default "tpe".
        pruner: what ends trials that are behind: "none", "median", "asha", "hyperband", or one of Optuna's. It is
            told of each validation. Default "none".
        storage: where the trials are kept: a URL as SQLAlchemy has it, ``postgresql://user@host/name``, or
            ``journal:///data/study.log``. Default: a SQLite file in the search's folder, on a local disk.
        study: the search's name. Default: the metric's.
        max_num_processes: how many trials run at once here. Default 1.
        num_gpus_per_process: how many GPUs each sees, the least used ones; 0: none. Default None: all.
        max_length: how long a trial trains whose ``fit`` is not told; "asha" and "hyperband" measure by it.
            Default None.
        seed: of the choice, and of the runs if ``params`` has no ``random_seed``. One trial at a time, the same seed
            gives the same search. Default 0.
        output_dir: where the folders of experiments are. Default None: the parameter of this name; inside of a run
            of an experiment ``runs`` in its folder.
        keep_going: whether the others go on when a trial fails by an error of its own; it is not repeated.
            Default True.
        max_crashes: how often a trial is repeated whose process is killed, or ends without a word, while the search
            goes on. Default 3.
        grace: seconds that trials have to come to an end after Ctrl-C. Default 60.
        progress: whether a table is shown, or lines where there is no terminal. Default True.

    Returns:
        What came of it.

    Raises:
        SweepError: all trials failed, or one did without ``keep_going``; ``result`` has what came of them.
        InvalidTypeError: something is of a type that cannot be used.
        InvalidValueError: an argument, the space or a parameter cannot be used, or a search of this name is another;
            then nothing was started.
        MissingDependencyError: Optuna is not installed.
        StorageError: the storage cannot be reached.
        LaunchError: a trial's process imports the script, and searches again: see above.
        KeyboardInterrupt: Ctrl-C, after the trials have ended; the same call goes on.
        SystemExit: SIGTERM, likewise.
    """
    _check(experiment, metric=metric, trials=trials, direction=direction, seed=seed, max_length=max_length, study=study)
    from trainlab.experiments.children import refuse_import

    refuse_import(experiment.path)
    refuse_local(experiment)
    check_installed()
    _check_numbers(max_crashes=max_crashes, grace=grace, keep_going=keep_going, progress=progress)
    check_sampler(sampler)
    wanted = _wanted(
        experiment,
        _fixed(params, seed),
        space,
        metric=metric,
        trials=trials,
        direction=direction,
        sampler=sampler,
        pruner=make_pruner(pruner, max_length),
        storage=storage,
        study=_NOT_IN_NAMES.sub("-", metric) if study is None else study,
        max_length=max_length,
        seed=seed,
        output_dir=output_dir,
        keep_going=keep_going,
        max_crashes=max_crashes,
        grace=grace,
    )
    pool = Pool(max_num_processes, num_gpus_per_process)
    with _quiet_optuna(), contextlib.ExitStack() as closing:
        kept_in = open_storage(wanted.told.storage)
        closing.callback(disconnect, kept_in)
        opened = _open_study(wanted, kept_in, direction)
        table = SearchTable(
            wanted.told.study,
            metric,
            smaller_is_better=wanted.told.smaller_is_better,
            trials=wanted.trials,
            is_shown=progress,
        )
        return _search(wanted, opened, pool, table)


def _wanted(
    experiment: "Experiment",
    fixed: Mapping[str, Any],
    space: Mapping[str, Any] | None,
    *,
    metric: str,
    trials: int,
    direction: str,
    sampler: "str | BaseSampler",
    pruner: "BasePruner",
    storage: str | None,
    study: str,
    max_length: TrainUnit | None,
    seed: int,
    output_dir: str | Path | None,
    keep_going: bool,
    max_crashes: int,
    grace: float,
) -> Wanted:
    """Put together what is searched, and how; the search's folder is made."""
    chosen = Space.of(experiment, fixed, space)
    chosen.check(experiment, fixed)
    grid = chosen.grid(seed) if sampler == "grid" else None
    folder = _folder(experiment, {**fixed, **chosen.some()}, study, output_dir)
    told = SearchedBy(
        storage=sqlite_url(folder / DATABASE) if storage is None else storage,
        study=f"{experiment.path}/{study}",
        trial=0,
        metric=metric,
        smaller_is_better=direction == "minimize",
        length=None if max_length is None else (type(max_length).__name__, int(max_length.value)),  # type: ignore[arg-type]  # it is no schedule
        pruner=pickled(pruner),
    )
    begun = {
        "experiment": experiment.path,
        "program": module_of(experiment),
        "metric": metric,
        "max_length": None if told.length is None else list(told.length),
        "sampler": "another" if grid is None else "grid",
        "seed": seed,
        "space": chosen.told(),
        "params": fixed_values(experiment, fixed, chosen),
    }
    return Wanted(
        experiment=experiment,
        fixed=fixed,
        space=chosen,
        grid=grid,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        trials=trials if grid is None else min(trials, len(grid)),
        told=told,
        folder=folder,
        begun=begun,
        keep_going=keep_going,
        max_crashes=max_crashes,
        grace=grace,
    )


def _search(
    wanted: Wanted, opened: "tuple[optuna.Study, BaseStorage, int]", pool: Pool, table: SearchTable
) -> SearchResult:
    """Make the trials that are left, and tell what came of all of them."""
    study, storage, study_id = opened
    heart = Heartbeat(storage, study_id)
    kept, watch = Trials(study, storage, study_id), Watch(storage, study_id)
    searcher = Searcher(wanted, storage, kept, watch, heart.token, pool, table)
    searcher.check()
    table.say(f"Search of {wanted.trials} trials in {wanted.folder}, kept in {mask_passwords(wanted.told.storage)}")
    # The innermost of these comes to its end first: the last beat says that nobody works on the trials any more.
    with heart, pool, stopped_by_signals(pool, wanted.grace):
        with table:
            found = searcher.run()
        result = _result(wanted, study, found)
        table.say(result.text())
    if searcher.problem:
        raise _failed(searcher.problem, result)
    return result


def _open_study(
    wanted: Wanted, storage: "BaseStorage", direction: Literal["minimize", "maximize"]
) -> "tuple[optuna.Study, BaseStorage, int]":
    """Open the study, or make it; one of the other direction is refused."""
    import optuna

    told = wanted.told
    study = optuna.create_study(
        storage=storage, study_name=told.study, direction=direction, load_if_exists=True, pruner=wanted.pruner
    )
    if (before := study.direction.name.lower()) != direction:
        raise InvalidValueError(
            f"A search of this name was begun otherwise. Received: direction: {direction!r}, and it has {before!r}. "
            "Pass another study."
        )
    return study, storage, storage.get_study_id_from_name(told.study)


def _result(wanted: Wanted, study: "optuna.Study", found: list[SearchTrial]) -> SearchResult:
    best = best_of(found, smaller_is_better=wanted.told.smaller_is_better)
    return SearchResult(
        study=wanted.told.study,
        folder=wanted.folder,
        best_params={} if best is None else dict(best.params),
        best_value=None if best is None else best.value,
        best_run=None if best is None else wanted.folder / folder_name(best.number),
        trials=tuple(result_of(trial, wanted.folder) for trial in found),
        importances=importances(study),
        params_file=None if best is None else write_best(wanted.experiment, wanted.folder, best, wanted.fixed),
    )


def _failed(problem: str, result: SearchResult) -> SweepError:
    failed = [trial for trial in result.trials if trial.state == "failed"]
    shown = [f"  {trial.folder.name}: {trial.reason.strip()}\n    {trial.folder}" for trial in failed[:_SHOWN_FAILURES]]
    if len(failed) > _SHOWN_FAILURES:
        shown.append(f"  … and {len(failed) - _SHOWN_FAILURES} more")
    return SweepError(
        f"The search was ended: {problem}.\n" + "\n".join(shown) + "\nA failed trial is not repeated: mend what is "
        "wrong, and begin a search under another name.",
        result,
    )


def _check(
    experiment: Any, *, metric: Any, trials: Any, direction: Any, seed: Any, max_length: Any, study: Any
) -> None:
    from trainlab.experiments.definition import Experiment

    if not isinstance(experiment, Experiment):
        raise InvalidTypeError(
            "A search runs an experiment: a function with @trainlab.experiment above it. Received: "
            f"{experiment!r} ({type(experiment).__name__})."
        )
    if not isinstance(metric, str) or not metric:
        raise InvalidTypeError(f"metric is the name of one metric. Received: {metric!r}.")
    for name, number, least in (("trials", trials, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidTypeError(f"{name} is an int. Received: {number!r}.")
        if number < least:
            raise InvalidValueError(f"{name} is at least {least}. Received: {number}.")
    if direction not in DIRECTIONS:
        raise InvalidValueError(f"direction is one of {', '.join(DIRECTIONS)}. Received: {direction!r}.")
    if max_length is not None and not isinstance(max_length, Batch | Epoch):
        raise InvalidTypeError(f"max_length is Batch(...), Epoch(...) or None. Received: {max_length!r}.")
    if max_length is not None and not max_length.is_period:
        raise InvalidTypeError(f"max_length is one length, not a schedule. Received: {max_length!r}.")
    if study is not None and (not isinstance(study, str) or not study or _NOT_IN_NAMES.search(study)):
        raise InvalidValueError(f"study is a name of letters, digits and any of _.+=-. Received: {study!r}.")


def _check_numbers(*, max_crashes: Any, grace: Any, keep_going: Any, progress: Any) -> None:
    if isinstance(max_crashes, bool) or not isinstance(max_crashes, int) or max_crashes < 0:
        raise InvalidValueError(f"max_crashes is an int of at least 0. Received: {max_crashes!r}.")
    if isinstance(grace, bool) or not isinstance(grace, int | float) or not grace >= 0:
        raise InvalidValueError(f"grace is a number of seconds, at least 0. Received: {grace!r}.")
    for name, value in (("keep_going", keep_going), ("progress", progress)):
        if not isinstance(value, bool):
            raise InvalidTypeError(f"{name} is True or False. Received: {value!r}.")


def _fixed(params: Any, seed: int) -> dict[str, Any]:
    if params is not None and not isinstance(params, Mapping):
        raise InvalidTypeError(f"params is a dict of parameters by name. Received: {params!r}.")
    return {"random_seed": seed, **(params or {})}


def _folder(experiment: "Experiment", params: Mapping[str, Any], study: str, output_dir: str | Path | None) -> Path:
    outer = current_run()
    if output_dir is None and outer is not None:
        output_dir = outer.output_dir / "runs"
    elif output_dir is None:
        output_dir = experiment.read(params).params["output_dir"]
    return folder_of(experiment, "search", study, output_dir)


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna's own lines on each trial away; the table tells of them."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
