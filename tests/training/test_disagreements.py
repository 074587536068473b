"""Ranks that are not given the same: they end at the start, and are told which rank differs in what."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.training import faults
from tests.training.outcomes import outcome
from trainlab import Batch

# What rank 1 is given otherwise than rank 0, and what is named.
OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "the model": ({"options": {"width": 6}}, "parameters that are trained"),
    "a hyperparameter": ({"init": {"hparams": {"lr": 2}}}, "hyperparameters"),
    "the configuration": ({"init": {"exp_conf": {"name": "b"}}}, "experiment configuration"),
    "the data set's length": ({"options": {"records": 65}}, "records in the training data set"),
    "the validation set's length": ({"options": {"validated": 41}}, "records in the validation data set"),
    "the batch size": ({"options": {"batch_size": 16}}, "batch size"),
    "the length": ({"max_length": Batch(10)}, "max_length"),
    "the validation period": ({"validation_period": Batch(7)}, "validation_period"),
    "the checkpoint period": ({"checkpoint_period": Batch(7)}, "checkpoint_period"),
    "the checkpoint policy": ({"checkpoint_policy": "all"}, "checkpoint_policy"),
    "the metric": ({"metric": "loss"}, "metric"),
    "step zero": ({"step_zero_validation": True}, "step_zero_validation"),
    "the seed": ({"init": {"seed": 7}}, "seed"),
    "a reducer": ({"options": {"reducer": "other"}}, "wrapped reducers"),
    "the number of optimizers": ({"options": {"second optimizer": True}}, "parameters that are trained"),
    "another optimizer": ({"options": {"another optimizer": True}}, "optimizer"),
    "a frozen layer": ({"options": {"frozen": True}}, "parameters that are trained"),
    "another dtype": ({"options": {"dtype": "float32"}}, "model"),
    "the learning rate": ({"options": {"lr": 0.2}}, "optimizer"),
    "the way of sharing": ({"init": {"parallel": "fsdp"}}, "parallel"),
    "the accumulation": ({"init": {"aggregation_frequency": 2}}, "aggregation_frequency"),
    "the precision": ({"init": {"precision": "bf16"}}, "precision"),
    "the evaluation": ({"options": {"at once": True}}, "Trial class"),
}


QUICK = (
    "the model",
    "a hyperparameter",
    "the data set's length",
    "the validation set's length",
    "the length",
    "the validation period",
    "step zero",
    "the seed",
    "a reducer",
    "the number of optimizers",
    "the learning rate",
    "the way of sharing",
)


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in QUICK else pytest.mark.slow) for what in OTHERWISE]
)
def test_a_rank_that_is_given_something_else(tmp_path: Path, what: str) -> None:
    """A rank with other settings than the others ends all before anything is trained, and both are named."""
    how, named = OTHERWISE[what]
    found = outcome(tmp_path / "run", 1, how, function=faults.train_other)
    assert all(found.statuses), found.outputs
    (told,) = re.findall(r"^trainlab\.errors\.DisagreementError: .*$", found.outputs[1], re.MULTILINE)
    assert re.search(rf"rank 1 is not given what rank 0 is. They differ in: [\w ]*{re.escape(named)}", told), told
    found.check_failed(1, told, "")
    assert found.checkpoints() == []


def test_ranks_that_are_given_the_same(tmp_path: Path) -> None:
    """Ranks that are given the same train."""
    found = outcome(tmp_path / "run", {"init": {"hparams": {"lr": 2}}}, function=faults.train_with)
    assert found.statuses == [0, 0]
