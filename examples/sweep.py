"""A sweep: one experiment, trained with every combination of some parameters, each in a process of its own.

python examples/sweep.py                 a sweep of six runs, two at once; started again it goes on where it was
python examples/sweep.py train --lr 0.1  one of its runs, by hand
"""

import argparse
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import trainlab
from trainlab import Epoch


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean()


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.01, help="the learning rate")
@trainlab.parameter("hidden", int, default=32, help="neurons of the hidden layer")
@trainlab.parameter("epochs", int, default=5, help="how often to go through the data")
def train(params):
    """Train a small network on digits."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    with trainlab.init() as context:
        trial = trainlab.SupervisedTrial(
            context,
            model=nn.Sequential(nn.Linear(64, params["hidden"]), nn.ReLU(), nn.Linear(params["hidden"], 10)),
            training_set=TensorDataset(images[:1500], labels[:1500]),
            validation_set=TensorDataset(images[1500:], labels[1500:]),
            loss=F.cross_entropy,
            metrics={"accuracy": accuracy},
            optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=params["lr"]),
            batch_size=50,
        )
        return trainlab.Trainer(trial, context).fit(
            max_length=Epoch(params["epochs"]), checkpoint_period=Epoch(1), validation_period=Epoch(1)
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many runs go on at once (default: 2)")
    parser.add_argument("--gpus", type=int, help="how many GPUs each run has (default: all that are there)")
    parser.add_argument("--epochs", type=int, default=5, help="how often to go through the data (default: 5)")
    parser.add_argument("--quick", action="store_true", help="two runs of one epoch")
    args = parser.parse_args()

    if args.quick:
        matrix = trainlab.param_matrix(lr=[0.1, 0.01], epochs=1)
    else:
        matrix = trainlab.param_matrix(lr=[0.1, 0.01, 0.001], hidden=[32, 128], epochs=args.epochs)
    result = trainlab.run_parameter_sweep(train, matrix, args.processes, args.gpus)
    best = max(result, key=lambda run: run.metrics["accuracy"])
    print(f"Best accuracy: {best.metrics['accuracy']:.1%} with lr {best.params['lr']}, in {best.folder}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train.cli(sys.argv[2:])
    else:
        main()
