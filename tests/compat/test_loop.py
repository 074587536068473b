"""How long is trained, and what is done when."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, SequentialSampler

from tests.compat.trials import LR, Counter, OneWeightTrial, Open, fit, saved
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch, Epoch


class TwoEpochsOf32(OneWeightTrial):
    records = 128


@pytest.mark.parametrize(
    ("trial_class", "arguments", "windows", "validations", "checkpoints"),
    [
        (
            OneWeightTrial,
            {"max_length": Epoch(2), "checkpoint_period": Batch(5), "validation_period": Batch(10)},
            [5, 10, 15, 20, 25, 30, 32],
            4,
            [5, 10, 15, 20, 25, 30, 32],
        ),
        (TwoEpochsOf32, {"max_length": Epoch(2)}, [64], 1, [64]),
        (TwoEpochsOf32, {"max_length": Epoch(2), "validation_period": Batch(32)}, [32, 64], 2, [32, 64]),
        (TwoEpochsOf32, {"max_length": Epoch(2), "checkpoint_period": Batch(32)}, [32, 64], 1, [32, 64]),
        (TwoEpochsOf32, {"max_length": Epoch(2), "checkpoint_policy": "none"}, [64], 1, [64]),
        (OneWeightTrial, {"max_length": Batch(4), "validation_period": Batch(2)}, [2, 4], 2, [2, 4]),
        (
            OneWeightTrial,
            {"max_length": Batch(4), "validation_period": Batch(2), "checkpoint_policy": "none"},
            [2, 4],
            2,
            [4],
        ),
        (OneWeightTrial, {"max_length": Batch(5), "validation_period": Batch([1, 3])}, [1, 3, 5], 3, [1, 3, 5]),
        (
            OneWeightTrial,
            {"max_length": Batch(100), "validation_period": Batch(50), "checkpoint_policy": "none"},
            [50, 100],
            2,
            [100],
        ),
    ],
)
def test_worked_counts(
    open_run: Open, trial_class: Any, arguments: Any, windows: list[int], validations: int, checkpoints: list[int]
) -> None:
    """Windows, validations, checkpoints and the hooks around them are as many as they were on Determined."""
    context = open_run()
    trial, counter = fit(context, trial_class(context), **arguments)
    epochs = windows[-1] * trial.batch_size // trial.records
    started = -(-windows[-1] * trial.batch_size // trial.records)
    reports = counter.given("on_training_workload_end")
    assert [averages["batches"] for averages, _ in reports] == windows
    assert [len(batches) for _, batches in reports] == [b - a for a, b in zip([0, *windows], windows, strict=False)]
    assert counter.count("on_validation_end") == validations
    assert saved(context) == checkpoints and counter.count("on_checkpoint_upload_end") == len(checkpoints)
    assert counter.given("on_training_epoch_start") == list(range(started))
    assert counter.given("on_training_epoch_end") == list(range(epochs))
    for hook in ("on_trial_startup", "on_training_start", "on_trial_shutdown"):
        assert counter.count(hook) == 1


def test_best_without_a_metric_warns_and_is_all(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    """The default policy makes a checkpoint after every validation, and one warning tells why."""
    context = open_run()
    fit(context, max_length=Batch(3), validation_period=Batch(1))
    assert saved(context) == [1, 2, 3]
    assert sum("after every validation" in message for message in caplog.messages) == 1


def test_best_with_a_metric_keeps_the_best(open_run: Open) -> None:
    """A port that names a metric gets what "best" means on a cluster."""

    class GetsWorse(OneWeightTrial):
        def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"score": float(len(self.seen))}

    context = open_run()
    fit(context, GetsWorse(context), max_length=Batch(3), validation_period=Batch(1), metric="score")
    assert saved(context) == [1, 3]


@pytest.mark.parametrize(
    ("max_length", "error"), [(None, ValueError), (7, TypeError), ("7", TypeError), (Batch([1, 3]), TypeError)]
)
def test_the_length_must_be_one_unit(open_run: Open, max_length: Any, error: type[Exception]) -> None:
    """A missing length is a ValueError, a bare number or a schedule a TypeError, before anything is trained."""
    context = open_run()
    trial = OneWeightTrial(context)
    with pytest.raises(error, match="max_length"):
        fit(context, trial, max_length=max_length)
    assert trial.seen == []


@pytest.mark.parametrize("make", [lambda: Batch(0), lambda: Epoch(-1), lambda: Batch([0, 1])])
def test_a_period_below_one_is_an_error(make: Any) -> None:
    """A period that means nothing is refused rather than taken for "after every batch"."""
    with pytest.raises(ValueError, match="at least 1"):
        make()


def test_each_update_is_the_one_computed_by_hand(open_run: Open) -> None:
    """Nothing scales or averages gradients: each update is w ← w - lr · 2 (w - 1), and the loss falls each time."""
    trial, counter = fit(open_run(), max_length=Batch(10))
    weight, by_hand = 0.0, []
    for _ in range(10):
        weight -= LR * 2 * (weight - 1)
        by_hand.append(weight)
    assert trial.weights == pytest.approx(by_hand, rel=1e-6)
    losses = [float(batch["loss"]) for batch in counter.given("on_training_workload_end")[0][1]]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 10


def test_indices_count_from_the_beginning(open_run: Open) -> None:
    """epoch_idx and batch_idx count over all epochs, and a length in batches may end inside an epoch."""
    trial, counter = fit(open_run(), max_length=Batch(20))
    assert trial.seen == [(i // 16, i) for i in range(20)]
    assert counter.given("on_training_epoch_end") == [0]


class Repeating(OneWeightTrial):
    """Its loader goes on for ever: 6 records in batches of 4, so that len is 2 batches, and passes end inside one."""

    records = 6

    def build_training_data_loader(self) -> Any:
        sampler = pytorch.samplers.RepeatSampler(SequentialSampler(range(self.records)))
        return pytorch.DataLoader(self.data(), batch_size=4, sampler=sampler)


def test_an_endless_loader_has_epochs_of_its_len(open_run: Open) -> None:
    """A loader that repeats for ever is cut by its len, and its one iterator goes on from epoch to epoch."""
    trial, counter = fit_of(open_run(), Repeating, max_length=Epoch(2))
    assert trial.batches == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5], [0, 1, 2, 3]]
    assert trial.seen == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert counter.given("on_training_epoch_end") == [0, 1]


def test_an_endless_loader_goes_on_after_a_resume(open_run: Open) -> None:
    """A run resumed inside such an epoch reads the batch that comes next, in the middle of a pass."""
    context = open_run(run_dir="run")
    fit_of(context, Repeating, max_length=Batch(3))
    context.close()
    context = open_run(run_dir="run")
    trial, counter = fit_of(context, Repeating, max_length=Epoch(3), latest_checkpoint=context.latest_checkpoint)
    assert trial.batches == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
    assert trial.seen == [(1, 3), (2, 4), (2, 5)]
    assert counter.given("on_training_epoch_start") == [2]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.ones(1), torch.ones(1), 0


def test_a_loader_without_len_has_one_epoch(open_run: Open) -> None:
    """An iterable data set works, and where no len says otherwise its epoch has no end."""

    class OfEndless(OneWeightTrial):
        def build_training_data_loader(self) -> Any:
            return pytorch.DataLoader(Endless(), batch_size=4)

    trial, counter = fit_of(open_run(), OfEndless, max_length=Batch(40))
    assert trial.seen == [(0, i) for i in range(40)]
    assert counter.count("on_training_epoch_end") == 0


def test_nothing_is_done_when_the_length_is_reached(open_run: Open) -> None:
    """A resumed run that is over already neither trains nor validates nor saves."""
    context = open_run(run_dir="run")
    fit(context, max_length=Batch(3))
    context.close()
    context = open_run(run_dir="run")
    trial, counter = fit(context, max_length=Batch(3), latest_checkpoint=context.latest_checkpoint)
    assert trial.seen == [] and saved(context) == [3]
    assert {name for name, _ in counter.calls} == {"on_trial_startup", "on_training_start", "on_trial_shutdown"}


def test_a_stop_ends_fit_with_a_checkpoint(open_run: Open) -> None:
    """A stop asked for in train_batch ends fit normally, with a checkpoint of the last batch."""

    class Stopping(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            self.context.set_stop_requested(batch_idx == 4)
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run()
    trial, counter = fit(context, Stopping(context), max_length=Batch(50))
    assert len(trial.seen) == 5 and saved(context) == [5]
    assert counter.count("on_trial_shutdown") == 1 and counter.count("on_validation_end") == 0


@pytest.mark.parametrize("policy", ["best", "all", "none"])
def test_the_validation_before_training_saves_nothing(open_run: Open, policy: str) -> None:
    """step_zero_validation validates the untrained weights once, and no policy makes a checkpoint of them."""
    context = open_run()
    _, counter = fit(context, max_length=Batch(2), step_zero_validation=True, checkpoint_policy=policy)
    assert counter.given("on_validation_end")[0]["loss"] == 1.0
    assert counter.count("on_validation_end") == 2 and saved(context) == [2]


def test_no_validation_comes_before_training(open_run: Open) -> None:
    """evaluate_batch is not tried before the first train_batch, as code written for Determined may expect."""
    order = []

    class Ordered(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            order.append("train")
            return super().train_batch(batch, epoch_idx, batch_idx)

        def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            order.append("evaluate")
            return super().evaluate_batch(batch, batch_idx)

    fit_of(open_run(), Ordered, max_length=Batch(1))
    assert order == ["train"] + ["evaluate"] * 16


def test_the_test_mode_is_one_batch_of_each(open_run: Open) -> None:
    """test_mode trains one batch, validates one, runs the checkpoint's hooks, and leaves nothing."""
    context = open_run()
    trial, counter = fit(context, max_length=Epoch(5), test_mode=True)
    assert len(trial.seen) == 1
    assert [len(outputs) for outputs in counter.given("on_validation_epoch_end")] == [1]
    assert counter.count("on_checkpoint_upload_end") == 1 and saved(context) == []


@pytest.mark.parametrize(
    "arguments", [{}, {"sync_timings": False, "enabled": True, "begin_on_batch": 5, "end_after_batch": 9}]
)
def test_the_profiler_can_be_configured(open_run: Open, arguments: dict[str, Any]) -> None:
    """A script that configures Determined's profiler runs on."""
    context = open_run()
    trainer = pytorch.Trainer(OneWeightTrial(context), context)
    trainer.configure_profiler(**arguments)
    trainer.fit(max_length=Batch(1))


def test_the_same_seed_gives_the_same_metrics(open_run: Open) -> None:
    """Two runs of one seed train and validate to the same numbers, shuffling and random weights included."""

    class Shuffled(OneWeightTrial):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            torch.nn.init.normal_(self.model.weight)

        def data(self) -> Any:
            generator = torch.Generator().manual_seed(1)
            x = torch.rand(self.records, 1, generator=generator)
            return torch.utils.data.TensorDataset(x, 2 * x, torch.arange(self.records))

        def build_training_data_loader(self) -> Any:
            return pytorch.DataLoader(self.data(), batch_size=4, shuffle=True)

    def metrics(seed: int) -> list[Any]:
        context = open_run(seed=seed)
        trial, counter = fit(context, Shuffled(context), max_length=Epoch(2), validation_period=Batch(5))
        return [trial.weights, counter.given("on_validation_end")]

    assert metrics(3) == metrics(3) != metrics(4)


def fit_of(context: Any, trial_class: Any, **arguments: Any) -> tuple[Any, Counter]:
    """Train a Trial of a class."""
    return fit(context, trial_class(context), **arguments)
