"""What belongs to the run that is going on: ``output_dir``, ``params``, ``new_seed``; whenever they were imported."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidStateError
from trainlab.runs.current import CurrentRun, current_run

__all__ = ["new_seed", "output_dir", "params"]


def new_seed(nbits: int = 32) -> int:
    """Draw a new seed from the run's one: the n-th call gives the same on every rank and in every replay.

    Args:
        nbits: how many random bits it has, at least 1. Default 32.

    Returns:
        An int from 0 to 2**nbits - 1.

    Raises:
        InvalidStateError: no run is going on.
        InvalidValueError: ``nbits`` is no int of at least 1.
    """
    return _running("new_seed()").seeds.next(nbits)


def _running(asked: str) -> CurrentRun:
    run = current_run()
    if run is None:
        raise InvalidStateError(
            f"No experiment is running, so there is no {asked}. Use it inside of an experiment's main function, or in "
            "what that calls: @trainlab.experiment above the function, and call it."
        )
    return run


def _folder() -> Path:
    return _running("trainlab.output_dir").output_dir


class _OutputDir:
    """Stands for the running experiment's folder: has all that its ``pathlib.Path`` has."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pickle and copy ask for what is not there, also before a run
            raise AttributeError(name)
        return getattr(_folder(), name)

    # A class that isinstance believes, as unittest.mock does it.
    @property  # type: ignore[misc]  # it is what the class says of itself, and is not to be set
    def __class__(self) -> type:
        return type(Path())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(_folder()), (str(_folder()),)

    def __fspath__(self) -> str:
        return os.fspath(_folder())

    def __str__(self) -> str:
        return str(_folder())

    def __repr__(self) -> str:
        run = current_run()
        return "<trainlab.output_dir, before a run>" if run is None else repr(run.output_dir)

    def __bytes__(self) -> bytes:
        return bytes(_folder())

    def __format__(self, form: str) -> str:
        return format(str(_folder()), form)

    def __hash__(self) -> int:
        return hash(_folder())

    def __truediv__(self, other: Any) -> Any:
        return _folder() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / _folder()

    def __eq__(self, other: object) -> bool:
        return bool(_folder() == _plain(other))

    def __lt__(self, other: Any) -> Any:
        return _folder() < _plain(other)

    def __le__(self, other: Any) -> Any:
        return _folder() <= _plain(other)

    def __gt__(self, other: Any) -> Any:
        return _folder() > _plain(other)

    def __ge__(self, other: Any) -> Any:
        return _folder() >= _plain(other)


def _plain(other: Any) -> Any:
    return _folder() if type(other) is _OutputDir else other


class _Params(Mapping[str, Any]):
    """Stands for the running experiment's parameters, by name."""

    def __getitem__(self, name: str) -> Any:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return "<trainlab.params, before a run>" if current_run() is None else repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    @staticmethod
    def _all() -> Mapping[str, Any]:
        return _running("trainlab.params").params


if TYPE_CHECKING:
    output_dir: Path
    params: Mapping[str, Any]
else:
    output_dir = _OutputDir()
    params = _Params()
