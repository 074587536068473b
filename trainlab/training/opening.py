"""What a fit needs before its first batch: arguments checked, loaders opened, a checkpoint to go on from."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainlab.checkpoint import MODES, Checkpoint, Retention, list_checkpoints
from trainlab.data import BatchStream
from trainlab.errors import (
    CheckpointMismatchError,
    DataError,
    InvalidStateError,
    InvalidTypeError,
    InvalidValueError,
    TrialDefinitionError,
)
from trainlab.schedule import Progress
from trainlab.storage import Store
from trainlab.training.callback import CallbackHooks
from trainlab.training.context import TrialContext
from trainlab.training.evaluation import Evaluator
from trainlab.training.trial import Trial, check_trial, overrides

__all__ = [
    "check_choices",
    "check_open",
    "check_trainable",
    "folder_of_try",
    "open_evaluator",
    "open_stream",
    "resume_point",
]

logger = logging.getLogger("trainlab.training")

POLICIES = ("best", "all", "none")


def check_trainable(trial: Any, context: Any) -> None:
    """Find what would go wrong with a Trial and its context before anything is trained.

    Args:
        trial: the user's Trial.
        context: the context that it was made with.

    Raises:
        InvalidTypeError: one of the two is something else.
        TrialDefinitionError: the Trial wraps no model or no optimizer, or its hooks are wrong.
    """
    if not isinstance(trial, Trial):
        raise InvalidTypeError(f"Trainer takes an instance of a trainlab.Trial. Received: {trial!r}.")
    if not isinstance(context, TrialContext):
        raise InvalidTypeError(f"Trainer takes the context that trainlab.init() gave. Received: {context!r}.")
    if getattr(trial, "context", context) is not context:
        raise InvalidTypeError("The Trial was made with another context than this Trainer's. Give both the same one.")
    for what, wrapped in (("model", context.models), ("optimizer", context.optimizers)):
        if not wrapped:
            raise TrialDefinitionError(
                f"{type(trial).__qualname__} wraps no {what}. Define build_{what}, or call context.wrap_{what}(...) in "
                "__init__ (an __init__ of your own beside build_ hooks calls super().__init__(context))."
            )
    check_trial(trial, validates=False)


def check_choices(policy: Any, metric: Any, retention: Any, mode: Any, **switches: Any) -> None:
    """Refuse arguments of ``fit`` that cannot be used.

    Args:
        policy: the checkpoint policy.
        metric: the metric's name, or None.
        retention: which checkpoints are kept, or None.
        mode: how checkpoints are written.
        **switches: arguments that must be True or False.

    Raises:
        InvalidValueError: the policy or the mode is unknown.
        InvalidTypeError: another argument has the wrong type.
    """
    if policy not in POLICIES:
        raise InvalidValueError(
            f"checkpoint_policy must be one of {', '.join(map(repr, POLICIES))}. Received: {policy!r}."
        )
    if metric is not None and not isinstance(metric, str):
        raise InvalidTypeError(f"metric must be the name of a validation metric. Received: {metric!r}.")
    if retention is not None and not isinstance(retention, Retention):
        raise InvalidTypeError(f"retention must be a trainlab.Retention or None. Received: {retention!r}.")
    if mode not in MODES:
        raise InvalidValueError(f"checkpoint_mode must be one of {', '.join(map(repr, MODES))}. Received: {mode!r}.")
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidTypeError(f"{name} must be True or False. Received: {value!r}.")


def check_open(context: TrialContext) -> None:
    """Refuse to work with a context that is closed.

    Args:
        context: the context.

    Raises:
        InvalidStateError: it is closed, or it only loads a Trial.
    """
    if not context.session.is_open:
        raise InvalidStateError("The context is closed. Call fit and evaluate inside 'with trainlab.init() as ctx:'.")


def resume_point(
    context: TrialContext, latest_checkpoint: str | os.PathLike[str] | None, *, uncertain: bool
) -> Checkpoint | None:
    """Open the checkpoint to go on from, or see to it that nothing is lost by going on without one.

    Args:
        context: the run's context.
        latest_checkpoint: as given to ``fit``.
        uncertain: whether what is in memory may be of different batches, so that only a checkpoint can be gone on from.

    Returns:
        The checkpoint; in a later attempt of a launch, the newest of the run where none was given; or None.

    Raises:
        CheckpointError: it cannot be read.
        InvalidStateError: none was given, and one is needed.
    """
    if latest_checkpoint is not None:
        return _opened(context, latest_checkpoint)
    if uncertain:
        raise InvalidStateError(
            "The fit before this one was broken off by an error, or only tried the Trial (test_mode), so that there is "
            "nothing certain to go on from. Pass latest_checkpoint=ctx.latest_checkpoint (now "
            f"{context.latest_checkpoint}), or begin anew with a new context and Trial."
        )
    if context.session.folder.resumes and context.progress.batches_trained == 0:
        return _resumed(context)
    store = context.session.checkpoints
    there = list_checkpoints(store)
    if there and context.progress.batches_trained == 0:
        none_valid = "" if context.latest_checkpoint else ", but none of them is valid, see the log"
        raise InvalidStateError(
            f"The run holds {len(there)} checkpoints in {store.url}{none_valid}, and fit was told to start "
            "from the beginning. To resume, pass latest_checkpoint=ctx.latest_checkpoint. To start anew, use another "
            "run_dir."
        )
    return None


def _resumed(context: TrialContext) -> Checkpoint | None:
    """Go on with the run of an earlier attempt of the launch: from its newest checkpoint, or from the beginning."""
    newest = context.latest_checkpoint
    if newest is not None:
        logger.info("The run of an earlier attempt goes on from its newest checkpoint, %s.", newest)
        return _opened(context, newest)
    damaged = list_checkpoints(context.session.checkpoints)
    level = logging.WARNING if damaged else logging.INFO
    logger.log(
        level,
        "The run of an earlier attempt begins anew: of its %d checkpoints none is valid%s.",
        len(damaged),
        ", see the log" if damaged else "",
    )
    return None


def _opened(context: TrialContext, latest_checkpoint: Any) -> Checkpoint:
    if not isinstance(latest_checkpoint, str | os.PathLike):
        raise InvalidTypeError(f"latest_checkpoint must be a path or None. Received: {latest_checkpoint!r}.")
    checkpoint = context.open_checkpoint(latest_checkpoint)
    try:
        Progress().load_state_dict(checkpoint.progress)
    except CheckpointMismatchError as error:
        raise CheckpointMismatchError(f"{checkpoint.path}: {error}") from error
    store = context.session.checkpoints
    if not _is_in(store, checkpoint.path) and list_checkpoints(store):
        raise InvalidStateError(
            f"The checkpoint {checkpoint.path} is of another run, and this run ({context.run_dir}, {store.url}) holds "
            "checkpoints and metrics of its own, which would be lost. To go on from it, use a new run_dir."
        )
    return checkpoint


def _is_in(store: Store, path: Path | str) -> bool:
    if isinstance(path, Path):
        return store.is_local and path.resolve().parent == Path(store.location()).resolve()
    return path.rpartition("/")[0] == store.url


def open_stream(context: TrialContext, loader: Any, role: str) -> BatchStream:
    """Make the stream of a loader's batches on the run's device.

    Args:
        context: the run's context.
        loader: what a build hook returned.
        role: "training" or "validation".

    Returns:
        The stream, not started.
    """
    context.rules.check_loader(loader, checks_enabled=context.checks_loaders)
    return BatchStream(
        loader,
        seed=context.get_trial_seed(),
        move=context.mover() if context.moves_batches else None,
        device=context.device,
        data_rank=context.distributed.data_rank,
        data_size=context.distributed.data_size,
        deal="pieces" if role == "training" else "batches",
        uneven=context.uneven,
        exchange=context.distributed.side_exchange,
        cut_by_len=role == "training" and context.rules.cuts_epochs_by_len,
        role=role,
        warn=context.rules.warns_of_foreign_loader(loader, checks_enabled=context.checks_loaders),
    )


@contextlib.contextmanager
def folder_of_try(context: TrialContext) -> Iterator[str]:
    """Give a folder for the checkpoint that is only tried, which all ranks see; nothing of it is left.

    Args:
        context: the run's context.

    Yields:
        Its path.
    """
    inside = None if context.distributed.size == 1 else context.run_dir
    folder = context.distributed.on_chief(lambda: tempfile.mkdtemp(prefix=".test-mode-", dir=inside))
    try:
        yield folder
    finally:
        if context.distributed.is_chief:
            shutil.rmtree(folder, ignore_errors=True)


def open_evaluator(
    trial: Trial, context: TrialContext, hooks: CallbackHooks, closing: ExitStack, *, required: bool
) -> Evaluator | None:
    """Build what validates, if the Trial does.

    Args:
        trial: the user's Trial.
        context: its context.
        hooks: the callbacks' hooks.
        closing: what closes the loader's workers at the end.
        required: whether a validation is asked for.

    Returns:
        The evaluator; None if the Trial has no evaluation hook or no validation data.

    Raises:
        TrialDefinitionError: a validation is asked for, and there is no data for it.
    """
    has_hook = overrides(trial, "evaluate_batch") or overrides(trial, "evaluate_full_dataset")
    loader = trial.build_validation_data_loader() if has_hook else None
    if loader is None:
        if required:
            raise TrialDefinitionError(
                f"A validation is asked for, and {type(trial).__qualname__} has no validation data: "
                "build_validation_data_loader returned None."
            )
        return None
    stream = open_stream(context, loader, "validation")
    if stream.shards_itself and overrides(trial, "evaluate_full_dataset"):
        raise DataError(
            "evaluate_full_dataset evaluates the whole data set in one place, and this loader gives each rank a part "
            f"of it. Received: {type(loader).__qualname__}. Return a loader of the whole data set, or define "
            "evaluate_batch."
        )
    evaluator = Evaluator(trial, context, hooks, loader, stream)
    closing.callback(evaluator.close)
    return evaluator
