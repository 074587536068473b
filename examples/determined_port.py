"""A script for Determined's Trainer that runs on trainlab: its import line is changed, and what is marked "new".

python examples/determined_port.py                   a new run, in a folder under runs/
python examples/determined_port.py --run-dir FOLDER  goes on with the run in FOLDER, or begins one there
"""

import argparse
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from trainlab.compat import determined as pytorch  # was: from determined import pytorch


class DigitsDataset(torch.utils.data.Dataset):
    """Images of handwritten digits, 8 x 8 pixels: every fifth one is for testing."""

    def __init__(self, train: bool, noise: float = 0.0) -> None:
        digits = load_digits()
        chosen = (np.arange(len(digits.target)) % 5 != 0) == train
        self.images = (digits.images[chosen] / 16).astype(np.float32)
        self.labels = digits.target[chosen]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index] + self.noise * np.random.randn(8, 8).astype(np.float32)
        return image[None], self.labels[index]


class MacroRecall(pytorch.MetricReducer):
    """The mean over the ten digits of how many of each are recognised."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right = np.zeros(10)
        self.total = np.zeros(10)

    def update(self, labels: torch.Tensor, predictions: torch.Tensor) -> None:
        labels, predictions = labels.cpu().numpy(), predictions.cpu().numpy()
        np.add.at(self.total, labels, 1)
        np.add.at(self.right, labels, labels == predictions)

    def per_slot_reduce(self) -> Any:
        return self.right, self.total

    def cross_slot_reduce(self, per_slot_metrics: list[Any]) -> Any:
        right, total = (np.sum(counts, axis=0) for counts in zip(*per_slot_metrics, strict=True))
        return float(np.mean(right / np.maximum(total, 1)))


class BestAccuracy(pytorch.PyTorchCallback):
    """Remembers the best accuracy, over interruptions too, and tells of it at the end."""

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        self.context = context
        self.best = 0.0

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self.best = max(self.best, float(metrics["accuracy"]))

    def on_trial_shutdown(self) -> None:
        if self.context.distributed.get_rank() == 0:
            print(f"Best test accuracy: {self.best:.1%}")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class DigitsTrial(pytorch.PyTorchTrial):
    """A small convolutional network; every two batches' gradients make one step."""

    def __init__(self, context: pytorch.PyTorchTrialContext) -> None:
        self.context = context
        self.batch_size = context.get_per_slot_batch_size()
        self.model = context.wrap_model(self.build_model(context.get_hparam("hidden")))
        self.optimizer = context.wrap_optimizer(
            torch.optim.SGD(self.model.parameters(), lr=context.get_hparam("lr"), momentum=0.9, nesterov=True)
        )
        self.scheduler = context.wrap_lr_scheduler(
            torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=context.get_hparam("gamma")),
            step_mode=pytorch.LRScheduler.StepMode.STEP_EVERY_EPOCH,
        )
        self.recall = context.wrap_reducer(MacroRecall(), name="macro_recall", for_training=False)
        self.loss = nn.CrossEntropyLoss()

    def build_model(self, hidden: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, hidden),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(hidden, 10),
        )

    def build_training_data_loader(self) -> pytorch.DataLoader:
        return pytorch.DataLoader(DigitsDataset(train=True, noise=0.05), batch_size=self.batch_size, shuffle=True)

    def build_validation_data_loader(self) -> pytorch.DataLoader:
        return pytorch.DataLoader(DigitsDataset(train=False), batch_size=self.batch_size)

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        return {"best_accuracy": BestAccuracy(self.context)}

    def train_batch(self, batch: pytorch.TorchData, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        images, labels = batch
        loss = self.loss(self.model(images), labels)
        self.context.backward(loss)
        self.context.step_optimizer(
            self.optimizer, clip_grads=lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        )
        return {"loss": loss}

    def evaluation_reducer(self) -> dict[str, pytorch.Reducer]:
        return {"validation_loss": pytorch.Reducer.AVG, "accuracy": pytorch.Reducer.AVG}

    def evaluate_batch(self, batch: pytorch.TorchData, batch_idx: int) -> dict[str, Any]:
        images, labels = batch
        output = self.model(images)
        predictions = output.argmax(dim=1)
        self.recall.update(labels, predictions)
        accuracy = (predictions == labels).float().mean()
        return {"validation_loss": self.loss(output, labels).item(), "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="how often to go through the data (default: 15)")
    parser.add_argument("--quick", dest="epochs", action="store_const", const=2, help="the same as --epochs 2")
    parser.add_argument("--run-dir", help="the run's folder; a run that is there goes on (default: a new one in runs/)")
    args = parser.parse_args()

    hparams = {"global_batch_size": 32, "lr": 0.05, "gamma": 0.9, "hidden": 64}
    with pytorch.init(
        hparams=hparams,
        exp_conf={"name": "digits"},
        aggregation_frequency=2,
        run_dir=args.run_dir,  # new: names the run's folder
    ) as train_context:
        trial = DigitsTrial(train_context)
        trainer = pytorch.Trainer(trial, train_context)
        trainer.fit(
            max_length=pytorch.Epoch(args.epochs),
            validation_period=pytorch.Epoch(1),
            checkpoint_period=pytorch.Batch(100),
            checkpoint_policy="all",
            reporting_period=pytorch.Batch(20),
            latest_checkpoint=train_context.latest_checkpoint,  # new: was info.latest_checkpoint, from the cluster
        )


if __name__ == "__main__":
    main()
