"""What a Trial asks its context."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.compat.trials import OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch, Epoch


def test_init_needs_nothing_and_closes_itself() -> None:
    """Every argument of init may be left out, and it is a context manager that gives the context."""
    with pytorch.init() as context:
        assert isinstance(context, pytorch.PyTorchTrialContext)
    with pytest.raises(TypeError):
        pytorch.init({"lr": 1})  # type: ignore[misc]


def test_what_is_wrapped_is_listed_in_order(open_run: Open) -> None:
    """models, optimizers and lr_schedulers hold what was wrapped, in order, also several of each."""
    context = open_run()
    models = [context.wrap_model(nn.Linear(1, 1)) for _ in range(2)]
    optimizers = [context.wrap_optimizer(torch.optim.SGD(m.parameters(), lr=0.1)) for m in models]
    mode = pytorch.LRScheduler.StepMode.STEP_EVERY_EPOCH
    schedulers = [context.wrap_lr_scheduler(torch.optim.lr_scheduler.ConstantLR(o), step_mode=mode) for o in optimizers]
    assert all(a is b for a, b in zip(context.models, models, strict=True))
    assert all(a is b for a, b in zip(context.optimizers, optimizers, strict=True))
    assert [wrapped.get_last_lr() for wrapped in context.lr_schedulers] == [s.get_last_lr() for s in schedulers]


def test_an_optimizer_may_never_be_stepped(open_run: Open) -> None:
    """A second model whose optimizer no batch steps is trained around and saved, and a subclass may add it."""

    class WithSpare(OneWeightTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            self.model = context.wrap_model(nn.Linear(1, 1, bias=False))
            context.wrap_optimizer(torch.optim.Adam(self.model.parameters()))

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            loss = self.context.models[0](batch[0]).mean()
            self.context.backward(loss)
            self.context.step_optimizer(self.context.optimizers[0])
            return loss

    context = open_run()
    _, counter = fit(context, WithSpare(context), max_length=Batch(3))
    assert len(context.models) == 2
    assert list(counter.given("on_training_workload_end")[0][0]) == ["batches", "epochs", "loss"]


ASKED = ("is_epoch_start", "is_epoch_end", "current_train_epoch", "current_train_batch")


@pytest.mark.parametrize("asked", ASKED)
def test_where_the_run_stands_is_an_error_before_training(open_run: Open, asked: str) -> None:
    """Before training there is no answer, rather than a wrong one."""
    with pytest.raises(RuntimeError, match="before training"):
        getattr(open_run(), asked)()


def test_where_the_run_stands(open_run: Open) -> None:
    """In train_batch the context knows the first and the last batch of an epoch, and both indices."""
    answers = []

    class Asking(OneWeightTrial):
        records = 12

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            answers.append(tuple(getattr(self.context, asked)() for asked in ASKED))
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run()
    fit(context, Asking(context), max_length=Epoch(2))
    assert answers == [(i % 3 == 0, i % 3 == 2, i // 3, i) for i in range(6)]
    assert context.get_initial_batch() == 0


def test_the_initial_batch_of_a_resumed_run(open_run: Open) -> None:
    """get_initial_batch tells how many batches were trained before this fit."""
    _, counter = fit(open_run(), max_length=Batch(3))
    context = open_run()
    fit(context, max_length=Batch(4), latest_checkpoint=counter.given("on_checkpoint_upload_end")[0])
    assert context.get_initial_batch() == 3


def test_batch_sizes_come_from_the_hyperparameters(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    """On one process both sizes are global_batch_size, and reading that as a hyperparameter is answered and warned."""
    context = open_run(hparams={"global_batch_size": 7})
    assert context.get_global_batch_size() == context.get_per_slot_batch_size() == 7
    assert caplog.messages == []
    assert context.get_hparam("global_batch_size") == 7
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("size", ["1", 32.0, None, [4], 0])
def test_a_batch_size_that_is_none_is_an_error(open_run: Open, size: Any) -> None:
    """A batch size that is no int, or suffices for no process, is an error when it is asked for."""
    context = open_run(hparams={"global_batch_size": size})
    with pytest.raises((ValueError, TypeError), match="global_batch_size"):
        context.get_per_slot_batch_size()


@pytest.mark.parametrize(
    "ask",
    [
        lambda context: context.get_hparam("unknown"),
        lambda context: context.get_global_batch_size(),
        lambda context: context.get_per_slot_batch_size(),
        lambda context: context.get_experiment_config(),
        lambda context: context.get_data_config(),
    ],
)
@pytest.mark.parametrize("hparams", [None, {"lr": 1}])
def test_what_was_not_given_is_a_value_error(open_run: Open, ask: Any, hparams: Any) -> None:
    """Hyperparameters and configuration that nobody gave are a ValueError."""
    with pytest.raises(ValueError):
        ask(open_run(hparams=hparams))


def test_configuration_is_given_back(open_run: Open) -> None:
    """Hyperparameters, the experiment's configuration and its part "data" come back as given."""
    context = open_run(hparams={"lr": 0.1, "nested": {"a": [1]}}, exp_conf={"data": {"url": "x"}, "name": "y"})
    assert context.get_hparams() == {"lr": 0.1, "nested": {"a": [1]}} and context.get_hparam("lr") == 0.1
    assert context.get_experiment_config()["name"] == "y" and context.get_data_config() == {"url": "x"}
    assert open_run(exp_conf={}).get_data_config() == {}


def test_there_is_always_a_seed(open_run: Open) -> None:
    """get_trial_seed answers outside a cluster, too."""
    assert isinstance(open_run().get_trial_seed(), int)


@pytest.mark.parametrize("call", ["set_stop_requested", "set_enable_tensorboard_logging"])
def test_switches_take_only_bools(open_run: Open, call: str) -> None:
    """A switch that is set to something else is an error."""
    with pytest.raises(TypeError, match="bool"):
        getattr(open_run(), call)(1)


def test_to_device_takes_whatever_batches_are_made_of(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Nested batches come back in the same structure, arrays as tensors, other things as they are with one warning."""
    context = open_run()
    batch = {"a": [torch.ones(2), np.ones(3)], "b": ("text", np.array(["x"]), 4, np.ones(2, np.uint8), "more")}
    moved = context.to_device(batch)
    assert torch.is_tensor(moved["a"][1]) and moved["b"][3].dtype is torch.uint8
    assert moved["b"][0] == "text" and moved["b"][1] is batch["b"][1] and moved["b"][2] == 4
    context.to_device("again")
    warned = [message for message in caplog.messages if "not able to move data" in message]
    assert len(warned) == 3


def test_the_function_to_device(caplog: pytest.LogCaptureFixture) -> None:
    """pytorch.to_device moves a batch for code outside a Trial, and warns of each type once if it is told which."""
    warned: set[type] = set()
    for _ in range(2):
        moved = pytorch.to_device([np.ones(2), "text"], torch.device("cpu"), warned)
        assert torch.is_tensor(moved[0]) and moved[1] == "text"
    assert warned == {str} and len(caplog.messages) == 1


@pytest.mark.parametrize(("automatic", "kind"), [(True, torch.Tensor), (False, np.ndarray)])
def test_batches_are_moved_unless_told_not_to(open_run: Open, automatic: bool, kind: type) -> None:
    """Arrays reach train_batch and evaluate_batch as tensors; after disable_auto_to_device as they are."""
    kinds = set()

    class OfArrays(OneWeightTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            if not automatic:
                context.experimental.disable_auto_to_device()

        def build_training_data_loader(self) -> Any:
            return pytorch.DataLoader(self.data(), batch_size=4, collate_fn=lambda records: np.ones((4, 1), np.float32))

        build_validation_data_loader = build_training_data_loader

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            kinds.add(type(batch))
            return {"loss": 0.0}

        def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
            kinds.add(type(batch))
            return {"loss": 0.0}

    context = open_run()
    fit(context, OfArrays(context), max_length=Batch(2))
    assert kinds == {kind}


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        (torch.ones(3, 2), 3),
        (np.ones(4), 4),
        ({"a": torch.ones(5), "b": torch.ones(2)}, 5),
        ([torch.ones(6), 1], 6),
        ((np.ones(7),), 7),
        ({"words": ["a", "b"], "label": torch.ones(2)}, 2),
    ],
)
def test_data_length(batch: Any, length: int) -> None:
    """The records of a batch are counted by its first tensor, array or list."""
    assert pytorch.data_length(batch) == length


@pytest.mark.parametrize(
    ("batch", "error"),
    [({}, ValueError), ([], ValueError), ((), ValueError), (3, TypeError), ("ab", TypeError), ([1], TypeError)],
)
def test_data_length_of_what_has_none(batch: Any, error: type[Exception]) -> None:
    """A batch without a length is an error that names get_batch_length."""
    with pytest.raises(error, match="get_batch_length"):
        pytorch.data_length(batch)


def test_batches_of_text_can_be_trained(open_run: Open) -> None:
    """A batch that begins with a list of strings is counted and handed over as it is."""

    class OfText(OneWeightTrial):
        def build_training_data_loader(self) -> Any:
            collate = lambda records: {"words": [str(r[2]) for r in records], "x": torch.ones(len(records), 1)}  # noqa: E731
            return pytorch.DataLoader(self.data(), batch_size=4, collate_fn=collate)

        build_validation_data_loader = build_training_data_loader

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            assert all(isinstance(word, str) for word in batch["words"])
            return {"loss": 1.0}

        def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
            return {"words": float(len(batch["words"]))}

    context = open_run()
    _, counter = fit(context, OfText(context), max_length=Batch(2))
    assert counter.given("on_validation_end") == [{"words": 4.0}]
    assert context.progress.records_trained == 8


def test_apex_that_is_switched_off_changes_nothing(open_run: Open) -> None:
    """configure_apex_amp(enabled=False) gives models and optimizers back; switched on it names the replacement."""
    context = open_run()
    model = context.wrap_model(nn.Linear(1, 1))
    optimizer = context.wrap_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    assert context.configure_apex_amp(model, optimizer, enabled=False, opt_level="O1") == (model, optimizer)
    with pytest.raises(RuntimeError, match="precision="):
        context.configure_apex_amp(model, optimizer)
