"""SearchResult: what came of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainlab.sweeps.trials import SearchTrial, State

__all__ = ["SearchResult", "TrialResult", "best_of", "folder_name", "result_of"]


@dataclass(frozen=True)
class TrialResult:
    """One trial of a search.

    Attributes:
        number: by which it is known.
        state: "finished", "pruned", "failed" or "running".
        params: what the search has chosen, by the parameter's name.
        value: the metric's; of a pruned or running trial what it reported last; None if there is none.
        folder: its run's, if it ran on this machine.
        attempts: how often its process was started.
        reason: why it has failed; "" if it has not.
    """

    number: int
    state: State
    params: Mapping[str, Any]
    value: float | None
    folder: Path
    attempts: int
    reason: str


@dataclass(frozen=True)
class SearchResult:
    """What came of a search.

    Attributes:
        study: its name.
        folder: its folder, in which those of the trials are.
        best_params: what the search has chosen in the best trial; empty if none has finished.
        best_value: the metric's there; None if none has finished.
        best_run: the folder of that trial's run; None if none has finished.
        trials: all of them, in order.
        importances: how much of the metric's change each parameter explains, from 0 to 1, the most first; empty with
            fewer than two finished trials.
        params_file: ``best.yaml``, which ``--params-file`` takes: the best trial's parameters with those that were
            given; None if none has finished.
    """

    study: str
    folder: Path
    best_params: Mapping[str, Any]
    best_value: float | None
    best_run: Path | None
    trials: Sequence[TrialResult]
    importances: Mapping[str, float]
    params_file: Path | None

    def count(self, state: State) -> int:
        """How many trials are in a state.

        Args:
            state: it.

        Returns:
            A number.
        """
        return sum(trial.state == state for trial in self.trials)

    def text(self) -> str:
        """All in a line."""
        states: tuple[State, ...] = ("finished", "pruned", "failed", "running")
        counts = ", ".join(f"{self.count(state)} {state}" for state in states if self.count(state))
        if self.best_run is None:
            return f"{counts or 'no trials'}; none is the best"
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.best_params.items())
        return f"{counts}; the best is {self.best_value:g} by {self.best_run.name}: {chosen}"


def folder_name(number: int) -> str:
    """The name of a trial's folder.

    Args:
        number: the trial's.

    Returns:
        Such as "trial-0007".
    """
    return f"trial-{number:04d}"


def best_of(trials: Sequence[SearchTrial], *, smaller_is_better: bool) -> SearchTrial | None:
    """The best of the trials that have finished; of equal ones the first.

    Args:
        trials: in order.
        smaller_is_better: whether a smaller value is better.

    Returns:
        It; None if none has finished.
    """
    sign = 1 if smaller_is_better else -1
    finished = [(trial, trial.value) for trial in trials if trial.state == "finished"]
    known = [(sign * value, trial.position, trial) for trial, value in finished if value is not None]
    return min(known)[2] if known else None


def result_of(trial: SearchTrial, folder: Path) -> TrialResult:
    """What is told of a trial.

    Args:
        trial: it.
        folder: the search's.

    Returns:
        It.
    """
    place = folder / folder_name(trial.number)
    return TrialResult(
        trial.number, trial.state, dict(trial.params), trial.value, place, len(trial.attempts), trial.reason
    )
