"""What fit does, when, and what it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainlab
from tests.training.trials import LineTrial, weights
from trainlab import Batch, Epoch
from trainlab.checkpoint import Retention
from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError, MetricError


def fit(context: trainlab.TrialContext, trial: Any = None, **arguments: Any) -> tuple[Any, trainlab.FitResult]:
    """Train a LineTrial."""
    trial = LineTrial(context) if trial is None else trial
    return trial, trainlab.Trainer(trial, context).fit(**arguments)


def lines(context: trainlab.TrialContext, kind: str) -> list[dict[str, Any]]:
    """The records of one kind in metrics.jsonl."""
    context.session.series.flush()
    path = context.run_dir / "metrics.jsonl"
    return [r for r in map(json.loads, path.read_text().splitlines()) if r["kind"] == kind] if path.exists() else []


def checkpoints(context: trainlab.TrialContext) -> list[int]:
    """The batches at which checkpoints were made."""
    return sorted(int(path.name[len("batch-") :]) for path in (context.run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("arguments", "windows", "validations", "saved"),
    [
        (
            {"max_length": Epoch(2), "checkpoint_period": Batch(5), "validation_period": Batch(10)},
            [5, 10, 15, 20, 25, 30, 32],
            [10, 20, 30, 32],
            [5, 10, 15, 20, 25, 30, 32],
        ),
        ({"max_length": Epoch(2)}, [32], [32], [32]),
        (
            {"max_length": Epoch(2), "validation_period": Epoch(1), "checkpoint_policy": "none"},
            [16, 32],
            [16, 32],
            [32],
        ),
        (
            {"max_length": Epoch(2), "validation_period": Epoch(1), "checkpoint_policy": "all"},
            [16, 32],
            [16, 32],
            [16, 32],
        ),
        ({"max_length": Batch(7), "checkpoint_period": Batch([1, 3])}, [1, 3, 7], [7], [1, 3, 7]),
        ({"max_length": Batch(20), "reporting_period": Epoch(1)}, [16, 20], [20], [20]),
    ],
)
def test_what_is_due_is_done_once(
    open_run: Any, arguments: dict[str, Any], windows: list[int], validations: list[int], saved: list[int]
) -> None:
    """Reports, validations and checkpoints come exactly where the periods say, and once at the end."""
    context = open_run()
    trial, result = fit(context, retention=Retention(keep_last=None), **arguments)
    assert [r["batch"] for r in lines(context, "training")] == windows
    assert [r["batch"] for r in lines(context, "validation")] == validations
    assert checkpoints(context) == saved
    assert result.progress.batches_trained == windows[-1] == len(trial.seen)
    assert result.stop_reason == "max_length"
    assert result.last_checkpoint is not None and result.last_checkpoint.name == f"batch-{saved[-1]:07d}"


def test_indices_count_from_the_beginning(open_run: Any) -> None:
    """epoch_idx and batch_idx of train_batch count over all epochs, from 0."""
    trial, _ = fit(open_run(), max_length=Epoch(2))
    assert trial.seen == [(i // 16, i) for i in range(32)]


def test_second_fit_goes_on(open_run: Any) -> None:
    """max_length counts from the run's beginning: two fits equal one, to the bit, within an epoch too."""
    whole, _ = fit(open_run(), max_length=Batch(30))
    context = open_run()
    trial, _ = fit(context, max_length=Batch(21))
    fit(context, trial, max_length=Batch(30))
    assert weights(trial) == weights(whole)
    assert trial.seen == whole.seen


def test_nothing_is_done_beyond_max_length(open_run: Any) -> None:
    """A fit whose max_length is reached already trains, validates and saves nothing."""
    context = open_run()
    trial, _ = fit(context, max_length=Batch(5))
    before = checkpoints(context)
    _, result = fit(context, trial, max_length=Batch(5))
    assert len(trial.seen) == 5 and checkpoints(context) == before
    assert len(lines(context, "validation")) == 1 and result.progress.batches_trained == 5


def test_best_checkpoint_is_the_best_by_the_metric(open_run: Any) -> None:
    """With policy best a checkpoint is made at each better validation, and FitResult names the best one."""
    values = iter([0.0, 3.0, 2.0, 1.0, 5.0])  # the first is the validation batch that is tried

    class Judged(LineTrial):
        def evaluate_full_dataset(self, data_loader: Any) -> dict[str, Any]:
            return {"score": next(values)}

        evaluate_batch = trainlab.Trial.evaluate_batch

    context = open_run()
    _, result = fit(
        context,
        Judged(context),
        max_length=Batch(4),
        validation_period=Batch(1),
        metric="score",
        smaller_is_better=True,
        retention=Retention(keep_last=None),
    )
    assert checkpoints(context) == [1, 2, 3, 4]  # 4 because it is the end
    assert result.best_metric == 1.0
    assert result.best_checkpoint is not None and result.best_checkpoint.name == "batch-0000003"


def test_policy_best_without_metric_keeps_no_best(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With policy best and no metric named, no best is kept, and one line says so."""
    context = open_run()
    with caplog.at_level("INFO", logger="trainlab"):
        _, result = fit(context, max_length=Batch(4), validation_period=Batch(2))
    assert result.best_checkpoint is None and checkpoints(context) == [4]
    assert sum("no best checkpoint is kept" in message for message in caplog.messages) == 1


def test_unknown_metric_is_found_before_training(open_run: Any) -> None:
    """A metric that the validation does not give is found before the first batch, with those there are listed."""
    context = open_run()
    trial = LineTrial(context)
    with pytest.raises(MetricError, match="'loss'"):
        fit(context, trial, max_length=Batch(3), metric="accuracy")
    assert trial.seen == []


def test_crashing_validation_is_found_before_training(open_run: Any) -> None:
    """A validation that crashes does so before the first batch is trained."""

    class Crashing(LineTrial):
        def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            raise ZeroDivisionError("in the user's code")

    context = open_run()
    trial = Crashing(context)
    with pytest.raises(ZeroDivisionError, match="user's code"):
        fit(context, trial, max_length=Batch(3))
    assert trial.seen == []


def test_trying_validation_changes_nothing(open_run: Any) -> None:
    """The validation batch that is tried first leaves generators and modes as they were."""

    class Noisy(LineTrial):
        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

        def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            torch.rand(3)
            return {"loss": 0.0}

    class NoisyUnvalidated(Noisy):
        evaluate_batch = trainlab.Trial.evaluate_batch

    one = open_run()
    first, _ = fit(one, Noisy(one), max_length=Batch(5))
    two = open_run()
    second, _ = fit(two, NoisyUnvalidated(two), max_length=Batch(5))
    # Only the last validation, after the last batch, may differ.
    assert weights(first) == weights(second)


def test_step_zero_validation(open_run: Any) -> None:
    """step_zero_validation validates once before the first batch and makes no checkpoint for it."""
    context = open_run()
    fit(context, max_length=Batch(4), step_zero_validation=True, checkpoint_policy="all")
    assert [r["batch"] for r in lines(context, "validation")] == [0, 4]
    assert checkpoints(context) == [4]


def test_test_mode_leaves_nothing(open_run: Any) -> None:
    """test_mode trains one batch, validates one, writes and reads a checkpoint, and leaves no file of it."""
    seen: list[str] = []

    class Watching(trainlab.Callback):
        def on_checkpoint_write_end(self, checkpoint_dir: Path) -> None:
            seen.append(str(checkpoint_dir))

    context = open_run()
    trial = LineTrial(context)
    trial.callbacks = {"watching": Watching()}
    _, result = fit(context, trial, max_length=Epoch(9), test_mode=True)
    assert result.progress.batches_trained == 1 and len(trial.seen) == 1
    assert len(seen) == 1 and not Path(seen[0]).exists()
    assert not (context.run_dir / "checkpoints").exists() or checkpoints(context) == []
    assert lines(context, "training") == [] and result.last_checkpoint is None


def test_stop_requested_makes_a_checkpoint(open_run: Any) -> None:
    """A stop asked for in a batch ends the run after that batch, with a report and a checkpoint."""

    class Stopping(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            self.context.set_stop_requested(batch_idx == 6)
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run()
    trial, result = fit(context, Stopping(context), max_length=Epoch(2))
    assert len(trial.seen) == 7 and checkpoints(context) == [7]
    assert result.stop_reason == "stop_requested"
    assert [r["batch"] for r in lines(context, "training")] == [7] and lines(context, "validation") == []


def test_a_folder_with_checkpoints_is_not_overwritten(open_run: Any) -> None:
    """fit without latest_checkpoint in a folder that holds checkpoints is an error that says what to pass."""
    context = open_run(run_dir="here")
    fit(context, max_length=Batch(3))
    context.close()
    again = open_run(run_dir="here")
    assert again.latest_checkpoint is not None
    with pytest.raises(InvalidStateError, match="latest_checkpoint=ctx.latest_checkpoint"):
        fit(again, max_length=Batch(6))


def test_resume_goes_on_where_it_was(open_run: Any) -> None:
    """A resumed run reads on where it was, and ends with the same bytes as an uninterrupted one."""
    whole, _ = fit(open_run(), max_length=Batch(30))
    context = open_run(run_dir="here")
    fit(context, max_length=Batch(21))
    context.close()
    again = open_run(run_dir="here")
    trial, result = fit(again, max_length=Batch(30), latest_checkpoint=again.latest_checkpoint)
    assert trial.seen == whole.seen[21:]
    assert all(torch.equal(a, b) for a, b in zip(trial.inputs, whole.inputs[21:], strict=True))
    assert weights(trial) == weights(whole)
    assert result.progress.batches_trained == 30 and again.get_initial_batch() == 21


def test_resuming_a_finished_run_does_nothing(open_run: Any) -> None:
    """A finished run that is resumed trains, validates and saves nothing, and still answers with its metrics."""
    context = open_run(run_dir="here")
    _, first = fit(context, max_length=Batch(5))
    context.close()
    again = open_run(run_dir="here")
    trial, result = fit(again, max_length=Batch(5), latest_checkpoint=again.latest_checkpoint)
    assert trial.seen == [] and checkpoints(again) == [5]
    assert result.metrics == first.metrics
    assert len(lines(again, "validation")) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, InvalidValueError, "max_length"),
        ({"max_length": 5}, InvalidTypeError, "max_length"),
        ({"max_length": Batch([5])}, InvalidTypeError, "max_length"),
        ({"max_length": Batch(5), "validation_period": 3}, InvalidTypeError, "validation_period"),
        ({"max_length": Batch(5), "checkpoint_policy": "some"}, InvalidValueError, "'best', 'all', 'none'"),
        ({"max_length": Batch(5), "metric": 3}, InvalidTypeError, "metric"),
        ({"max_length": Batch(5), "test_mode": 1}, InvalidTypeError, "test_mode"),
        ({"max_length": Batch(5), "latest_checkpoint": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_bad_arguments(open_run: Any, arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    """A bad argument of fit is an error before training that names the argument."""
    context = open_run()
    trial = LineTrial(context)
    with pytest.raises(error, match=says):
        fit(context, trial, **arguments)
    assert trial.seen == []


def test_closed_context(open_run: Any) -> None:
    """fit after the with block has ended is an error that says so."""
    with trainlab.init(progress=False, device="cpu") as context:
        trial = LineTrial(context)
    with pytest.raises(InvalidStateError, match="closed"):
        fit(context, trial, max_length=Batch(1))


def test_exception_in_user_code_comes_out_unchanged(open_run: Any) -> None:
    """An exception in train_batch comes out as it is, with at most four frames of trainlab above the user's."""

    class Crashing(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            if batch_idx == 5:
                raise KeyError("mine")
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run()
    with pytest.raises(KeyError, match="mine") as caught:
        fit(context, Crashing(context), max_length=Batch(9), checkpoint_period=Batch(3))
    ours = [entry.path for entry in caught.traceback if "/trainlab/training/" in str(entry.path)]
    assert len(ours) <= 4 and len(set(ours)) <= 2
    assert checkpoints(context) == [3]


def test_nan_is_told_with_its_window(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A NaN loss gives one warning at the report, with the batches of the window."""

    class Exploding(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            super().train_batch(batch, epoch_idx, batch_idx)
            return {"loss": torch.tensor(float("nan") if batch_idx in (6, 7) else 1.0)}

    context = open_run()
    fit(context, Exploding(context), max_length=Batch(15), reporting_period=Batch(5))
    told = [m for m in caplog.messages if "NaN" in m]
    assert len(told) == 1 and "batches 5 to 9" in told[0] and "6 to 7" in told[0]


def test_no_optimizer_stepped_is_told(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A run in which no optimizer is stepped is warned of at the first report, once."""

    class Idle(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            return {"loss": 1.0}

    context = open_run()
    fit(context, Idle(context), max_length=Batch(4), reporting_period=Batch(2))
    assert sum("No optimizer was stepped" in m for m in caplog.messages) == 1


def test_evaluate_does_not_train(open_run: Any) -> None:
    """evaluate returns the validation metrics and changes neither weights nor generators nor modes."""
    context = open_run()
    trial = LineTrial(context)
    before, rng, mode = weights(trial), torch.get_rng_state(), trial.model.training
    metrics = trainlab.Trainer(trial, context).evaluate()
    x, y = torch.utils.data.default_collate(list(trial.build_validation_data_loader().dataset))
    assert metrics["loss"] == pytest.approx(nn.functional.mse_loss(trial.model(x), y).item(), rel=1e-6)
    assert weights(trial) == before and torch.equal(torch.get_rng_state(), rng) and trial.model.training is mode


def test_evaluate_loads_a_checkpoint(open_run: Any) -> None:
    """evaluate(latest_checkpoint=...) gives the metrics that the training gave at that checkpoint."""
    context = open_run()
    _, result = fit(context, max_length=Batch(20))
    other = open_run()
    assert trainlab.Trainer(LineTrial(other), other).evaluate(result.last_checkpoint) == result.metrics


def test_validation_is_the_mean_over_the_data_set(open_run: Any) -> None:
    """101 records in batches of 16 give the mean over the 101 records."""

    class Hundred(LineTrial):
        def build_validation_data_loader(self) -> Any:
            return trainlab.DataLoader(torch.arange(101, dtype=torch.float64) ** 2, batch_size=16)

        def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"square": batch.mean()}

    context = open_run()
    _, result = fit(context, Hundred(context), max_length=Batch(1))
    assert result.metrics["square"] == pytest.approx(sum(i * i for i in range(101)) / 101, rel=1e-12)


def test_iterable_epochs_of_differing_length(open_run: Any) -> None:
    """An iterable data set without a length ends its epochs itself, each as long as it is."""

    class Growing(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            yield from line_records(4 * self.passes)

    def line_records(n: int) -> Any:
        return ((torch.tensor([i / n]), torch.tensor([2 * i / n + 1])) for i in range(n))

    class Streaming(LineTrial):
        def build_training_data_loader(self) -> Any:
            return trainlab.DataLoader(Growing(), batch_size=4)

    context = open_run()
    trial, result = fit(context, Streaming(context), max_length=Epoch(3), validation_period=Epoch(1))
    assert [epoch for epoch, _ in trial.seen] == [0, 1, 1, 2, 2, 2]
    assert [r["batch"] for r in lines(context, "validation")] == [1, 3, 6]
    assert result.progress.epochs_trained == 3


def test_empty_data_is_an_error(open_run: Any) -> None:
    """An empty training set is an error that names it."""

    class Empty(LineTrial):
        records = 0

    context = open_run()
    with pytest.raises(ValueError, match="is empty"):
        fit(context, Empty(context), max_length=Epoch(1))


def test_after_a_crash_fit_goes_on_from_a_checkpoint_only(open_run: Any) -> None:
    """After an exception in a batch the same Trainer goes on exactly from a checkpoint, and from nothing else."""
    crash = [True]

    class Crashing(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            metrics = super().train_batch(batch, epoch_idx, batch_idx)
            if batch_idx == 20 and crash.pop():
                raise KeyError("mine")
            return metrics

    whole, _ = fit(open_run(), max_length=Batch(30))
    context = open_run()
    trial = Crashing(context)
    trainer = trainlab.Trainer(trial, context)
    with pytest.raises(KeyError):
        trainer.fit(max_length=Batch(30), checkpoint_period=Batch(18))
    crash.append(False)
    with pytest.raises(InvalidStateError, match="latest_checkpoint"):
        trainer.fit(max_length=Batch(30))
    trainer.fit(max_length=Batch(30), latest_checkpoint=context.latest_checkpoint)
    assert weights(trial) == weights(whole)
    assert [r["batch"] for r in lines(context, "training")] == [18, 30]


def test_fit_after_test_mode_needs_a_new_trial(open_run: Any) -> None:
    """A Trial that test_mode has trained is not trained on by accident; a new one is."""
    context = open_run()
    trial, _ = fit(context, max_length=Batch(5), test_mode=True)
    with pytest.raises(InvalidStateError, match="test_mode"):
        fit(context, trial, max_length=Batch(5))
    fit(open_run(), max_length=Batch(5))


def test_test_mode_goes_on_from_a_checkpoint(open_run: Any) -> None:
    """test_mode with a checkpoint tries the batch that would come next, and leaves the run's files as they were."""
    context = open_run(run_dir="here")
    fit(context, max_length=Batch(5))
    context.close()
    again = open_run(run_dir="here")
    trial, result = fit(again, max_length=Batch(9), test_mode=True, latest_checkpoint=again.latest_checkpoint)
    assert trial.seen == [(0, 5)] and result.progress.batches_trained == 6
    assert checkpoints(again) == [5] and [r["batch"] for r in lines(again, "training")] == [5]


def test_step_zero_is_no_candidate_for_the_best(open_run: Any) -> None:
    """The validation before the first batch has no checkpoint, so that it cannot be the best one."""
    values = iter([0.0, 3.0, 2.0])

    class Judged(LineTrial):
        def evaluate_full_dataset(self, data_loader: Any) -> dict[str, Any]:
            return {"score": next(values)}

        evaluate_batch = trainlab.Trial.evaluate_batch

    context = open_run()
    _, result = fit(
        context,
        Judged(context),
        max_length=Batch(2),
        validation_period=Batch(1),
        step_zero_validation=True,
        metric="score",
    )
    assert result.best_metric == 2.0 and result.best_checkpoint == result.last_checkpoint


def test_evaluating_a_checkpoint_leaves_the_weights(open_run: Any) -> None:
    """evaluate(latest_checkpoint=...) puts the weights back that were there before."""
    context = open_run()
    _, result = fit(context, max_length=Batch(20))
    other = open_run(seed=5)
    trial = LineTrial(other)
    before = weights(trial)
    trainlab.Trainer(trial, other).evaluate(result.last_checkpoint)
    assert weights(trial) == before
