"""SupervisedTrial: parts are enough to train."""

from typing import Any

import pytest
import torch
from torch import nn

import trainlab
from tests.training.trials import line
from trainlab import Batch, Epoch
from trainlab.errors import InvalidTypeError, InvalidValueError


def parts(**changed: Any) -> dict[str, Any]:
    """Give the parts of a small regression."""
    return {
        "model": nn.Linear(1, 1),
        "training_set": line(),
        "validation_set": line(40),
        "loss": nn.functional.mse_loss,
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.1),
        "batch_size": 8,
        **changed,
    }


def test_parts_are_enough(open_run: Any) -> None:
    """A model, data sets, a loss, an optimizer and a batch size train to a small loss, metrics included."""
    context = open_run()
    trial = trainlab.SupervisedTrial(
        context,
        **parts(
            metrics={"distance": nn.functional.l1_loss}, lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1)
        ),
    )
    result = trainlab.Trainer(trial, context).fit(max_length=Epoch(20), metric="distance")
    assert set(result.metrics) == {"loss", "distance"} and result.metrics["loss"] < 0.5
    assert result.best_metric == result.metrics["distance"]


def test_without_validation_set_nothing_is_validated(open_run: Any) -> None:
    """Without a validation set training works, and asking for a validation is an error that says why."""
    context = open_run()
    trial = trainlab.SupervisedTrial(context, **parts(validation_set=None))
    assert trainlab.Trainer(trial, context).fit(max_length=Batch(3)).metrics == {}
    with pytest.raises(TypeError, match="no validation data"):
        trainlab.Trainer(trial, context).fit(max_length=Batch(6), validation_period=Batch(1))


def test_clip_norm_bounds_the_step(open_run: Any) -> None:
    """clip_norm bounds the norm of all gradients together: with SGD a step is no longer than rate times norm."""
    context = open_run()
    model = nn.Linear(1, 1)
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    trial = trainlab.SupervisedTrial(
        context, **parts(model=model, clip_norm=1e-3, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1.0))
    )
    trainlab.Trainer(trial, context).fit(max_length=Batch(1))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_wrong_parts_are_refused(open_run: Any) -> None:
    """An optimizer in place of a function that makes one, and metrics without data for them, are errors."""
    context = open_run()
    model = nn.Linear(1, 1)
    with pytest.raises(InvalidTypeError, match="optimizer must be a function"):
        trainlab.SupervisedTrial(context, **parts(optimizer=torch.optim.SGD(model.parameters(), lr=0.1)))
    with pytest.raises(InvalidValueError, match="validation_set"):
        trainlab.SupervisedTrial(context, **parts(validation_set=None, metrics={"distance": nn.functional.l1_loss}))
