"""Programs that end while a loader's workers are alive."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A program that hangs would hang for ever; this is far beyond what the slowest machine needs.
DEADLINE = 120

ITERATING = """
import sys
import torch
from trainlab import DataLoader

if __name__ == "__main__":
    kept = sys.argv[1] == "kept"
    iterator = iter(DataLoader(torch.arange(100), batch_size=2, num_workers=2, persistent_workers=kept))
    print(next(iterator).tolist(), flush=True)
"""

TRAINING = """
import sys
import torch
import trainlab
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Trial(trainlab.Trial):
    def build_model(self):
        return nn.Linear(1, 1)

    def build_optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loader(self, purpose):
        data = TensorDataset(torch.ones(8, 1))
        if purpose != sys.argv[1]:
            return trainlab.DataLoader(data, batch_size=4)
        self.kept = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True)
        return self.kept

    def build_training_data_loader(self):
        return self.loader("training")

    def build_validation_data_loader(self):
        return self.loader("validation")

    def train_batch(self, batch, epoch_idx, batch_idx):
        loss = self.model(batch[0]).mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}

    def evaluate_batch(self, batch, batch_idx):
        return {"loss": self.model(batch[0]).mean()}


if __name__ == "__main__":
    with trainlab.init(run_dir="run", progress=False, device="cpu") as context:
        trial = Trial(context)
        trainlab.Trainer(trial, context).fit(max_length=trainlab.Epoch(2))
    alive = sum(worker.is_alive() for worker in trial.kept._iterator._workers)
    print(alive, "workers", flush=True)
"""


def run(tmp_path: Path, program: str, argument: str) -> str:
    """Run a program to its end, which must come by itself and be a good one; what it printed."""
    script = tmp_path / "program.py"
    script.write_text(program)
    ended = subprocess.run(
        [sys.executable, str(script), argument],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


@pytest.mark.parametrize("workers", ["kept", "ended"])
def test_a_program_ends_in_the_middle_of_a_loader(tmp_path: Path, workers: str) -> None:
    """A script that stops reading a loader with workers ends by itself, and with success."""
    assert run(tmp_path, ITERATING, workers) == "[0, 1]\n"


@pytest.mark.slow
@pytest.mark.parametrize("purpose", ["training", "validation"])
def test_a_program_ends_with_workers_that_torchs_loader_keeps(tmp_path: Path, purpose: str) -> None:
    """A script whose Trial holds a torch loader with persistent workers ends by itself after training."""
    assert run(tmp_path, TRAINING, purpose) == "2 workers\n"
