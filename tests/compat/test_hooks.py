"""The hooks of a Trial."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.compat.trials import OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch


class Plain(pytorch.PyTorchTrial):
    """Neither of the two evaluation hooks."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.model = context.wrap_model(nn.Linear(1, 1))
        self.optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=0.1))

    data, records, batch_size = OneWeightTrial.data, 8, 4
    build_training_data_loader = OneWeightTrial.build_training_data_loader
    build_validation_data_loader = OneWeightTrial.build_validation_data_loader

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        return {"loss": 0.0}


def test_both_evaluation_hooks_are_an_error(open_run: Open) -> None:
    """A Trial with both hooks is told to keep one."""

    class Both(OneWeightTrial):
        def evaluate_full_dataset(self, data_loader: Any) -> Any:
            return {}

    context = open_run()
    with pytest.raises(TypeError, match="Keep one"):
        fit(context, Both(context), max_length=Batch(1))


def test_a_validation_without_a_hook_is_an_error(open_run: Open) -> None:
    """A validation that is asked for, of a Trial that cannot validate, is an error before training."""
    context = open_run()
    with pytest.raises(TypeError, match="evaluate_batch"):
        pytorch.Trainer(Plain(context), context).fit(max_length=Batch(1), validation_period=Batch(1))


@pytest.mark.parametrize("missing", ["model", "optimizer"])
def test_nothing_wrapped_is_an_error(open_run: Open, missing: str) -> None:
    """A Trial without a wrapped model, or without a wrapped optimizer, is an error before training."""

    class Bare(Plain):
        def __init__(self, context: Any) -> None:
            self.context = context
            if missing == "optimizer":
                context.wrap_model(nn.Linear(1, 1))

    context = open_run()
    with pytest.raises(TypeError, match=f"wrap_{missing}"):
        pytorch.Trainer(Bare(context), context).fit(max_length=Batch(1))


def test_evaluate_batch_without_batch_idx(open_run: Open) -> None:
    """The old form evaluate_batch(self, batch) is called as it is."""

    class Old(OneWeightTrial):
        def evaluate_batch(self, batch: Any) -> Any:  # type: ignore[override]
            return {"records": float(len(batch[0]))}

    context = open_run()
    _, counter = fit(context, Old(context), max_length=Batch(1))
    assert counter.given("on_validation_end") == [{"records": 4.0}]


def test_hooks_are_called_by_keyword(open_run: Open) -> None:
    """The names of the parameters count, not their order."""
    given = []

    class ByKeyword(OneWeightTrial):
        def train_batch(self, *, batch_idx: int, epoch_idx: int, batch: Any) -> Any:  # type: ignore[override]
            given.append((epoch_idx, batch_idx))
            return super().train_batch(batch, epoch_idx, batch_idx)

        def evaluate_batch(self, *, batch_idx: int, batch: Any) -> Any:  # type: ignore[override]
            given.append(batch_idx)
            return super().evaluate_batch(batch, batch_idx)

    context = open_run()
    fit(context, ByKeyword(context), max_length=Batch(1))
    assert given == [(0, 0), *range(16)]


def test_modes_and_gradients(open_run: Open) -> None:
    """Models train with gradients in train_batch and are evaluated without; every window begins in training mode."""
    modes = []

    class Moody(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            modes.append((self.model.training, torch.is_grad_enabled()))
            metrics = super().train_batch(batch, epoch_idx, batch_idx)
            self.model.eval()
            return metrics

        def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 0:
                modes.append((self.model.training, torch.is_grad_enabled()))
            return super().evaluate_batch(batch, batch_idx)

    context = open_run()
    fit(context, Moody(context), max_length=Batch(2), validation_period=Batch(1))
    assert modes == [(True, True), (False, False)] * 2


def test_names_that_are_no_hooks_are_free(open_run: Open) -> None:
    """A Trial may have methods of its own named build_model or build_optimizers, and call super().__init__."""

    class Helping(Plain):
        def __init__(self, context: Any, width: int) -> None:
            pytorch.PyTorchTrial.__init__(self, context)
            self.model = context.wrap_model(self.build_model(width))
            (self.optimizer,) = self.build_optimizers()

        def build_model(self, width: int) -> nn.Module:
            return nn.Linear(1, width)

        def build_optimizers(self) -> Any:
            return [self.context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=0.1))]

        def build_lr_schedulers(self) -> Any:
            return []

    context = open_run()
    result = pytorch.Trainer(Helping(context, width=3), context).fit(max_length=Batch(2))
    assert result.progress.batches_trained == 2
    with pytest.raises(TypeError, match="wrap it"):
        Plain(open_run()).build_optimizer()


def test_the_records_of_a_batch_may_be_counted_by_the_trial(open_run: Open) -> None:
    """get_batch_length may be overridden, for batches whose length cannot be read."""

    class Counting(OneWeightTrial):
        def get_batch_length(self, batch: Any) -> int:
            return 10

    context = open_run()
    fit(context, Counting(context), max_length=Batch(3))
    assert context.progress.records_trained == 30
