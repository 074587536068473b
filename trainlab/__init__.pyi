"""The public names as editors and type checkers see them; `__init__.py` loads each when it is first touched."""

from trainlab import distributed as distributed
from trainlab import launch as launch
from trainlab.checkpoint import Retention as Retention
from trainlab.checkpoint import load_checkpoint as load_checkpoint
from trainlab.checkpoint import load_weights as load_weights
from trainlab.checkpoint import save_checkpoint as save_checkpoint
from trainlab.data import DataLoader as DataLoader
from trainlab.data import samplers as samplers
from trainlab.errors import TrainlabError as TrainlabError
from trainlab.metrics import MetricReducer as MetricReducer
from trainlab.metrics import Reducer as Reducer
from trainlab.optim import LRScheduler as LRScheduler
from trainlab.parallel import DDPOptions as DDPOptions
from trainlab.parallel import FSDPOptions as FSDPOptions
from trainlab.recording import TorchWriter as TorchWriter
from trainlab.schedule import Batch as Batch
from trainlab.schedule import Epoch as Epoch
from trainlab.schedule import TrainUnit as TrainUnit
from trainlab.training import Callback as Callback
from trainlab.training import FitResult as FitResult
from trainlab.training import SupervisedTrial as SupervisedTrial
from trainlab.training import Trainer as Trainer
from trainlab.training import Trial as Trial
from trainlab.training import TrialContext as TrialContext
from trainlab.training import init as init
from trainlab.training import load_trial_from_checkpoint_path as load_trial_from_checkpoint_path

__version__: str
