"""What the context wraps, refuses and answers."""

from typing import Any

import pytest
import torch
from torch import nn

import trainlab
from tests.training.trials import LineTrial
from trainlab import Batch, LRScheduler
from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError


def test_wrapping_twice_is_refused(open_run: Any) -> None:
    """The same model, optimizer or scheduler cannot be wrapped a second time."""
    context = open_run()
    model = context.wrap_model(nn.Linear(1, 1))
    optimizer = context.wrap_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert context.wrap_lr_scheduler(scheduler, LRScheduler.StepMode.STEP_EVERY_EPOCH) is scheduler
    for again in (
        lambda: context.wrap_model(model),
        lambda: context.wrap_optimizer(optimizer),
        lambda: context.wrap_lr_scheduler(scheduler, LRScheduler.StepMode.STEP_EVERY_EPOCH),
    ):
        with pytest.raises(InvalidStateError, match="wrapped already"):
            again()


def test_a_compiled_model_is_the_model(open_run: Any) -> None:
    """A compiled model and its own module count as one, and the state dict has the module's keys."""
    context = open_run()
    model = nn.Linear(1, 1)
    context.wrap_model(torch.compile(model, backend="eager"))
    with pytest.raises(InvalidStateError, match="wrapped already"):
        context.wrap_model(model)


def test_wrapping_after_training_began_is_refused(open_run: Any) -> None:
    """Nothing can be wrapped once fit has run."""
    context = open_run()
    trial = LineTrial(context)
    trainlab.Trainer(trial, context).fit(max_length=Batch(1))
    for late in (
        lambda: context.wrap_model(nn.Linear(1, 1)),
        lambda: context.wrap_optimizer(torch.optim.SGD(trial.model.parameters(), lr=0.1)),
        lambda: context.wrap_reducer(sum, "sum"),
        lambda: context.register_stateful("late", trial.model),
    ):
        with pytest.raises(InvalidStateError, match="training has begun"):
            late()


def test_optimizer_over_strange_parameters_is_refused(open_run: Any) -> None:
    """An optimizer over parameters of no wrapped model is refused, with their shapes."""
    context = open_run()
    context.wrap_model(nn.Linear(1, 1))
    with pytest.raises(InvalidValueError, match=r"\(3, 2\)"):
        context.wrap_optimizer(torch.optim.SGD(nn.Linear(2, 3).parameters(), lr=0.1))


@pytest.mark.parametrize("passes", [0, -1, 1.5, True])
def test_backward_passes_per_step_is_checked(open_run: Any, passes: Any) -> None:
    """backward_passes_per_step below 1 or not an int is refused."""
    context = open_run()
    model = context.wrap_model(nn.Linear(1, 1))
    with pytest.raises(InvalidValueError, match="backward_passes_per_step"):
        context.wrap_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), passes)


def test_backward_needs_a_gradient(open_run: Any) -> None:
    """backward on a value that needs no gradient, or on no tensor, is an error that says why."""
    context = open_run()
    with pytest.raises(InvalidValueError, match="needs no gradient"):
        context.backward(torch.tensor(1.0))
    with pytest.raises(InvalidTypeError, match="tensor"):
        context.backward(1.0)


def test_step_optimizer_needs_a_wrapped_one(open_run: Any) -> None:
    """step_optimizer on an optimizer that is not wrapped is an error that names wrap_optimizer."""
    context = open_run()
    with pytest.raises(InvalidValueError, match="wrap_optimizer"):
        context.step_optimizer(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))


def test_positions_need_training(open_run: Any) -> None:
    """The position in the training has no answer before training."""
    context = open_run()
    for ask in (context.is_epoch_start, context.is_epoch_end, context.current_train_epoch, context.current_train_batch):
        with pytest.raises(InvalidStateError, match="before training"):
            ask()


def test_positions_in_training(open_run: Any) -> None:
    """In train_batch the context tells first and last batches of epochs, epoch and batch index."""
    told: list[tuple[bool, bool, int, int]] = []

    class Asking(LineTrial):
        records = 12

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            c = self.context
            told.append((c.is_epoch_start(), c.is_epoch_end(), c.current_train_epoch(), c.current_train_batch()))
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run()
    trainlab.Trainer(Asking(context), context).fit(max_length=Batch(4))
    assert told == [(True, False, 0, 0), (False, False, 0, 1), (False, True, 0, 2), (True, False, 1, 3)]


def test_hyperparameters(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Hyperparameters are found by name; unknown ones list those there are; batch sizes are checked."""
    context = open_run(hparams={"lr": 0.1, "global_batch_size": 32}, exp_conf={"data": {"url": "x"}})
    assert context.get_hparam("lr") == 0.1 and context.get_hparams()["lr"] == 0.1
    assert context.get_global_batch_size() == context.get_per_slot_batch_size() == 32
    assert context.get_data_config() == {"url": "x"} and context.get_experiment_config()["data"] == {"url": "x"}
    with pytest.raises(InvalidValueError, match="'global_batch_size', 'lr'"):
        context.get_hparam("momentum")
    assert context.get_hparam("global_batch_size") == 32 and "get_per_slot_batch_size" in caplog.text


@pytest.mark.parametrize("size", ["1", 32.0, True, 0])
def test_global_batch_size_is_an_int(open_run: Any, size: Any) -> None:
    """A global_batch_size that is no int of at least the number of ranks is an error."""
    with pytest.raises(InvalidValueError, match="global_batch_size"):
        open_run(hparams={"global_batch_size": size}).get_global_batch_size()


def test_missing_configuration(open_run: Any) -> None:
    """Getters without hparams or exp_conf raise errors that say how to give them."""
    context = open_run()
    for ask, says in (
        (context.get_hparams, "hparams="),
        (context.get_global_batch_size, "hparams="),
        (context.get_experiment_config, "exp_conf="),
        (context.get_data_config, "exp_conf="),
    ):
        with pytest.raises(InvalidValueError, match=says):
            ask()


def test_setters_take_bools(open_run: Any) -> None:
    """The switches of the context take bools only."""
    context = open_run()
    for setter in (context.set_stop_requested, context.set_enable_tensorboard_logging):
        with pytest.raises(InvalidTypeError, match="bool"):
            setter(1)


def test_apex_is_refused(open_run: Any) -> None:
    """configure_apex_amp names its replacement."""
    with pytest.raises(InvalidStateError, match="precision="):
        open_run().configure_apex_amp([], [], enabled=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"aggregation_frequency": 0}, "aggregation_frequency"),
        ({"aggregation_frequency": 1.5}, "aggregation_frequency"),
        ({"precision": "fp8"}, "'fp32', 'bf16', 'fp16'|fp32, bf16, fp16"),
        ({"uneven": "maybe"}, "'scale', 'drop', 'pad'"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"device": "toaster"}, "device"),
        ({"name": "a/b"}, "name"),
        ({"progress": 1}, "progress"),
        ({"hparams": [1]}, "hparams"),
    ],
)
def test_init_checks_its_arguments(open_run: Any, arguments: dict[str, Any], says: str) -> None:
    """A bad argument of init is an error that names it, and leaves no lock behind."""
    with pytest.raises((InvalidValueError, InvalidTypeError), match=says):
        open_run(run_dir="here", **arguments)
    open_run(run_dir="here")


def test_seed_decides(open_run: Any) -> None:
    """The same seed gives the same initial weights, another seed others."""
    first, second, third = (LineTrial(open_run(seed=seed)).model.weight.item() for seed in (1, 1, 2))
    assert first == second != third


def test_set_profiler_traces(open_run: Any) -> None:
    """A profiler that is set runs over the training and leaves its trace in the TensorBoard folder."""
    context = open_run()
    trial = LineTrial(context)
    context.set_profiler(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=1, repeat=1),
    )
    trainlab.Trainer(trial, context).fit(max_length=Batch(5))
    assert list(context.get_tensorboard_path().glob("*.pt.trace.json*"))
