"""Resumes that meet something else than what the checkpoint was made with, and models that count their passes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainlab
from tests.checkpoint.writing import write_checkpoint
from tests.training.checkpoint_runs import Wider, newest, run
from tests.training.trials import LineTrial, line, weights
from trainlab import Batch, Epoch
from trainlab.checkpoint import Checkpoint, encode
from trainlab.errors import CheckpointError, CheckpointMismatchError, InvalidStateError, MetricError


def fit(open_run: Any, trial_class: type[LineTrial], batches: int, *, start: Any = "own", **arguments: Any) -> Any:
    """Train up to a batch in a folder, on from its newest checkpoint or a given one; return the Trial and the result.

    What `init` takes is taken from the arguments; the rest goes to `fit`.
    """
    given = {"run_dir": "here", **arguments}
    of_init = ("run_dir", "seed", "aggregation_frequency", "precision")
    context = open_run(**{name: given.pop(name) for name in of_init if name in given})
    trial = trial_class(context)
    latest = context.latest_checkpoint if start == "own" else start
    result = trainlab.Trainer(trial, context).fit(max_length=Batch(batches), latest_checkpoint=latest, **given)
    context.close()
    return trial, result


def steps(kind: str, run_dir: str = "here") -> list[int]:
    """The batches of all records of one kind in metrics.jsonl, in order."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [record["batch"] for record in map(json.loads, lines) if record["kind"] == kind]


# -- buffers that a forward pass changes ---------------------------------------------------------


class Counting(nn.Module):
    """A model whose output hangs on how often it was asked, whatever its mode."""

    n: torch.Tensor

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.in_place = in_place
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> Any:
        if self.in_place:
            self.n += 1
        else:
            self.n = self.n + 1
        return self.line(x) * (1 + 0.01 * self.n)


class CountingTrial(LineTrial):
    """Trains a counting model, and remembers what it had counted before each batch."""

    in_place = True

    def build_model(self) -> nn.Module:
        self.counts: list[int] = []
        return Counting(self.in_place)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        self.counts.append(int(self.model.n))
        return super().train_batch(batch, epoch_idx, batch_idx)


class ReplacingTrial(CountingTrial):
    in_place = False


@pytest.mark.parametrize("trial_class", [CountingTrial, ReplacingTrial])
def test_the_tried_validation_is_not_counted_by_the_model(open_run: Any, trial_class: type[CountingTrial]) -> None:
    """A model that counts forward passes, in evaluation too, has counted none before the first batch."""
    trial, _ = fit(open_run, trial_class, 3)
    assert trial.counts == [0, 1, 2]


@pytest.mark.parametrize("trial_class", [CountingTrial, ReplacingTrial])
def test_a_model_that_counts_resumes_exactly(open_run: Any, trial_class: type[CountingTrial]) -> None:
    """A resumed run of a model that counts forward passes is to the bit the run that nobody interrupted."""
    whole, _ = fit(open_run, trial_class, 8, run_dir="whole", validation_period=Batch(2))
    fit(open_run, trial_class, 4, validation_period=Batch(2))
    resumed, _ = fit(open_run, trial_class, 8, validation_period=Batch(2))
    assert resumed.counts == whole.counts[4:]
    assert weights(resumed) == weights(whole)


# -- checkpoints that do not fit -----------------------------------------------------------------


class OtherOptimizer(LineTrial):
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


class MoreGroups(LineTrial):
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": [p]} for p in model.parameters()], lr=0.05)


class OneMoreScheduler(LineTrial):
    def build_lr_scheduler(self, optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1)


class OtherNames(LineTrial):
    def build_optimizer(self, model: nn.Module) -> Any:
        return {"other": torch.optim.Adam(model.parameters())}


@pytest.mark.parametrize("trial_class", [Wider, OtherOptimizer, MoreGroups, OneMoreScheduler, OtherNames])
def test_what_does_not_fit_is_told_with_its_path(open_run: Any, trial_class: type[LineTrial]) -> None:
    """Whoever resumes with another model, optimizer or number of schedulers reads which checkpoint does not fit."""
    run(open_run)
    with pytest.raises(CheckpointMismatchError) as error:
        run(open_run, trial_class, 8)
    assert str(newest()) in str(error.value)


def without(part: str) -> Any:
    def change(state: dict[str, Any]) -> None:
        del state[part]

    return change


def instead(part: str, value: Any) -> Any:
    def change(state: dict[str, Any]) -> None:
        state[part] = value

    return change


WRONG_STATES = {
    "no progress": without("progress"),
    "no stream": without("stream"),
    "no generators": without("rng_state"),
    "no extra state": without("models_extra_state"),
    "nothing at all": dict.clear,
    "empty progress": instead("progress", {}),
    "progress of another kind": instead("progress", [6]),
    "a text for the optimizers": instead("optimizers_state_dict", "none"),
    "a list for the callbacks": instead("callbacks", []),
    "too few extra states": instead("models_extra_state", []),
    "too few gradients": instead("gradients", []),
    "numbers for gradients": instead("gradients", [1]),
    "too few optimizers": instead("optimizers_state_dict", []),
    "a number for an optimizer": instead("optimizers_state_dict", [1]),
    "a number for a scheduler": instead("lr_schedulers_state_dict", [1]),
    "a stream without its source": lambda state: state["stream"].pop("source"),
    "an empty recording": instead("recording", {}),
    "sizes that are none": lambda state: state["recording"].update(files={"metrics.jsonl": "long"}),
    "generators of another kind": lambda state: state["rng_state"].update(cpu=torch.zeros(3)),
    "generators without a part": lambda state: state["rng_state"].pop("numpy"),
    "gradients of another shape": instead("gradients", [{"weight": torch.zeros(7, 7)}]),
    "gradients that are none": instead("gradients", [{"weight": "steep"}]),
}


def rewritten(change: Any = None, *, tree: Any = None) -> Path:
    """Write the newest checkpoint anew, into a folder of its own, with another state and checksums that are right."""
    good = Checkpoint.open(newest())
    state = good.state()
    if change is not None:
        change(state)

    def put_tree(folder: Path) -> None:
        if tree is not None:
            (folder / "state.json").write_text(json.dumps(encode(tree)[0]))

    details = {"progress": good.progress, "trial_class": good.trial_class}
    return write_checkpoint(
        Path("elsewhere"),
        batches_trained=6,
        weights={"model": good.weights("model")},
        state=state,
        details=details,
        before_commit=put_tree,
    )


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_state_that_lacks_parts_is_a_checkpoint_error(open_run: Any, wrong: str) -> None:
    """A checkpoint that is intact and holds the wrong things is told of as such; its weights alone can be read."""
    run(open_run)
    path = rewritten(WRONG_STATES[wrong])
    with pytest.raises(CheckpointError):
        fit(open_run, LineTrial, 8, run_dir="new", start=path)
    trainlab.load_trial_from_checkpoint_path(path, LineTrial)


@pytest.mark.parametrize("tree", [[1, 2], "state", None], ids=["list", "text", "the original"])
def test_a_state_that_is_no_dict_is_a_checkpoint_error(open_run: Any, tree: Any) -> None:
    """The same holds for a state that is no dict at all; written anew as it was, the checkpoint is good."""
    run(open_run)
    path = rewritten(tree=tree)
    if tree is None:
        trial, _ = fit(open_run, LineTrial, 8, run_dir="new", start=path)
        assert trial.seen == [(0, 6), (0, 7)]
        return
    with pytest.raises(CheckpointError, match="elsewhere"):
        fit(open_run, LineTrial, 8, run_dir="new", start=path)


def test_another_runs_checkpoint_is_not_mixed_with_ones_own(open_run: Any) -> None:
    """A checkpoint of another run is refused where the folder holds checkpoints of its own: these would be lost."""
    run(open_run)
    run(open_run, run_dir="other")
    before = (Path("here") / "metrics.jsonl").read_bytes()
    with pytest.raises(InvalidStateError, match="of another run"):
        fit(open_run, LineTrial, 8, start=newest("other"))
    assert (Path("here") / "metrics.jsonl").read_bytes() == before and newest().name == "batch-0000006"
    trial, _ = fit(open_run, LineTrial, 8, run_dir="fresh", start=newest("other"))
    assert trial.seen == [(0, 6), (0, 7)]


# -- the best ------------------------------------------------------------------------------------


class ScoredTrial(LineTrial):
    """Gives at each validation a score that is the number of batches trained, and its negative."""

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        trained = float(self.context.progress.batches_trained)
        return {"up": trained, "down": -trained}


@pytest.mark.parametrize(
    ("first", "then", "best"),
    [
        ({"metric": "up", "smaller_is_better": True}, {"metric": "up", "smaller_is_better": False}, 8.0),
        ({"metric": "down"}, {"metric": "up"}, 6.0),
    ],
    ids=["direction", "metric"],
)
def test_another_judgement_begins_a_new_best(
    open_run: Any, caplog: pytest.LogCaptureFixture, first: Any, then: Any, best: float
) -> None:
    """Values of two metrics are never compared: another judgement starts anew, and a warning says so."""
    fit(open_run, ScoredTrial, 4, validation_period=Batch(2), **first)
    caplog.clear()
    _, result = fit(open_run, ScoredTrial, 8, validation_period=Batch(2), **then)
    assert [r.levelname for r in caplog.records if "best so far was judged by" in r.message] == ["WARNING"]
    assert result.best_metric == best
    assert result.best_checkpoint == Path("here/checkpoints").resolve() / f"batch-{int(best):07}"


def test_the_same_judgement_goes_on_without_a_word(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A resume that judges by the same metric keeps the best so far, and warns of nothing."""
    fit(open_run, ScoredTrial, 4, validation_period=Batch(2), metric="up")
    _, result = fit(open_run, ScoredTrial, 8, validation_period=Batch(2), metric="up")
    assert (result.best_metric, result.best_checkpoint.name) == (2.0, "batch-0000002")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "best" in r.message]


@pytest.mark.parametrize("metric", ["up", "down", None])
def test_the_best_checkpoint_is_one_that_exists(open_run: Any, metric: str | None) -> None:
    """FitResult never names a best checkpoint that is not there, also where the best was in another run's folder."""
    fit(open_run, ScoredTrial, 4, validation_period=Batch(2), metric="up")
    start = newest()
    _, result = fit(open_run, ScoredTrial, 8, run_dir="other", start=start, validation_period=Batch(2), metric=metric)
    assert result.best_checkpoint is None or result.best_checkpoint.is_dir()
    assert (result.best_checkpoint is not None) == (metric == "down")


def test_a_misspelt_metric_costs_nothing(open_run: Any) -> None:
    """A second fit that names a metric which is not there fails at once, and the next one goes on as if never asked."""
    whole = run(open_run, batches=10, run_dir="whole")
    context = open_run(run_dir="here")
    trial = LineTrial(context)
    trainer = trainlab.Trainer(trial, context)
    trainer.fit(max_length=Batch(6), metric="loss")
    with pytest.raises(MetricError, match="'los'"):
        trainer.fit(max_length=Batch(10), metric="los")
    assert len(trial.seen) == 6
    result = trainer.fit(max_length=Batch(10), metric="loss")
    assert result.progress.batches_trained == 10 and result.stop_reason == "max_length"
    assert trial.seen == whole.seen
    assert torch.equal(torch.stack(trial.inputs), torch.stack(whole.inputs))
    assert weights(trial) == weights(whole)


# -- another seed, aggregation or data set -------------------------------------------------------


class StoppedTrial(LineTrial):
    """Asks for a stop in its tenth batch, so that a validation due there is left to the resumed run."""

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        if batch_idx == 9:
            self.context.set_stop_requested(True)
        return super().train_batch(batch, epoch_idx, batch_idx)


class ShorterTrial(LineTrial):
    records = 16


class LargerBatches(LineTrial):
    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(line(self.records), batch_size=8, shuffle=True)


class WithWorkers(LineTrial):
    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(line(self.records), batch_size=4, shuffle=True, num_workers=1)


class PlainLoader(LineTrial):
    def build_training_data_loader(self) -> Any:
        return torch.utils.data.DataLoader(line(self.records), batch_size=4)


class ShorterInOrder(ShorterTrial):
    shuffle = False


@pytest.mark.parametrize(
    ("named", "trial_class", "arguments"),
    [
        ("seed was 3 and is 4", LineTrial, {"seed": 4}),
        ("aggregation_frequency was 1 and is 2", LineTrial, {"aggregation_frequency": 2}),
        ("records in the training data set was 64 and is 16", ShorterTrial, {}),
        ("training batch size was 4 and is 8", LargerBatches, {}),
        ("training loader with workers was False and is True", WithWorkers, {}),
        ("precision was 'fp32' and is 'bf16'", LineTrial, {"precision": "bf16"}),
    ],
)
def test_a_resume_that_cannot_be_exact_says_why(
    open_run: Any, caplog: pytest.LogCaptureFixture, named: str, trial_class: type[LineTrial], arguments: Any
) -> None:
    """Whoever resumes with another seed, aggregation or data set reads that, and only that, in a warning."""
    fit(open_run, LineTrial, 3, seed=3)
    assert not [r for r in caplog.records if "goes on otherwise" in r.message]
    fit(open_run, trial_class, 8, **arguments)
    found = [r for r in caplog.records if "goes on otherwise" in r.message and "Trial class" not in r.message]
    assert len(found) == 1 and found[0].levelno == logging.WARNING and named in found[0].message


def test_another_class_of_trial_or_loader_is_named(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever resumes with another Trial class and another loader reads both, and each version that has changed."""
    fit(open_run, LineTrial, 3)
    path = newest()
    with Checkpoint.open(path) as checkpoint:
        content, weights = checkpoint.state(), checkpoint.weights("model")
        details = {"progress": checkpoint.progress, "trial_class": checkpoint.trial_class}
    content["made_with"]["version of torch"] = "1.0"
    elsewhere = write_checkpoint(
        Path("elsewhere"), batches_trained=3, weights={"model": weights}, state=content, details=details
    )
    fit(open_run, PlainLoader, 6, run_dir="new", start=elsewhere)
    told = [record.getMessage() for record in caplog.records if "goes on otherwise" in record.getMessage()]
    wanted = ["Trial class was", "class of the training loader was", "version of torch was '1.0' and is"]
    assert all(any(want in line for line in told) for want in wanted), told


def test_every_difference_is_named(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of several differences each has its warning, and a resume without any has none."""
    fit(open_run, LineTrial, 3, seed=3)
    fit(open_run, LineTrial, 6)
    assert not [r for r in caplog.records if "goes on otherwise" in r.message]
    fit(open_run, ShorterTrial, 9, seed=4, aggregation_frequency=2)
    assert len([r for r in caplog.records if "goes on otherwise" in r.message]) == 4


@pytest.mark.parametrize("trial_class", [ShorterTrial, ShorterInOrder])
@pytest.mark.parametrize("period", [Batch(1), Batch(5), Epoch(1)], ids=str)
def test_a_shorter_data_set_gives_no_step_twice(open_run: Any, trial_class: type[LineTrial], period: Any) -> None:
    """Where the data set ends before the position of the resumed epoch, each step is still recorded once."""
    options = {"reporting_period": period, "validation_period": period, "checkpoint_period": period}
    fit(open_run, StoppedTrial, 20, **options)
    trial, result = fit(open_run, trial_class, 15, **options)
    assert [batch for _, batch in trial.seen] == [10, 11, 12, 13, 14]
    assert len(steps("training")) == len(set(steps("training"))) and {10, 15} <= set(steps("training"))
    assert len(steps("validation")) == len(set(steps("validation")))
    assert result.progress.batches_trained == 15


# -- parameters that come late -------------------------------------------------------------------


class LateGroup(LineTrial):
    """Adds a parameter to the optimizer after it was wrapped; its gradient in each batch is that batch's number."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        self.clipped: list[tuple[int, float]] = []
        super().__init__(context)
        self.optimizer.add_param_group({"params": [self.model.late], "lr": 1.0})

    def build_model(self) -> nn.Module:
        model = nn.Linear(1, 1)
        model.late = nn.Parameter(torch.zeros(()))
        return model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([model.weight, model.bias], lr=0.1)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        loss = nn.functional.mse_loss(self.model(x), y) + self.model.late * batch_idx
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer, clip_grads=self._clip)
        return {"loss": loss}

    def _clip(self, parameters: list[torch.Tensor]) -> None:
        late = next(p for p in parameters if p is self.model.late)
        assert late.grad is not None
        self.clipped.append((len(parameters), late.grad.item()))
        nn.utils.clip_grad_value_(parameters, 2.0)


def test_a_group_added_later_is_averaged_and_clipped(open_run: Any) -> None:
    """Parameters added to a wrapped optimizer are treated as those that were there: averaged, clipped and stepped."""
    trial, _ = fit(open_run, LateGroup, 4, aggregation_frequency=2)
    assert trial.clipped == [(3, 0.5), (3, 2.5)]
    assert trial.model.late.item() == -(0.5 + 2.0)
