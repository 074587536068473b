"""Hyperband that takes all attempts at a trial for one. It imports Optuna: import it where one is needed."""

from collections.abc import Container
from types import SimpleNamespace
from typing import Any

from optuna import Study
from optuna.pruners import HyperbandPruner
from optuna.trial import FrozenTrial, TrialState

from trainlab.sweeps.trials import FIRST

__all__ = ["CountedHyperband"]


class CountedHyperband(HyperbandPruner):
    """Optuna's Hyperband, of which each attempt at a trial is in the bracket of the first.

    Optuna's own counts the attempts that were broken off, and takes the bracket of each from its own number.
    """

    def _get_bracket_id(self, study: Study, trial: Any) -> int:
        first = SimpleNamespace(number=trial.system_attrs.get(FIRST, trial.number))
        return int(super()._get_bracket_id(study, first))  # type: ignore[arg-type]  # the number is all it looks at

    def _create_bracket_study(self, study: Study, bracket_id: int) -> Study:
        def get_trials(deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
            found = study.get_trials(deepcopy, states)
            return [one for one in found if self._get_bracket_id(study, one) == bracket_id]

        made = super()._create_bracket_study(study, bracket_id)
        made.get_trials = get_trials  # type: ignore[method-assign]  # its own asks the storage, past ``study``
        return made
