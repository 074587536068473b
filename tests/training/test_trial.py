"""A Trial is checked before anything is trained."""

from typing import Any

import pytest
import torch
from torch import nn

import trainlab
from tests.training.trials import HandWrittenTrial, LineTrial
from trainlab import Batch
from trainlab.errors import InvalidTypeError, TrialDefinitionError


def test_declarative_hooks_are_wrapped(open_run: Any) -> None:
    """What build_model and build_optimizer return is wrapped and set on the Trial."""
    context = open_run()
    trial = LineTrial(context)
    assert context.models == [trial.model]
    assert context.optimizers == [trial.optimizer]
    assert trial.lr_scheduler is None


def test_dicts_of_models_and_optimizers_keep_their_names(open_run: Any) -> None:
    """Several models and optimizers are known by the names that the hooks gave."""

    class Two(LineTrial):
        def build_model(self) -> Any:
            return {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}

        def build_optimizer(self, model: Any) -> Any:
            return {name: torch.optim.SGD(m.parameters(), lr=0.1) for name, m in model.items()}

        def build_lr_scheduler(self, optimizer: Any) -> Any:
            return {"a": torch.optim.lr_scheduler.StepLR(optimizer["a"], 1)}

    context = open_run()
    trial = Two(context)
    assert context.model_names == ["a", "b"] and list(trial.models) == ["a", "b"]
    assert list(context.wrapped_optimizers) == ["a", "b"]
    assert list(trial.lr_schedulers) == ["a"]


def test_hand_written_init_trains(open_run: Any) -> None:
    """A Trial that wraps everything in its own __init__ trains and validates."""
    context = open_run()
    result = trainlab.Trainer(HandWrittenTrial(context), context).fit(max_length=Batch(3))
    assert result.progress.batches_trained == 3
    assert set(result.metrics) == {"loss"}


def without(*names: str) -> type[LineTrial]:
    """Make a LineTrial that lacks some hooks."""
    return type("Lacking", (LineTrial,), {name: getattr(trainlab.Trial, name) for name in names})


@pytest.mark.parametrize(
    ("trial_class", "arguments", "says"),
    [
        (without("train_batch"), {}, "train_batch"),
        (without("build_training_data_loader"), {}, "build_training_data_loader"),
        (without("build_validation_data_loader"), {}, "build_validation_data_loader"),
        (
            without("evaluate_batch"),
            {"validation_period": Batch(1)},
            "neither evaluate_batch nor evaluate_full_dataset",
        ),
        (without("evaluate_batch"), {"metric": "loss"}, "neither evaluate_batch nor evaluate_full_dataset"),
        (type("Both", (LineTrial,), {"evaluate_full_dataset": lambda self, data_loader: {}}), {}, "both"),
        (
            type("Misspelt", (without("evaluate_batch"),), {"eval_batch": lambda self: 0}),
            {},
            "Did you mean evaluate_batch",
        ),
        (type("Misspelt", (LineTrial,), {"build_callback": lambda self: {}}), {}, None),
        (
            type("Misspelt", (LineTrial,), {"evaluation_reducers": lambda self: 0}),
            {},
            "Did you mean evaluation_reducer",
        ),
        (type("Wrong", (LineTrial,), {"train_batch": lambda self, batch, epoch, idx: 0}), {}, "train_batch"),
        (type("Wrong", (LineTrial,), {"evaluate_batch": lambda self, data: {}}), {}, "evaluate_batch"),
    ],
)
def test_wrong_trials_are_refused_before_training(
    open_run: Any, trial_class: Any, arguments: dict[str, Any], says: str | None
) -> None:
    """A missing, doubled, misspelt or wrongly signed hook is an error before the first batch that names the fix."""
    context = open_run()
    trial = trial_class(context)
    if says is None:
        trainlab.Trainer(trial, context)
        return
    with pytest.raises(TrialDefinitionError, match=says):
        trainlab.Trainer(trial, context).fit(max_length=Batch(1), **arguments)
    assert trial.seen == []


def test_old_evaluate_batch_is_accepted(open_run: Any) -> None:
    """evaluate_batch without batch_idx, as older code has it, is called without it."""

    class Old(LineTrial):
        def evaluate_batch(self, batch: Any) -> dict[str, Any]:  # type: ignore[override]
            return {"n": float(len(batch[0]))}

    context = open_run()
    assert trainlab.Trainer(Old(context), context).fit(max_length=Batch(1)).metrics == {"n": 16.0}


def test_own_init_without_wrapping_says_what_is_missing(open_run: Any) -> None:
    """A Trial that wraps nothing is refused, with the fix for a forgotten super().__init__ named."""

    class Forgetful(LineTrial):
        def __init__(self, context: Any) -> None:
            self.context = context

    context = open_run()
    with pytest.raises(TrialDefinitionError, match=r"super\(\).__init__"):
        trainlab.Trainer(Forgetful(context), context)


def test_trainer_takes_a_trial_and_its_context(open_run: Any) -> None:
    """A class in place of an instance, and another run's context, are refused."""
    context = open_run()
    with pytest.raises(InvalidTypeError, match="instance"):
        trainlab.Trainer(LineTrial, context)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="another context"):
        trainlab.Trainer(LineTrial(context), open_run())


@pytest.mark.parametrize("returned", [None, "loss", 3.0, [1.0]])
def test_train_batch_returns_metrics_or_a_loss(open_run: Any, returned: Any) -> None:
    """Anything but a dict or a tensor from train_batch is an error that shows it."""

    class Odd(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            return returned

    context = open_run()
    with pytest.raises(ValueError, match="train_batch"):
        trainlab.Trainer(Odd(context), context).fit(max_length=Batch(1))
