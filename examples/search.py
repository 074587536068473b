"""A search: Optuna chooses the parameters of an experiment, and ends the trials that are behind.

python examples/search.py                 a search of 20 trials; started again it goes on where it was
python examples/search.py train --lr 0.1  one training by hand
trainlab search examples/search.py --metric accuracy --direction maximize --trials 20 -- --epochs 4
"""

import argparse
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import trainlab
from trainlab import Epoch, Search


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean()


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.01, search=Search(1e-4, 1.0, log=True), help="the learning rate")
@trainlab.parameter("hidden", int, default=32, search=Search(8, 128, log=True), help="neurons of the hidden layer")
@trainlab.parameter("activation", str, default="relu", search=Search(choices=["relu", "tanh"]), help="relu or tanh")
@trainlab.parameter("epochs", int, default=8, help="how often to go through the data")
def train(params):
    """Train a small network on digits."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[params["activation"]]
    with trainlab.init() as context:
        trial = trainlab.SupervisedTrial(
            context,
            model=nn.Sequential(nn.Linear(64, params["hidden"]), activation(), nn.Linear(params["hidden"], 10)),
            training_set=TensorDataset(images[:1500], labels[:1500]),
            validation_set=TensorDataset(images[1500:], labels[1500:]),
            loss=F.cross_entropy,
            metrics={"accuracy": accuracy},
            optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=params["lr"]),
            batch_size=50,
        )
        # A search looks at each validation, and nothing here says so.
        return trainlab.Trainer(trial, context).fit(max_length=Epoch(params["epochs"]), validation_period=Epoch(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="how many trials (default: 20)")
    parser.add_argument("--processes", type=int, default=2, help="how many trials go on at once (default: 2)")
    parser.add_argument("--epochs", type=int, default=8, help="how long a trial trains that is not pruned (default: 8)")
    args = parser.parse_args()
    result = trainlab.search(
        train,
        metric="accuracy",
        direction="maximize",
        trials=args.trials,
        params={"epochs": args.epochs},
        pruner="asha",
        max_length=Epoch(args.epochs),
        max_num_processes=args.processes,
    )
    print(f"Best accuracy: {result.best_value:.1%} with {result.best_params}, in {result.best_run}")
    print("What matters: " + ", ".join(f"{name} {share:.0%}" for name, share in result.importances.items()))
    print(f"Once more: python examples/search.py train --params-file {result.params_file}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train.cli(sys.argv[2:])
    else:
        main()
