"""run: an experiment from its first file to its last, in this process."""

import contextlib
import os
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainlab.errors import PeerFailedError
from trainlab.experiments.determinism import deterministic
from trainlab.experiments.ending import signals_end_run
from trainlab.experiments.opening import Opened, Place, open_run, ranks_of_environment
from trainlab.experiments.other_children import others_ended
from trainlab.experiments.record import RunRecord
from trainlab.experiments.searched import searched_of_environment
from trainlab.experiments.seeding import seed_process
from trainlab.runs.current import CurrentRun, Seeds, begin_run, end_run, only_run, refuse_second_run
from trainlab.runs.sent_run import sent_to_children
from trainlab.runs.traceback_text import hide

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.values import Values

__all__ = ["call_main", "is_of_main", "run"]


def run(
    experiment: "Experiment", values: "Values", *, run_dir: str | os.PathLike[str] | None = None, resumes: bool = False
) -> Any:
    """Run an experiment in this process: open its folder, record it, seed, call its main function, write the end.

    Where the environment says that this process is one of several, all call this, and have the folder together.

    Args:
        experiment: what is run.
        values: of its parameters.
        run_dir: the run's folder exactly. Default: the environment variable TRAINLAB_RUN_DIR, or a new folder
            ``<output_dir>/<experiment's path>/<date>_<time>_<id>``.
        resumes: whether a run that is in the folder already is gone on with, and a ``fit`` in it from its newest
            checkpoint. Default: whether the environment has TRAINLAB_RESUME=1.

    Returns:
        What the main function returned.

    Raises:
        InvalidStateError: a run is going on in this process.
        RunFolderError: the folder cannot be used.
        DisagreementError: the ranks were given different parameters.
        BaseException: what the main function raised.
    """
    from trainlab.experiments.children import refuse_import
    from trainlab.experiments.distributed_run import run_distributed, wants_launch

    refuse_import(experiment.path)
    refuse_second_run(experiment.path)
    hide(values.secrets)
    place = Place.of(run_dir, resumes)
    if wants_launch(values):
        return run_distributed(experiment, values, run_dir=place.run_dir, resumes=place.resumes)
    with contextlib.ExitStack() as closing:
        closing.enter_context(only_run(experiment.path))
        closing.enter_context(signals_end_run())
        closing.enter_context(deterministic(values.params["deterministic"]))
        ranks = closing.enter_context(ranks_of_environment(values))
        return _run_opened(experiment, open_run(experiment, values, place, ranks))


def _run_opened(experiment: "Experiment", opened: Opened) -> Any:
    """Run the main function in an open folder, from the first line of its record to the last."""
    from trainlab.experiments.debugging import debugged

    values = opened.values
    try:
        with RunRecord(experiment, opened) as record, opened.guard():
            with _begun(experiment, opened) as current, debugged(values.params["debug"], values.secrets):
                returned = call_main(experiment, values)
                record.note_returned(returned)
            opened.end_together(current.seeds.count)
    except PeerFailedError:
        raise SystemExit(1) from None  # the rank that failed has told why
    return returned


@contextlib.contextmanager
def _begun(experiment: "Experiment", opened: Opened) -> Iterator[CurrentRun]:
    """The time in which the run goes on, for whatever asks in this process and in its children."""
    from trainlab.experiments.children import begin_children, end_children

    values = opened.values
    seed = values.params["random_seed"]
    searched: Any = searched_of_environment()  # on all ranks, for it is taken out of the environment
    current = CurrentRun(
        experiment=experiment.path,
        output_dir=opened.folder.path,
        params=values.params,
        random_seed=seed,
        seeds=Seeds(seed),
        folder=opened.folder,
        searched=searched if opened.is_chief else None,
        hparams=_hparams(experiment, values),
        uses_gpus=bool(values.params["cuda"]),
        masking=opened.folder.masking,
    )
    with contextlib.ExitStack() as ending:
        begin_run(current)
        ending.callback(end_run, current)
        ending.enter_context(others_ended())
        begin_children(experiment, values)
        ending.callback(end_children)
        ending.enter_context(sent_to_children(current))
        ending.enter_context(seed_process(seed))
        ending.enter_context(current.at_end)
        yield current


def _hparams(experiment: "Experiment", values: "Values") -> dict[str, Any]:
    """The user's own parameters as plain data, which a checkpoint holds: without secrets."""
    left_out = {parameter.name for parameter in experiment.parameters if parameter.is_default}
    left_out |= set(values.secret_names)
    return {name: value for name, value in values.plain().items() if name not in left_out}


def is_of_main(error: BaseException) -> bool:
    """Tell whether an error came out of a main function, and not of what is done before it and after it.

    Args:
        error: what came out of ``run``.
    """
    return any(frame.f_code is call_main.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def call_main(experiment: "Experiment", values: "Values") -> Any:
    """Call an experiment's main function with what it takes: the model, the dict, or the dict and the run's context.

    Args:
        experiment: whose function it is.
        values: of its parameters.

    Returns:
        What it returned.
    """
    given = values.params if values.model is None else values.model
    if not experiment.takes_context:
        return experiment.main(given)
    from trainlab.containers import run_context

    return experiment.main(given, run_context())
