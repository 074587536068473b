"""Trials: the trials of a search as its storage holds them, shared by any number of searchers without races.

Two facts hold for each of Optuna's storages, SQLite too: trials are only ever added, and their numbers are unique and
in the order in which they came. All decisions are made from these, never by changing a state that another may
change: which trials count (the first so many), and who repeats a trial whose searcher is dead (the first that added
another one with a reference to it). Whoever reads the storage decides alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainlab.experiments.searched import ASKED_TO_STOP, REPEATS

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

__all__ = ["FIRST", "SearchTrial", "State", "Trials", "give_up"]

State = Literal["running", "finished", "pruned", "failed"]

# On an attempt at a trial: the number of the first one.
FIRST = "trainlab:first"
# On the first trial of all: what the search was begun with.
_BEGUN = "trainlab:begun"
_SEARCHER = "trainlab:searcher"
_CRASHES = "trainlab:crashes"
_SURPLUS = "trainlab:surplus"
_FAILED = "trainlab:failed"


@dataclass(frozen=True)
class SearchTrial:
    """A trial with all its attempts, each of which is a trial of Optuna's.

    Attributes:
        number: that of the first attempt, by which it is known; also its folder's.
        position: how many trials that count are before it.
        attempts: in order; all but the last were broken off.
    """

    number: int
    position: int
    attempts: tuple["FrozenTrial", ...]

    @property
    def last(self) -> "FrozenTrial":
        """The attempt that counts."""
        return self.attempts[-1]

    @property
    def begun(self) -> Mapping[str, Any] | None:
        """What the search was begun with, of its first trial; None of all others."""
        return self.attempts[0].system_attrs.get(_BEGUN)

    @property
    def params(self) -> Mapping[str, Any]:
        """What the search has chosen, by the parameter's name."""
        return self.last.params

    @property
    def state(self) -> State:
        """How far it is."""
        if not self.last.state.is_finished():
            return "running"
        states: dict[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned"}
        return states.get(self.last.state.name, "failed")

    @property
    def value(self) -> float | None:
        """The metric's; of a running trial what it reported last; None if there is none."""
        last, state = self.last, self.state
        if state in ("finished", "pruned"):
            return last.value
        return None if state == "failed" or last.last_step is None else last.intermediate_values[last.last_step]

    @property
    def searcher(self) -> str | None:
        """Who runs it."""
        return self.last.system_attrs.get(_SEARCHER)

    @property
    def crashes(self) -> int:
        """How often its process came to an end without a word while its searcher lived."""
        return int(self.last.system_attrs.get(_CRASHES, 0))

    @property
    def reason(self) -> str:
        """Why it has failed; "" if it has not."""
        return str(self.last.system_attrs.get(_FAILED, "")) if self.state == "failed" else ""


class Trials:
    """The trials of one study.

    Args:
        study: the study.
        storage: its storage.
        study_id: the study there.
    """

    def __init__(self, study: "optuna.Study", storage: "BaseStorage", study_id: int) -> None:
        self._study, self._storage, self._study_id = study, storage, study_id

    def read(self) -> list[SearchTrial]:
        """Read all trials that count, in order; attempts that do not count are told as failed on the way."""
        first: list[FrozenTrial] = []
        repeated_by: dict[int, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            repeats = trial.system_attrs.get(REPEATS)
            if repeats is not None:
                repeated_by.setdefault(repeats, []).append(trial)
            elif _SURPLUS not in trial.system_attrs:
                first.append(trial)
        found = [
            SearchTrial(trial.number, position, _attempts(trial, repeated_by)) for position, trial in enumerate(first)
        ]
        count = {one.last.number for one in found}
        for trial in [*first, *(late for claims in repeated_by.values() for late in claims)]:
            if trial.number not in count:
                give_up(self._storage, trial)
        return found

    def begin(self, searcher: str, trials: int, begun: Mapping[str, Any] | None = None) -> SearchTrial | None:
        """Add a trial, without parameters yet.

        Args:
            searcher: who runs it.
            trials: how many count at most.
            begun: what the search is begun with; of several searchers that begin it at once the first trial's counts.
                Default None: there is a first trial.

        Returns:
            The trial; None if others have added as many meanwhile.
        """
        import optuna

        attributes = {_SEARCHER: searcher} if begun is None else {_SEARCHER: searcher, _BEGUN: dict(begun)}
        template = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, system_attrs=attributes)
        trial_id = self._storage.create_new_trial(self._study_id, template)
        mine = next(trial for trial in self.read() if trial.last._trial_id == trial_id)
        if mine.position < trials:
            return mine
        self._storage.set_trial_system_attr(trial_id, _SURPLUS, True)
        give_up(self._storage, mine.last)
        return None

    def repeat(self, trial: SearchTrial, searcher: str, *, crashed: bool, is_drawn: bool = True) -> SearchTrial | None:
        """Add another attempt at a trial: with the same parameters, and what was reported so far.

        Args:
            trial: it.
            searcher: who runs it.
            crashed: whether the attempt before ended without a word under a living searcher.
            is_drawn: whether all its parameters were drawn; if not, all are drawn anew. Default True.

        Returns:
            The trial with that attempt; None if another searcher was first.
        """
        import optuna

        before = trial.last
        attributes = {name: value for name, value in before.system_attrs.items() if is_drawn and name != ASKED_TO_STOP}
        template = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=before.params if is_drawn else {},
            distributions=before.distributions if is_drawn else {},
            user_attrs=before.user_attrs,
            system_attrs={
                **attributes,
                FIRST: trial.number,
                REPEATS: before.number,
                _SEARCHER: searcher,
                _CRASHES: trial.crashes + crashed,
            },
            intermediate_values=before.intermediate_values,
        )
        trial_id = self._storage.create_new_trial(self._study_id, template)
        found = next(one for one in self.read() if one.number == trial.number)
        return found if found.last._trial_id == trial_id else None

    def tell(self, trial: SearchTrial, state: State, value: float | None = None, reason: str = "") -> None:
        """Tell how a trial ended; of several searchers that tell it alike the first counts.

        Args:
            trial: it.
            state: "finished", "pruned" or "failed".
            value: the metric's, if it is finished.
            reason: why it has failed.
        """
        import optuna

        known = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        try:
            if state == "failed":
                self._storage.set_trial_system_attr(trial.last._trial_id, _FAILED, reason)
            self._study.tell(
                trial.last.number,
                value if state == "finished" else None,
                state=optuna.trial.TrialState[known[state]],
                skip_if_finished=True,
            )
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # another searcher was faster


def _attempts(trial: "FrozenTrial", repeated_by: Mapping[int, list["FrozenTrial"]]) -> tuple["FrozenTrial", ...]:
    attempts = [trial]
    # What was taken for dead may have come to its end all the same, before it was told otherwise.
    while attempts[-1].number in repeated_by and attempts[-1].state.name not in ("COMPLETE", "PRUNED"):
        attempts.append(repeated_by[attempts[-1].number][0])
    return tuple(attempts)


def give_up(storage: "BaseStorage", trial: "FrozenTrial") -> None:
    """Tell that an attempt does not count, if nobody has yet.

    Args:
        storage: the search's.
        trial: the attempt.
    """
    import optuna

    if trial.state.is_finished():
        return
    try:
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        return  # another searcher was faster
