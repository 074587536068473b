"""What a run that is a trial of a search has of it: the metric to watch, how long to train, and whether to go on."""

import base64
import json
import logging
import os
import pickle
import signal
import time
import warnings
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidTypeError, InvalidValueError, MissingDependencyError, StorageError
from trainlab.runs.current import current_run
from trainlab.runs.masking import Masking, mask_passwords, passwords_of
from trainlab.runs.plain_numbers import plain_number
from trainlab.schedule import Batch, Epoch, TrainUnit

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    import optuna
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, TrialState

__all__ = [
    "ASKED_TO_STOP",
    "REPEATS",
    "SEARCH",
    "SearchedBy",
    "check_installed",
    "connect",
    "disconnect",
    "report",
    "searched_of_environment",
    "told_by_driver",
]

logger = logging.getLogger("trainlab.experiments")

# The variable that tells a process which trial of which search it is.
SEARCH = "TRAINLAB_SEARCH"
# On a trial in the search's storage: whether it was pruned by what it reported last.
ASKED_TO_STOP = "trainlab:asked_to_stop"
# On an attempt at a trial: the number of the one before it.
REPEATS = "trainlab:repeats"
_JOURNAL = "journal://"
# Packages whose names are not those of their modules.
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
# A transaction of another process on a slow disk may take that long.
_SQLITE_SECONDS = 120
# Before a storage that does not open is tried once more.
_RETRIES = (0.1, 0.3, 0.6)
# The seconds between tries to tell something to a storage that was there before.
_PATIENCE = (1, 2, 4, 8, 15, 30)


@dataclass(frozen=True)
class SearchedBy:
    """A trial's place in its search, as its process is told by the environment; a ``SearchedTrial`` of its run.

    Args:
        storage: the URL of the search's storage, with its password.
        study: the study's name there.
        trial: the trial's number there.
        metric: the metric that the search looks at.
        smaller_is_better: whether a smaller value of it is better.
        length: how long to train: "Batch" or "Epoch", and how many; None if the search does not say.
        pruner: Optuna's, pickled, as base64.
    """

    storage: str = field(repr=False)
    study: str
    trial: int
    metric: str
    smaller_is_better: bool
    length: tuple[str, int] | None
    pruner: str = field(repr=False)

    @property
    def max_length(self) -> TrainUnit | None:
        """How long to train where the program does not say."""
        if self.length is None:
            return None
        kind, count = self.length
        return Epoch(count) if kind == "Epoch" else Batch(count)

    @property
    def prunes(self) -> bool:
        """Whether it may end the trial early, so that it has to be told how far that is."""
        from optuna.pruners import NopPruner

        return not isinstance(self._pruner, NopPruner)

    def to_text(self) -> str:
        """All of it, for the environment."""
        return json.dumps(asdict(self))

    def report(self, value: float, step: int) -> bool:
        """Tell the search how far the trial is.

        Args:
            value: the metric's.
            step: how much is trained; grows from call to call. What was told of a step before a crash stays.

        Returns:
            Whether the trial is to be pruned.

        Raises:
            InvalidTypeError: ``value`` is no number, or ``step`` no int.
            InvalidValueError: ``step`` is below 0.
            StorageError: the storage could not be reached for a while.
            SystemExit: another searcher has the trial, for the one that started this process was taken for dead.
        """
        from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

        value, step = _checked(value, step)
        try:
            for seconds in _PATIENCE:
                try:
                    return self._report(value, step)
                except (StorageError, StorageInternalError):  # a server that starts again
                    logger.warning("The search's storage cannot be reached. Once more in %d s.", seconds)
                    time.sleep(seconds)
            return self._report(value, step)
        except StorageInternalError as error:
            raise StorageError(
                f"The search's storage could not be reached for {sum(_PATIENCE)} s. Received: "
                f"{mask_passwords(self.storage)} ({told_by_driver(error, self.storage)})."
            ) from None
        except UpdateFinishedTrialError:
            logger.warning("Another searcher goes on with this trial, which is left to it.")
            raise SystemExit(128 + signal.SIGTERM) from None

    def _report(self, value: float, step: int) -> bool:
        storage, trial_id = self._storage, self._trial_id
        if step not in storage.get_trial(trial_id).intermediate_values:
            storage.set_trial_intermediate_value(trial_id, step, value)
        is_pruned = bool(self._study.pruner.prune(self._study, storage.get_trial(trial_id)))
        storage.set_trial_system_attr(trial_id, ASKED_TO_STOP, is_pruned)
        return is_pruned

    @cached_property
    def _study(self) -> "optuna.Study":
        return _counted_study(self.study, self._storage, self._pruner)

    @cached_property
    def _pruner(self) -> "BasePruner":
        pruner: BasePruner = pickle.loads(base64.b64decode(self.pruner))
        return pruner

    @cached_property
    def _storage(self) -> "optuna.storages.BaseStorage":
        storage = connect(self.storage, is_made=True)
        if (run := current_run()) is not None:
            run.at_end.callback(disconnect, storage)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return storage

    @cached_property
    def _trial_id(self) -> int:
        study_id = self._storage.get_study_id_from_name(self.study)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, self.trial)


def _counted_study(name: str, storage: "BaseStorage", pruner: "BasePruner") -> "optuna.Study":
    """A study that shows a pruner each trial once, without the attempts that were broken off.

    They keep what ASHA has noted on them, which a finished trial of Optuna's cannot lose.
    """
    from optuna import Study

    class CountedStudy(Study):
        def get_trials(
            self, deepcopy: bool = True, states: "Container[TrialState] | None" = None
        ) -> "list[FrozenTrial]":
            left_out = _not_counted(super().get_trials(deepcopy=False))
            return [one for one in super().get_trials(deepcopy, states) if one.number not in left_out]

    return CountedStudy(name, storage, pruner=pruner)


def _not_counted(trials: "Sequence[FrozenTrial]") -> set[int]:
    """The numbers of attempts that another one repeats; of several that repeat the same one the first counts."""
    has_ended = {trial.number for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")}
    repeated: set[int] = set()
    too_late: set[int] = set()
    for trial in trials:
        before = trial.system_attrs.get(REPEATS)
        if before in repeated or before in has_ended:
            too_late.add(trial.number)
        elif before is not None:
            repeated.add(before)
    return repeated | too_late


def _checked(value: Any, step: Any) -> tuple[float, int]:
    number, count = plain_number(value), plain_number(step)
    if number is None:
        raise InvalidTypeError(f"What is reported to a search is a number. Received: {value!r}.")
    if not isinstance(count, int):
        raise InvalidTypeError(f"The step of a report is an int. Received: {step!r}.")
    if count < 0:
        raise InvalidValueError(f"The step of a report is at least 0. Received: {step!r}.")
    return float(number), count


def searched_of_environment() -> SearchedBy | None:
    """Which trial of which search this process's run is; asked once, for what it starts itself is no trial.

    Returns:
        The trial; None if the run is none.
    """
    text = os.environ.pop(SEARCH, None)
    if text is None:
        return None
    told = json.loads(text)
    told["length"] = told["length"] and tuple(told["length"])
    return SearchedBy(**told)


def report(value: float, step: int) -> bool:
    """Tell the search, if this run is a trial of one, how far a training loop of one's own is; call it on the chief.

    A loop that is told to stop returns. The Trainer does both by itself.

    Args:
        value: that of the search's metric.
        step: how much is trained, an int of at least 0; grows from call to call.

    Returns:
        Whether to stop; False where there is no search.

    Raises:
        InvalidTypeError: there is a search, and ``value`` is no number, or ``step`` no int.
        InvalidValueError: there is a search, and ``step`` is below 0.
    """
    run = current_run()
    return run is not None and run.searched is not None and run.searched.report(value, step)


def connect(url: str, *, is_made: bool = False) -> "optuna.storages.BaseStorage":
    """Open a search's storage.

    Args:
        url: a URL as SQLAlchemy has it (``sqlite:////data/study.db``, ``postgresql://user@host/name``), or
            ``journal:///data/study.log`` for Optuna's JournalStorage in a file.
        is_made: whether its tables are known to be there. Default False: they are made if need be.

    Returns:
        Optuna's storage.

    Raises:
        MissingDependencyError: Optuna, or the database's driver, is not installed.
        InvalidValueError: it is no such URL.
        StorageError: the storage cannot be reached.
    """
    check_installed()
    import optuna
    import sqlalchemy

    try:
        return _opened(url, is_made=is_made)
    except ImportError as error:
        # The text of Optuna on how to install it would show the URL.
        name = error.__cause__.name if isinstance(error.__cause__, ImportError) else None
        raise MissingDependencyError(
            f"The driver of this storage is not installed. Received: {mask_passwords(url)}. Install it: "
            f"pip install {_DRIVERS.get(str(name), name)}."
        ) from None
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise InvalidValueError(
            f"The storage is a URL such as sqlite:////data/study.db, postgresql://user@host/name or "
            f"journal:///data/study.log. Received: {mask_passwords(url)} ({told_by_driver(error, url, cause=False)})."
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, OSError, RuntimeError) as error:
        is_file = url.startswith((_JOURNAL, "sqlite"))
        raise StorageError(
            f"The search's storage cannot be opened: {told_by_driver(error, url)} Received: {mask_passwords(url)}. See "
            + (
                "that its folder is there, and can be written."
                if is_file
                else "that it is there, and that its user and password are right."
            )
        ) from None


def disconnect(storage: "optuna.storages.BaseStorage") -> None:
    """Close a storage's connections.

    Args:
        storage: as ``connect`` gave it.
    """
    storage.remove_session()
    engine = getattr(storage, "engine", None)
    if engine is not None:
        engine.dispose()


def _opened(url: str, *, is_made: bool) -> "optuna.storages.BaseStorage":
    import optuna
    import sqlalchemy

    if url.startswith(_JOURNAL):
        path = url.removeprefix(_JOURNAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            from optuna.storages.journal import JournalFileBackend

            return optuna.storages.JournalStorage(JournalFileBackend(path))
    for seconds in _RETRIES:
        try:
            return _database(url, is_made=is_made)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError):
            time.sleep(seconds)  # another process may be making the tables
    return _database(url, is_made=is_made)


def _database(url: str, *, is_made: bool) -> "optuna.storages.BaseStorage":
    import optuna

    # A server may have closed what was not used for a while.
    options = {"connect_args": {"timeout": _SQLITE_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(
        url, engine_kwargs=options, skip_table_creation=is_made, skip_compatibility_check=is_made
    )


def check_installed() -> None:
    """See that Optuna is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import optuna  # noqa: F401  # here it is only asked whether it is there
    except ImportError as error:
        raise MissingDependencyError(
            f"A search needs Optuna, which cannot be imported ({error}). Install it: pip install 'trainlab[search]'."
        ) from error


def told_by_driver(error: BaseException, url: str, *, cause: bool = True) -> str:
    """What a database's driver tells, without the password, of which it may name any piece.

    Args:
        error: what was raised.
        url: the storage's.
        cause: whether its cause is told instead, where it has one. Default True.

    Returns:
        The text.
    """
    text = str((cause and error.__cause__) or error)
    return Masking(passwords_of(url)).text(mask_passwords(text)).strip()
