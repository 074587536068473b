"""Samplers and pruners by name, what a folder says of a trial, and how a search is shown."""

import io
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from trainlab import Batch, Epoch
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.sweeps.importance import importances
from trainlab.sweeps.methods import check_sampler, make_pruner, make_sampler, pickled
from trainlab.sweeps.outcome import Outcome, outcome_of
from trainlab.sweeps.search_result import best_of
from trainlab.sweeps.search_table import SearchTable
from trainlab.sweeps.trials import SearchTrial


def pruned_at(pruner: optuna.pruners.BasePruner, steps: range, values: list[float]) -> list[int]:
    """At which step each of some trials, one after the other, with a constant loss each, is ended; 0 for never."""
    study = optuna.create_study(study_name="steps", pruner=pruner)
    ends = []
    for value in values:
        trial, end = study.ask(), 0
        for step in steps:
            trial.report(value, step)
            if trial.should_prune():
                end = step
                break
        study.tell(trial, None if end else value, state=optuna.trial.TrialState.PRUNED if end else None)
        ends.append(end)
    return ends


def test_asha_measures_by_the_length() -> None:
    """ASHA decides first after one epoch, or a sixteenth of the batches, and ends what is not among the best there."""
    values = [1.0, 2.0, 3.0, 0.5]
    assert pruned_at(make_pruner("asha", Epoch(9)), range(1, 10), values) == [0, 1, 1, 0]
    assert pruned_at(make_pruner("asha", Batch(160)), range(5, 165, 5), values) == [0, 10, 10, 0]


def test_median_and_none() -> None:
    """The median pruner ends what is worse than the median of five; no pruner ends nothing."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]
    assert pruned_at(make_pruner("median", None), range(1, 4), values) == [0, 0, 0, 0, 0, 1, 0]
    assert pruned_at(make_pruner("none", None), range(1, 4), values) == [0] * 7


def test_hyperband_has_brackets_up_to_the_length() -> None:
    """Hyperband begins its brackets at one epoch and at three times as many each, up to the length."""
    ends = pruned_at(make_pruner("hyperband", Epoch(9)), range(1, 10), [float(number) for number in range(20)])
    assert set(ends) == {0, 1, 3} or set(ends) == {0, 1, 3, 9}


def test_a_sampler_gives_the_same_for_the_same_seed() -> None:
    """Each sampler by name chooses the same for the same seed, and something else for another."""
    for name in ("tpe", "random"):
        drawn = [_drawn(name, seed) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]


def _drawn(name: str, seed: int) -> float:
    return optuna.create_study(sampler=make_sampler(name, seed)).ask().suggest_float("x", 0, 1)


def test_samplers_and_pruners_that_cannot_be_used() -> None:
    """Optuna's grid sampler is refused with its replacement, and so is a pruner that cannot be sent to a process."""
    with pytest.raises(InvalidValueError, match="sampler='grid'"):
        check_sampler(optuna.samplers.GridSampler({"x": [1, 2]}))
    with pytest.raises(InvalidTypeError, match="sampler is a name or one of Optuna's. Received: 7"):
        check_sampler(7)
    pruner = optuna.pruners.NopPruner()
    pruner.handle = lambda: None  # type: ignore[attr-defined]  # nothing that can be sent
    with pytest.raises(InvalidTypeError, match="cannot be pickled"):
        pickled(pruner)


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        ({"status": "finished", "metrics": {"loss": 0.5}}, Outcome("finished", 0.5)),
        ({"status": "finished", "result": 0.25}, Outcome("finished", 0.25)),
        ({"status": "finished", "metrics": {"loss": 0.5}, "stop_reason": "pruned"}, Outcome("pruned")),
        ({"status": "running"}, None),
        ({"status": "interrupted", "metrics": {"loss": 0.5}}, None),
        ({"status": "failed", "error": "ValueError: boom"}, Outcome("failed", reason="ValueError: boom")),
        (
            {"status": "finished", "metrics": {"loss": float("nan")}},
            Outcome("failed", reason="The metric 'loss' is NaN."),
        ),
        (
            {"status": "finished", "metrics": {"loss": float("-inf")}},
            Outcome("failed", reason="The metric 'loss' is -inf."),
        ),
        (
            {"status": "finished", "not_numbers": {"loss": "str"}},
            Outcome("failed", reason="The run gives no number as metric 'loss', but a str. It gives: none."),
        ),
        (
            {"status": "finished", "metrics": {"error": 1.0}, "result": 3.0},
            Outcome("failed", reason="The run gives no number as metric 'loss'. It gives: 'error'."),
        ),
    ],
)
def test_what_a_folder_says(tmp_path: Path, record: dict[str, Any], outcome: Outcome | None) -> None:
    """How a trial ended is what its run's record says; one that has no end is to be gone on with."""
    (tmp_path / "run.json").write_text(json.dumps({"started": None, **record}))
    assert outcome_of(tmp_path, "loss", asked_to_stop=False) == outcome


def test_what_an_own_loop_was_told_counts(tmp_path: Path) -> None:
    """A loop of one's own that was told to stop is pruned; a fit that trained all its length is finished."""
    (tmp_path / "run.json").write_text(json.dumps({"started": None, "status": "finished", "metrics": {"loss": 0.5}}))
    assert outcome_of(tmp_path, "loss", asked_to_stop=True) == Outcome("pruned")
    whole = {"started": None, "status": "finished", "metrics": {"loss": 0.5}, "stop_reason": "max_length"}
    (tmp_path / "run.json").write_text(json.dumps(whole))
    assert outcome_of(tmp_path, "loss", asked_to_stop=True) == Outcome("finished", 0.5)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    """A trial without a folder has no end yet."""
    assert outcome_of(tmp_path / "none", "loss", asked_to_stop=False) is None


def trials() -> list[SearchTrial]:
    """Two finished trials, one that is pruned, one that failed and one that runs."""
    study = optuna.create_study()
    for x, state in ((0.5, "COMPLETE"), (0.25, "COMPLETE"), (0.1, "PRUNED"), (0.3, "FAIL")):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(x, 1)
        value = x if state == "COMPLETE" else None
        study.tell(trial, value, state=optuna.trial.TrialState[state])
    study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    return [SearchTrial(one.number, one.number, (one,)) for one in study.get_trials()]


def test_the_best_is_one_that_has_finished() -> None:
    """The best trial is the finished one with the least value, or the greatest; neither a pruned nor a running one."""
    found = [best_of(trials(), smaller_is_better=smaller) for smaller in (True, False)]
    assert [one.number for one in found if one is not None] == [1, 0]


def test_lines_where_there_is_no_terminal() -> None:
    """Without a terminal a search tells each trial's end in a line, with the best so far."""
    file = io.StringIO()
    shown = SearchTable("train", "loss", smaller_is_better=True, trials=9, console=Console(file=file, width=200))
    with shown:
        shown.refresh(trials()[:1])
        shown.refresh(trials())
    lines = file.getvalue().splitlines()
    assert lines[0] == "1 of 9 trials are done already"
    assert lines[1] == "trial-0001: finished loss=0.25 (4 of 9, best 0.25 by trial-0001)"
    assert [line.split(" ")[1].rstrip(":") for line in lines[1:]] == ["finished", "pruned", "failed", "started"]


def test_a_table_on_a_terminal() -> None:
    """On a terminal a search is a table of its trials, with the best one marked, and as high as there is place for."""
    file = io.StringIO()
    console = Console(file=file, width=100, height=10, force_terminal=True, color_system=None)
    with SearchTable("train", "loss", smaller_is_better=True, trials=9, console=console) as shown:
        shown.refresh(trials())
        assert "and 2 more" in file.getvalue()
    (best,) = [line for line in file.getvalue().splitlines() if "best" in line][-1:]
    assert "0.25" in best
    assert "2 finished, 1 pruned, 1 failed, 1 running of 9" in " ".join(file.getvalue().split())


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0, 1.0]])
def test_importances_of_too_little(values: list[float]) -> None:
    """Where there is nothing to tell parameters apart by, importances are empty, or all alike."""
    study = optuna.create_study()
    for value in values:
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), value)
    assert set(importances(study).values()) <= {1.0}
