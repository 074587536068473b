"""Everything that trainlab raises: one root, and a class for each way of going wrong.

Each class also derives from the builtin that fits, so that code which catches
``ValueError`` or ``RuntimeError`` goes on working.
"""

from collections.abc import Iterable

__all__ = [
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "DataError",
    "DisagreementError",
    "DistributedError",
    "InvalidStateError",
    "InvalidTypeError",
    "InvalidValueError",
    "LaunchError",
    "MetricError",
    "MissingDependencyError",
    "PeerFailedError",
    "RankFailedError",
    "RunFolderError",
    "StorageError",
    "SweepError",
    "TrainlabError",
    "TrialDefinitionError",
    "did_you_mean",
]


class TrainlabError(Exception):
    """The root of all errors that trainlab raises on purpose."""


class InvalidValueError(TrainlabError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class InvalidTypeError(TrainlabError, TypeError):
    """An argument is not of a type that can be used."""


class InvalidStateError(TrainlabError, RuntimeError):
    """A call came at a time at which it cannot be answered."""


class TrialDefinitionError(TrainlabError, TypeError):
    """A Trial or a Callback is written in a way that cannot be trained."""


class DataError(TrainlabError, ValueError):
    """A data set or a data loader cannot give what training needs."""


class MetricError(TrainlabError, ValueError):
    """A metric is not what its place asks for."""


class RunFolderError(TrainlabError, RuntimeError):
    """A run's folder cannot be used: held by another process, or not a run's."""


class StorageError(TrainlabError, OSError):
    """A file system or an object store does not do what it is asked to."""


class CheckpointError(TrainlabError, RuntimeError):
    """A checkpoint cannot be written or read."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at the given place."""


class CheckpointDamagedError(CheckpointError):
    """A checkpoint's content is not what its manifest says."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A checkpoint is whole and does not fit what it is loaded into."""


class MissingDependencyError(TrainlabError, ImportError):
    """A feature needs a package that is not installed."""


class DistributedError(TrainlabError, RuntimeError):
    """Processes that work together cannot go on together."""


class PeerFailedError(DistributedError):
    """Another rank failed, was killed or froze; the message names it and what it was doing."""


class DisagreementError(DistributedError):
    """The ranks of one run were not given the same: models, hyperparameters, data or schedules."""


class LaunchError(TrainlabError, RuntimeError):
    """Processes or a job cannot be started, or came to an end without a result."""


class RankFailedError(LaunchError):
    """A rank that was launched failed; the first one, which is the cause.

    Attributes:
        rank: its number; None where it is not known.
        exitcode: its exit status, negative for a signal; None where it is not known.
        traceback: of its error; "" where there is none.
    """

    def __init__(
        self, message: str, *, rank: int | None = None, exitcode: int | None = None, traceback: str = ""
    ) -> None:
        super().__init__(message)
        self.rank, self.exitcode, self.traceback = rank, exitcode, traceback


class SweepError(TrainlabError, RuntimeError):
    """Runs of a sweep failed.

    Attributes:
        result: what came of all of its runs, a ``SweepResult``.
    """

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Say which known name was meant, for the message of an error.

    Args:
        given: the name that is not known.
        known: those that are.

    Returns:
        Such as " Did you mean --learning-rate?"; "" where none is near.
    """
    import difflib  # where nothing is wrong it is not needed

    plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(given), list(plain), n=1)
    return f" Did you mean {plain[near[0]]}?" if near else ""


def _plain(name: str) -> str:
    # Dashes that all options begin with would make them alike.
    return name.replace("_", "-").lstrip("-").lower()
