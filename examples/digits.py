"""Learn to read handwritten digits: more than 95% right after a few seconds on a CPU.

python examples/digits.py                   a new run, in a folder under runs/
python examples/digits.py --run-dir FOLDER  goes on with the run in FOLDER, or begins one there
python examples/digits.py --platform cpu --processes 2  the same on two processes, as under torchrun
python examples/digits.py --platform slurm --nodes 2 --gpus-per-node 4 --wait  as a job of SLURM
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import trainlab
from trainlab import Epoch
from trainlab.launch import Platform, launch


class DigitsTrial(trainlab.Trial):
    """A small convolutional network on the digits that come with scikit-learn (1797 images of 8 × 8 pixels)."""

    def __init__(self, context):
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        data = TensorDataset(images, torch.tensor(digits.target))
        training, test = train_test_split(range(len(data)), test_size=0.2, random_state=0, stratify=digits.target)
        self.training_set = torch.utils.data.Subset(data, training)
        self.test_set = torch.utils.data.Subset(data, test)
        super().__init__(context)

    def build_model(self):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def build_optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.context.get_hparam("lr"))

    def build_training_data_loader(self):
        return trainlab.DataLoader(self.training_set, batch_size=self.context.get_hparam("batch_size"), shuffle=True)

    def build_validation_data_loader(self):
        return trainlab.DataLoader(self.test_set, batch_size=256)

    def train_batch(self, batch, epoch_idx, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}

    def evaluate_batch(self, batch, batch_idx):
        images, labels = batch
        scores = self.model(images)
        return {"loss": F.cross_entropy(scores, labels), "accuracy": (scores.argmax(1) == labels).float().mean()}


def train(args):
    hparams = {"lr": args.lr, "batch_size": args.batch_size}
    with trainlab.init(hparams=hparams, run_dir=args.run_dir) as context:
        trainer = trainlab.Trainer(DigitsTrial(context), context)
        result = trainer.fit(
            max_length=Epoch(args.epochs),
            validation_period=Epoch(1),
            checkpoint_period=Epoch(5),
            metric="accuracy",
            smaller_is_better=False,
            latest_checkpoint=context.latest_checkpoint,
        )
    if context.distributed.is_chief:
        print(f"Test accuracy: {result.metrics['accuracy']:.1%} (best: {result.best_metric:.1%})")
    return result.metrics["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="how often to go through the data (default: 20)")
    parser.add_argument("--quick", dest="epochs", action="store_const", const=2, help="the same as --epochs 2")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (default: 0.002)")
    parser.add_argument("--batch-size", type=int, default=32, help="records in a batch (default: 32)")
    parser.add_argument("--run-dir", help="the run's folder; a run that is there goes on (default: a new one in runs/)")
    where = parser.add_argument_group("where to train", "as trainlab.launch.Platform has it (default: in this process)")
    where.add_argument("--platform", dest="device", choices=["auto", "cpu", "cuda", "mps", "slurm"])
    where.add_argument("--wait", action="store_true", default=None, help="wait for the job of SLURM")
    for name in ("processes", "nodes", "gpus-per-node", "time"):
        where.add_argument(f"--{name}", type=int, metavar="N")
    for name in ("master-addr", "partition", "executor"):
        where.add_argument(f"--{name}")
    args = parser.parse_args()

    options = {name: value for name, value in vars(args).items() if name in Platform.model_fields and value is not None}
    if options:
        # What each rank returned; of a job of SLURM that is not waited for, where to find it.
        print(launch(train, args, platform=Platform(**options)))
    else:
        train(args)


if __name__ == "__main__":
    main()
