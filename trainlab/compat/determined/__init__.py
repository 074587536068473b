"""The names of ``determined.pytorch``, so that code written for it runs after one import line is changed.

``from trainlab.compat import determined as pytorch`` takes the place of ``from determined import pytorch``. What
behaves otherwise is listed on the page "Code written for determined.pytorch" of the documentation.
"""

from trainlab.compat.determined.context import (
    CheckpointLoadContext,
    PyTorchExperimentalContext,
    PyTorchTrialContext,
    init,
    load_trial_from_checkpoint_path,
)
from trainlab.compat.determined.loader import DataLoader, TorchData, adapt_batch_sampler, data_length, to_device
from trainlab.compat.determined.trial import PyTorchTrial
from trainlab.compat.determined.writer import TorchWriter
from trainlab.data import samplers
from trainlab.distributed import DistributedContext
from trainlab.metrics import MetricReducer, Reducer
from trainlab.optim import LRScheduler
from trainlab.schedule import Batch, Epoch, TrainUnit
from trainlab.training import Callback as PyTorchCallback
from trainlab.training import Trainer

__all__ = [
    "Batch",
    "CheckpointLoadContext",
    "DataLoader",
    "DistributedContext",
    "Epoch",
    "LRScheduler",
    "MetricReducer",
    "PyTorchCallback",
    "PyTorchExperimentalContext",
    "PyTorchTrial",
    "PyTorchTrialContext",
    "Reducer",
    "TorchData",
    "TorchWriter",
    "TrainUnit",
    "Trainer",
    "adapt_batch_sampler",
    "data_length",
    "init",
    "load_trial_from_checkpoint_path",
    "samplers",
    "to_device",
]
