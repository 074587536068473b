"""A program with several experiments: typed parameters, a command line, a folder for each run.

python examples/experiments.py -h                                    tells the experiments
python examples/experiments.py train -h                              tells the parameters of one
python examples/experiments.py train --epochs 5 --optimizer.kind sgd
python examples/experiments.py train --params-file runs/train/.../params.yaml    the same run again
python examples/experiments.py baseline linear softmax --epochs 20

What needs torch is imported where it is used: so --help answers at once.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveInt

import trainlab
from trainlab import Search


class Adam(BaseModel):
    """The step is scaled for each weight by the size of its gradients."""

    kind: Literal["adam"] = "adam"
    lr: Annotated[float, Search(1e-4, 1e-1, log=True)] = 3e-3
    """how far a step goes"""


class SGD(BaseModel):
    """A step down the gradient."""

    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Search(1e-3, 1.0, log=True)] = 0.1
    """how far a step goes"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """how much of the last step is kept"""


class Config(BaseModel):
    """The parameters of `train`."""

    epochs: PositiveInt = 10
    """how often to go through the data"""
    hidden: list[PositiveInt] = [64]
    """the sizes of the hidden layers"""
    batch_size: Annotated[PositiveInt, Search(16, 128)] = 32
    optimizer: Adam | SGD = Field(Adam(), discriminator="kind")


def load_data():
    """Return 1,797 images of handwritten digits, 64 numbers each, and what they show; for training and for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    return train_test_split((images / 16).astype("float32"), labels, random_state=0, stratify=labels)


@trainlab.experiment
def train(config: Config):
    """Train a small network with the Trainer."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    x_train, x_test, y_train, y_test = map(torch.tensor, load_data())
    layers, size = [], 64
    with trainlab.init() as context:  # in the run's folder, with the run's seed
        for width in config.hidden:
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        options = config.optimizer.model_dump(exclude={"kind"})
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        trial = trainlab.SupervisedTrial(
            context,
            model=nn.Sequential(*layers, nn.Linear(size, 10)),
            training_set=TensorDataset(x_train, y_train),
            validation_set=TensorDataset(x_test, y_test),
            loss=nn.functional.cross_entropy,
            metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
            optimizer=lambda model: kinds[config.optimizer.kind](model.parameters(), **options),
            batch_size=config.batch_size,
        )
        result = trainlab.Trainer(trial, context).fit(
            max_length=trainlab.Epoch(config.epochs),
            validation_period=trainlab.Epoch(1),
            metric="accuracy",
            smaller_is_better=False,
            latest_checkpoint=context.latest_checkpoint,
        )
    print(f"Test accuracy: {result.metrics['accuracy']:.1%}")
    return result


@trainlab.parameter("fraction", float, default=1.0, help="how much of the training data is used")
@trainlab.group
def baseline():
    """What a network has to be better than; decorators declare the parameters."""


@baseline.experiment
@trainlab.parameter("distance", default="euclidean", allowed_values=["euclidean", "manhattan"], help="what is near")
def centroid(params):
    """Take the digit whose mean image is the nearest."""
    import numpy as np

    x_train, x_test, y_train, y_test = load_data()
    count = max(100, int(len(x_train) * params["fraction"]))
    means = np.stack([x_train[:count][y_train[:count] == digit].mean(0) for digit in range(10)])
    power = {"euclidean": 2, "manhattan": 1}[params["distance"]]
    distances = (abs(x_test[:, None] - means) ** power).sum(2)
    return told(distances.argmin(1) == y_test)


@baseline.group
@trainlab.param_group(
    "fitting",
    "How the weights are found.",
    trainlab.parameter("epochs", int, default=20, help="how often to go through the data"),
    trainlab.parameter("lr", float, default=0.5, envvar="LR", help="how far a step goes"),
)
def linear():
    """Models without a hidden layer."""


@linear.experiment
@trainlab.parameter("bias", is_flag=True, default=True, help="learn a bias")
def softmax(params, context):
    """Fit a linear model, in a loop of one's own."""
    import torch

    x_train, x_test, y_train, y_test = map(torch.tensor, load_data())
    count = max(100, int(len(x_train) * params["fraction"]))
    context.model = torch.nn.Linear(64, 10, bias=params["bias"])
    context.optimizer = torch.optim.SGD(context.model.parameters(), lr=params["lr"], momentum=0.9)
    context.autotransform()  # to a GPU, if there is one and --no-cuda is not given
    for _ in trainlab.iterate(range(params["epochs"])):
        loss = torch.nn.functional.cross_entropy(context.model(x_train[:count]), y_train[:count])
        context.optimizer.zero_grad()
        loss.backward()
        context.optimizer.step()
    return told((context.model(x_test).argmax(1) == y_test).numpy())


def told(is_right):
    accuracy = float(is_right.mean())
    print(f"Test accuracy: {accuracy:.1%}")
    return {"accuracy": accuracy}


if __name__ == "__main__":
    trainlab.global_entrypoint()
