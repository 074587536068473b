"""Which of a search's parameters matter."""

import importlib.util
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

__all__ = ["importances"]

logger = logging.getLogger("trainlab.sweeps")


def importances(study: "optuna.Study") -> dict[str, float]:
    """How much of the metric's change each parameter explains.

    By fANOVA where scikit-learn is installed, else by PED-ANOVA, which looks at the best tenth alone.
    Source: Hutter et al., ICML 2014; Watanabe et al., IJCAI 2023; both as Optuna has them.

    Args:
        study: the search's.

    Returns:
        By the parameter's name, from 0 to 1, the most first; empty with fewer than two finished trials.
    """
    from optuna import exceptions, importance
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < 2:
        return {}
    evaluator: importance.BaseImportanceEvaluator
    if importlib.util.find_spec("sklearn") is not None:
        evaluator = importance.FanovaImportanceEvaluator(seed=0)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
            evaluator = importance.PedAnovaImportanceEvaluator()
    try:
        found = importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError) as error:  # all values are the same, or not finite
        logger.info("The parameters' importances cannot be told: %s", error)
        return {}
    return {name: float(value) for name, value in found.items()}
