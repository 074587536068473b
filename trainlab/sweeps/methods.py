"""Samplers and pruners by name, as Optuna has them."""

import base64
import importlib.util
import pickle
import warnings
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidTypeError, InvalidValueError, MissingDependencyError
from trainlab.schedule import Epoch, TrainUnit

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

__all__ = ["PRUNERS", "SAMPLERS", "check_sampler", "make_pruner", "make_sampler", "pickled"]

SAMPLERS = ("tpe", "random", "grid", "cmaes")
PRUNERS = ("none", "median", "asha", "hyperband")
# Of every so many, one goes on; as in the papers of both.
# Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, section 4.
_REDUCTION = 4
# Optuna's own default for Hyperband. Source: Li et al., "Hyperband", JMLR 18 (2018), section 2.6.
_HYPERBAND_REDUCTION = 3
# The first decision of a run of a known length comes after this part of it, at the earliest.
_FIRST_PART = 16


def check_sampler(sampler: Any) -> None:
    """See that there is such a sampler.

    Args:
        sampler: a name of ``SAMPLERS``, or Optuna's.

    Raises:
        InvalidValueError: an unknown name, or Optuna's GridSampler.
        InvalidTypeError: something else.
        MissingDependencyError: it needs a package that is not installed.
    """
    from optuna.samplers import BaseSampler, GridSampler

    if isinstance(sampler, GridSampler):
        raise InvalidValueError("A grid is searched by sampler='grid'. Received: Optuna's GridSampler.")
    if isinstance(sampler, BaseSampler):
        return
    _check_name("sampler", sampler, SAMPLERS)
    # Optuna imports it only when it draws.
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise MissingDependencyError(
            "The sampler 'cmaes' needs a package that is not installed. Install it: pip install cmaes."
        )


def make_sampler(sampler: Any, seed: int) -> "BaseSampler":
    """Make the sampler of one trial.

    Args:
        sampler: as for ``check_sampler``; Optuna's is taken as it is.
        seed: of this trial.

    Returns:
        The sampler; that of a grid draws nothing.
    """
    from optuna import exceptions, samplers

    if isinstance(sampler, samplers.BaseSampler):
        return sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
        if sampler == "tpe":
            # Trials that run are taken into account: what is tried at the same time is not the same.
            return samplers.TPESampler(seed=seed, constant_liar=True)
        if sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed)
    return samplers.RandomSampler(seed=seed)


def make_pruner(pruner: Any, max_length: TrainUnit | None) -> "BasePruner":
    """Make a pruner.

    Args:
        pruner: a name of ``PRUNERS``, or Optuna's.
        max_length: how long a trial trains, if it is known: what ASHA and Hyperband measure by.

    Returns:
        Optuna's pruner; its steps are the Trainer's: epochs if ``max_length`` is in epochs, else batches.

    Raises:
        InvalidValueError: an unknown name, or one that needs a ``max_length``.
        InvalidTypeError: something else.
    """
    from optuna import pruners

    if isinstance(pruner, pruners.BasePruner):
        return pruner
    _check_name("pruner", pruner, PRUNERS)
    if pruner == "none":
        return pruners.NopPruner()
    if pruner == "median":
        return pruners.MedianPruner()
    if max_length is None:
        raise InvalidValueError(
            f"The pruner {pruner!r} has to know how long a trial trains. Received: no max_length. Pass "
            "max_length=Epoch(20), say, or --max-length '20 epochs' on the command line, and leave it out in fit."
        )
    longest = max_length.value
    assert isinstance(longest, int)  # the search has checked it; kept for the type checker
    first = 1 if isinstance(max_length, Epoch) else max(1, longest // _FIRST_PART)
    if pruner == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=_REDUCTION)
    from trainlab.sweeps.hyperband import CountedHyperband

    return CountedHyperband(min_resource=first, max_resource=longest, reduction_factor=_HYPERBAND_REDUCTION)


def pickled(pruner: "BasePruner") -> str:
    """A pruner as text, for the environment of a trial's process.

    Args:
        pruner: Optuna's.

    Returns:
        Its pickle as base64.

    Raises:
        InvalidTypeError: it cannot be pickled.
    """
    try:
        return base64.b64encode(pickle.dumps(pruner)).decode()
    except Exception as error:  # whatever its class raises
        raise InvalidTypeError(
            f"The pruner is sent to the trials' processes, and cannot be pickled: {error}. Received: {pruner!r}."
        ) from error


def _check_name(what: str, given: Any, names: tuple[str, ...]) -> None:
    if not isinstance(given, str):
        raise InvalidTypeError(f"{what} is a name or one of Optuna's. Received: {given!r}.")
    if given not in names:
        raise InvalidValueError(
            f"There is no {what} {given!r}. There are: {', '.join(names)}; or pass one of Optuna's."
        )
