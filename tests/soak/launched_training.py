"""The script that the soak of launches trains: ``launched_training.py FOLDER BATCHES SECONDS``."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import trainlab
from trainlab import Batch


class Trained(trainlab.Trial):
    """A small classifier with what makes a resume hard: shuffling, dropout, Adam, accumulation."""

    def __init__(self, context):
        self.folder, self.seconds = Path(sys.argv[1]), float(sys.argv[3])
        self.has_begun = False
        super().__init__(context)

    def build_model(self):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    def build_optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    def build_training_data_loader(self):
        generator = torch.Generator().manual_seed(5)
        records = torch.randn(101, 8, generator=generator)
        return trainlab.DataLoader(TensorDataset(records, records.sum(1).long() % 3), batch_size=8, shuffle=True)

    def train_batch(self, batch, epoch_idx, batch_idx):
        if not self.has_begun:
            self.has_begun = True
            mark(self.folder, "training", batch=batch_idx)
        time.sleep(self.seconds)  # so that there is time to be killed in
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}


def mark(folder, what, **more):
    """Tell the soak where this process is."""
    line = {"what": what, "pid": os.getpid(), "rank": os.environ.get("RANK", "0"), "at": time.time(), **more}
    with (folder / "marks.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main():
    with trainlab.init(aggregation_frequency=2, progress=False, seed=3, device="cpu") as context:
        trial = Trained(context)
        trainlab.Trainer(trial, context).fit(
            max_length=Batch(int(sys.argv[2])), checkpoint_period=Batch(10), reporting_period=Batch(5)
        )
        weights = b"".join(tensor.numpy().tobytes() for tensor in trial.model.state_dict().values())
        if context.distributed.is_chief:
            mark(
                Path(sys.argv[1]),
                "end",
                weights=hashlib.sha256(weights).hexdigest(),
                run=str(context.session.folder.path),
            )


if __name__ == "__main__":
    main()
