"""When things happen in a run: units of training, the counters, and what is due at which batch."""

from trainlab.schedule.plan import Action, Plan
from trainlab.schedule.progress import Progress
from trainlab.schedule.units import Batch, Epoch, TrainUnit

__all__ = ["Action", "Batch", "Epoch", "Plan", "Progress", "TrainUnit"]
