"""A sweep of real trainings, with all that a run may start: ``python training_script.py OUTPUT_DIR``.

With HOLD set each run waits at its second checkpoint, until somebody kills it.
"""

import os
import sys
import threading

import torch
from pydantic import BaseModel
from torch import nn
from torch.utils.data import TensorDataset

import trainlab
from trainlab import Batch, Callback
from trainlab.distributed import is_master
from trainlab.sweeps import run_parameter_sweep


class Parameters(BaseModel):
    """The parameters of ``fit``."""

    workers: int = 0
    has_helper: bool = False


class Hold(Callback):
    """Waits for ever at the second checkpoint."""

    def on_checkpoint_write_end(self, checkpoint_dir: object) -> None:
        """Tell that it is there, and wait."""
        mark = trainlab.output_dir / "checkpoints-written"
        with mark.open("a") as file:
            file.write(".")
        if len(mark.read_text()) == 2 and "HOLD" in os.environ:
            (trainlab.output_dir / "held").touch()
            threading.Event().wait()


@trainlab.experiment
def fit(parameters: Parameters) -> float:
    """Train a little, perhaps with a loader's workers, a helper process, or on several ranks."""
    if trainlab.is_subprocess():
        threading.Event().wait()
    if parameters.has_helper:
        trainlab.launch_subprocess()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    with trainlab.init(progress=False, device="cpu") as context:
        trial = trainlab.SupervisedTrial(
            context,
            model=nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1)),
            training_set=TensorDataset(x, x.sum(1, keepdim=True)),
            loss=nn.functional.mse_loss,
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
            batch_size=4,
            num_workers=parameters.workers,
        )
        trial.build_callbacks = lambda: {"hold": Hold()} if is_master() else {}
        trainlab.Trainer(trial, context).fit(max_length=Batch(24), checkpoint_period=Batch(6))
        return sum(float(one.detach().double().sum()) for one in context.models[0].parameters())


if __name__ == "__main__":
    ways = [{"random_seed": 5, "workers": 1, "has_helper": True}]
    ways += [{"random_seed": 5, "distributed": True, "nproc_per_node": 2}]
    result = run_parameter_sweep(fit, ways, 2, name="fits", output_dir=sys.argv[1])
    print([run.result for run in result])
