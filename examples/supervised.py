"""Train without writing a Trial: SupervisedTrial takes a model, data, a loss and an optimizer.

python examples/supervised.py                   a new run, in a folder under runs/
python examples/supervised.py --run-dir FOLDER  goes on with the run in FOLDER, or begins one there
"""

import argparse
from functools import partial

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import trainlab
from trainlab import Epoch


def load_data():
    """Tell benign tumours from malignant ones by 30 measurements (569 records that come with scikit-learn)."""
    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    scaler = StandardScaler().fit(x_train)
    return (
        TensorDataset(torch.tensor(scaler.transform(inputs), dtype=torch.float32), torch.tensor(labels))
        for inputs, labels in ((x_train, y_train), (x_test, y_test))
    )


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="how often to go through the data (default: 30)")
    parser.add_argument("--quick", dest="epochs", action="store_const", const=2, help="the same as --epochs 2")
    parser.add_argument("--run-dir", help="the run's folder; a run that is there goes on (default: a new one in runs/)")
    args = parser.parse_args()

    with trainlab.init(run_dir=args.run_dir) as context:
        training_set, test_set = load_data()
        trial = trainlab.SupervisedTrial(
            context,
            model=nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2)),
            training_set=training_set,
            validation_set=test_set,
            loss=F.cross_entropy,
            metrics={"accuracy": accuracy},
            optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3),
            lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=10, gamma=0.3),
            batch_size=32,
            clip_norm=1.0,
        )
        result = trainlab.Trainer(trial, context).fit(
            max_length=Epoch(args.epochs),
            validation_period=Epoch(1),
            metric="loss",
            latest_checkpoint=context.latest_checkpoint,
        )
    if context.distributed.is_chief:
        print(f"Test accuracy: {result.metrics['accuracy']:.1%}")


if __name__ == "__main__":
    main()
