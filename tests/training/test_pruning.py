"""Runs that are trials of a search: what they tell it, how long they train, and how they are pruned."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import trainlab
from tests.distributed.ranks import run_ranks, start_ranks
from tests.training.pruned import Study, current, train_drawing, train_pruned
from tests.training.trials import LineTrial
from trainlab import Batch, Epoch
from trainlab.errors import InvalidTypeError, InvalidValueError, MetricError
from trainlab.experiments.searched import report

# What is above this is pruned: any loss, and any loss once there were so many steps.
ALWAYS = optuna.pruners.ThresholdPruner(upper=0.0)
OpenRun = Callable[..., trainlab.TrialContext]


def fit(open_run: OpenRun, study: Study, **arguments: Any) -> trainlab.FitResult:
    context = open_run()
    with current(context.run_dir, study.searched):
        return trainlab.Trainer(LineTrial(context), context).fit(**{"validation_period": Batch(4), **arguments})


def test_a_trial_is_pruned_at_a_validation(open_run: OpenRun, tmp_path: Path) -> None:
    """A trial that the search prunes ends at that validation, with a checkpoint of it, and its record says why."""
    context = open_run()
    study = Study(tmp_path, optuna.pruners.ThresholdPruner(upper=0.0, n_warmup_steps=8))
    with current(context.run_dir, study.searched):
        result = trainlab.Trainer(LineTrial(context), context).fit(max_length=Batch(40), validation_period=Batch(4))
    context.close()
    assert (result.stop_reason, result.progress.batches_trained) == ("pruned", 8)
    assert list(study.reported) == [4, 8]
    assert study.reported[8] == result.metrics["loss"]
    assert [path.name for path in (context.run_dir / "checkpoints").iterdir()] == ["batch-0000008"]
    record = json.loads((context.run_dir / "run.json").read_text())
    assert (record["status"], record["stop_reason"]) == ("finished", "pruned")


def test_a_trial_at_its_end_is_not_pruned(open_run: OpenRun, tmp_path: Path) -> None:
    """What has trained all its length is finished, whatever the search thinks of its last validation."""
    result = fit(open_run, study := Study(tmp_path, ALWAYS), max_length=Batch(4))
    assert result.stop_reason == "max_length"
    assert list(study.reported) == [4]


def test_the_search_says_how_long(open_run: OpenRun, tmp_path: Path) -> None:
    """A fit that is told no length trains as long as the search says, in epochs, which are its steps then."""
    study = Study(tmp_path, length=("Epoch", 2))
    result = fit(open_run, study, validation_period=Epoch(1))
    assert (result.stop_reason, result.progress.epochs_trained) == ("max_length", 2)
    assert list(study.reported) == [1, 2]


def test_a_length_of_ones_own_counts(open_run: OpenRun, tmp_path: Path) -> None:
    """A fit that is told a length trains that, whatever the search says."""
    assert fit(open_run, Study(tmp_path, length=("Epoch", 2)), max_length=Batch(5)).progress.batches_trained == 5


def test_no_length_at_all(open_run: OpenRun, tmp_path: Path) -> None:
    """Where neither the fit nor the search says how long to train, an error says what to pass."""
    with pytest.raises(InvalidValueError, match="max_length is missing"):
        fit(open_run, Study(tmp_path))


def test_a_search_for_a_metric_that_is_not_there(open_run: OpenRun, tmp_path: Path) -> None:
    """To prune by a metric that the validation does not give is refused before training, with those that it gives."""
    with pytest.raises(MetricError, match=r"gives no metric 'accuracy', which the search looks at. It gives: 'loss'"):
        fit(open_run, study := Study(tmp_path, ALWAYS, metric="accuracy"), max_length=Batch(40))
    assert study.reported == {}


def test_a_search_for_what_main_returns(open_run: OpenRun, tmp_path: Path) -> None:
    """Without a pruner the metric may be one of the main function's own, which the validation does not give."""
    result = fit(open_run, study := Study(tmp_path, metric="score"), max_length=Batch(8))
    assert (result.stop_reason, study.reported) == ("max_length", {})


@pytest.mark.parametrize(
    ("value", "step", "error", "told"),
    [
        ("abc", 1, InvalidTypeError, "is a number. Received: 'abc'"),
        (1.0, 1.5, InvalidTypeError, r"step of a report is an int. Received: 1\.5"),
        (1.0, -1, InvalidValueError, "at least 0. Received: -1"),
    ],
)
def test_a_report_that_cannot_be_used(
    tmp_path: Path, value: object, step: object, error: type[Exception], told: str
) -> None:
    """A report of what is no number, or of a step that is none, is refused with what was given."""
    with current(tmp_path, (study := Study(tmp_path)).searched), pytest.raises(error, match=told):
        report(value, step)  # type: ignore[arg-type]  # the mistake
    assert study.reported == {}


def test_a_try_tells_nothing(open_run: OpenRun, tmp_path: Path) -> None:
    """The test mode of a trial tells the search nothing."""
    fit(open_run, study := Study(tmp_path, ALWAYS), max_length=Batch(40), test_mode=True)
    assert study.reported == {}


def test_a_trial_that_goes_on_keeps_what_it_told(open_run: OpenRun, tmp_path: Path) -> None:
    """A trial that repeats steps after a crash leaves in the search what it told of them first."""
    study = Study(tmp_path)
    study.study._storage.set_trial_intermediate_value(study.study.get_trials()[0]._trial_id, 4, 123.0)
    fit(open_run, study, max_length=Batch(8))
    assert study.reported[4] == 123.0
    assert list(study.reported) == [4, 8]


def test_all_ranks_are_pruned_together(tmp_path: Path) -> None:
    """What the search tells the chief ends all ranks at the same batch; they have the length from it, too."""
    study = Study(tmp_path, optuna.pruners.ThresholdPruner(upper=0.0, n_warmup_steps=8), length=("Batch", 40))
    found = run_ranks(train_pruned, 2, tmp_path / "run", study.searched, None)
    assert found == [("pruned", 8), ("pruned", 8)]


def test_a_rank_that_draws_one_more_seed(tmp_path: Path) -> None:
    """A rank that asks for one more seed than the others ends all at the next boundary, and is named."""
    with start_ranks(train_drawing, 2, tmp_path / "run") as ranks:
        assert all(ranks.wait())
        outputs = ranks.outputs()
    told = re.findall(r"DisagreementError: (.*)", outputs)
    # Ranks that take long for a batch also compare between two boundaries: here after the batch itself.
    expected = r"2 calls of new_seed on rank 1, 1 on rank 0, up to batch [34]\b"
    assert any(re.search(expected, line) for line in told), outputs
