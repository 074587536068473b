"""Trial, TrialContext, Trainer: the heart of trainlab."""

from trainlab.training.callback import Callback
from trainlab.training.context import TrialContext
from trainlab.training.experimental import ExperimentalContext
from trainlab.training.init import init, open_context
from trainlab.training.loading import load_trial_from_checkpoint_path
from trainlab.training.result import FitResult
from trainlab.training.rules import TrainingRules
from trainlab.training.supervised import SupervisedTrial
from trainlab.training.trainer import Trainer
from trainlab.training.trial import Trial

__all__ = [
    "Callback",
    "ExperimentalContext",
    "FitResult",
    "SupervisedTrial",
    "Trainer",
    "TrainingRules",
    "Trial",
    "TrialContext",
    "init",
    "load_trial_from_checkpoint_path",
    "open_context",
]
