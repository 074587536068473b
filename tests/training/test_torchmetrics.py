"""torchmetrics objects go on counting where they were."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics import classification, wrappers
from torchmetrics.segmentation import MeanIoU

import trainlab
from tests.training.trials import LineTrial
from trainlab import Batch
from trainlab.errors import CheckpointMismatchError, InvalidValueError, MetricError

pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all:UserWarning")


class Drift(torchmetrics.Metric):
    """A metric of a user's: needs its whole state in each update, and counts in a plain attribute too."""

    full_state_update = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("last", torch.zeros(1), dist_reduce_fx=None)
        self.add_state("moved", torch.zeros(1), dist_reduce_fx="sum")
        self.calls = 0

    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.calls += 1
        self.moved += (x.mean() - self.last).abs()
        self.last = x.mean().reshape(1)

    def compute(self) -> torch.Tensor:
        return self.moved / self.calls


class Gauge(nn.Module):
    """A module of a user's with a metric inside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.mean = torchmetrics.MeanMetric()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.mean(x) + self.seen


def regressions() -> dict[str, nn.Module]:
    return {
        "sums": torchmetrics.MeanSquaredError(),
        "lists": torchmetrics.SpearmanCorrCoef(),
        "lists, persistent": persistent(torchmetrics.SpearmanCorrCoef()),
        "whole state": torchmetrics.PearsonCorrCoef(),
        "user's": Drift(),
        "composition": torchmetrics.MeanSquaredError() + torchmetrics.MeanAbsoluteError() * 2,
        "least and most": wrappers.MinMaxMetric(torchmetrics.MeanSquaredError()),
        "module": Gauge(),
        "group": torchmetrics.MetricCollection(
            {"mse": torchmetrics.MeanSquaredError(), "rmse": torchmetrics.MeanSquaredError(squared=False)}
        ),
    }


def classifications() -> dict[str, nn.Module]:
    def options(**more: Any) -> dict[str, Any]:
        return {"num_classes": 3, "validate_args": False, **more}

    return {
        "classwise": wrappers.ClasswiseWrapper(classification.MulticlassAccuracy(**options(average=None))),
        "groups": torchmetrics.MetricCollection(
            classification.MulticlassPrecision(**options(average="macro")),
            classification.MulticlassRecall(**options(average="macro")),
            classification.MulticlassConfusionMatrix(**options()),
        ),
    }


def persistent(metric: torchmetrics.Metric) -> torchmetrics.Metric:
    metric.persistent(True)
    return metric


def exactly(value: Any) -> Any:
    """The same in numbers that compare to the last bit."""
    if isinstance(value, dict):
        return {name: exactly(one) for name, one in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


class MeasuredTrial(LineTrial):
    """Measures with everything at each batch."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        super().__init__(context)
        self.regressions, self.classifications = regressions(), classifications()
        self.running = wrappers.Running(torchmetrics.SumMetric(), window=3)
        self.tracker = wrappers.MetricTracker(torchmetrics.MeanSquaredError())
        self.iou = MeanIoU(per_class=True)
        found = {**self.regressions, **self.classifications, "running": self.running, "tracker": self.tracker}
        for name, metric in {**found, "iou": self.iou}.items():
            assert context.register_stateful(name, metric) is metric
        self.values: list[Any] = []

    def build_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(1, 1))
        model.inner = torchmetrics.MetricCollection([torchmetrics.SpearmanCorrCoef(), torchmetrics.MeanSquaredError()])
        model.forward = model[0].forward
        return model

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        classes, scores = (3 * x[:, 0]).long(), torch.cat([x, y, 1 - x], 1).abs()
        found = {name: metric(x[:, 0], y[:, 0]) for name, metric in self.regressions.items()}
        found |= {name: metric(scores, classes) for name, metric in self.classifications.items()}
        found["running"] = self.running(x)
        if batch_idx % 4 == 0:
            self.tracker.increment()
        found["tracker"] = self.tracker(x, y)
        images = (torch.stack([x > 0.5, y > 2])[None].expand(2, 2, -1, 1), torch.stack([x > 0.4, y > 1])[None])
        if batch_idx == 9:
            self.iou.reset()
        found["iou"] = self.iou(images[0].long(), images[1].expand(2, 2, -1, 1).long())
        found["inner"] = self.model.inner(x[:, 0], y[:, 0])
        self.values.append(exactly(found))
        return super().train_batch(batch, epoch_idx, batch_idx)

    def totals(self) -> Any:
        """What everything comes to."""
        metrics = {**self.regressions, **self.classifications, "running": self.running, "iou": self.iou}
        metrics["module"] = metrics["module"].mean
        found = {name: metric.compute() for name, metric in metrics.items()}
        return exactly({**found, "tracker": self.tracker.compute_all(), "inner": self.model.inner.compute()})


def measured(run: Any, length: int) -> MeasuredTrial:
    with run as context:
        trial = MeasuredTrial(context)
        latest = context.latest_checkpoint
        trainlab.Trainer(trial, context).fit(max_length=Batch(length), latest_checkpoint=latest)
    return trial


def test_metrics_go_on_where_they_were(open_run: Any) -> None:
    """Every kind of metric, registered or inside a model, gives after a resume what it gives without one."""
    whole = measured(open_run(run_dir="whole"), 13)
    cut = [measured(open_run(run_dir="cut"), length) for length in (1, 6, 13)]
    assert [value for trial in cut for value in trial.values] == whole.values
    assert cut[-1].totals() == whole.totals()


def test_what_a_user_made_persistent_stays_as_it_is(open_run: Any) -> None:
    """A model's weights have no keys for its metrics, unless they were made persistent."""
    trial = measured(open_run(), 2)
    assert list(trial.model.state_dict()) == ["0.weight", "0.bias"]
    assert list(trial.regressions["lists, persistent"].state_dict()) == ["preds", "target"]


def test_an_earlier_state_replaces_a_later_one(open_run: Any) -> None:
    """A metric that has gone on is put back as a whole, and shares no memory with the state."""
    context = open_run()
    metric = context.register_stateful("drift", Drift())
    metric.update(torch.ones(2), torch.ones(2))
    states = context.stateful["drift"]
    saved = copy.deepcopy(states.state_dict())
    for _ in range(2):
        for number in (3.0, 5.0):
            metric.update(torch.full((2,), number), torch.ones(2))
        metric.compute()  # which it would keep
        states.load_state_dict(saved)
        assert (metric.calls, metric.update_count, float(metric.compute())) == (1, 1, 1.0)
    fresh = context.register_stateful("fresh", Drift())
    states.load_state_dict(context.stateful["fresh"].state_dict())
    assert (metric.calls, metric.update_count, fresh.calls) == (0, 0, 0)


class Times(torchmetrics.Metric):
    """A sum of multiples."""

    full_state_update = False

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, x: torch.Tensor) -> None:
        self.total += self.factor * x.sum()

    def compute(self) -> torch.Tensor:
        return self.total


def test_metrics_that_happen_to_agree_stay_apart(open_run: Any) -> None:
    """Two metrics of a collection whose states are equal by chance after a resume are not taken for one."""
    context = open_run()
    collections = []
    for name in ("before", "after"):
        collection = torchmetrics.MetricCollection({"once": Times(1), "twice": Times(2)})
        collections.append(context.register_stateful(name, collection))
    collections[0].update(torch.ones(1))
    context.stateful["after"].load_state_dict(context.stateful["before"].state_dict())
    for x in (-1.0, 1.0):
        collections[1].update(torch.tensor(x))
    assert collections[1].compute() == {"once": 1, "twice": 2}


def test_other_metrics_are_refused(open_run: Any) -> None:
    """A checkpoint of other metrics is refused, naming both."""
    context = open_run()
    context.register_stateful("one", torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()]))
    two = [torchmetrics.MeanSquaredError(), torchmetrics.SpearmanCorrCoef()]
    context.register_stateful("two", torchmetrics.MetricCollection(two))
    with pytest.raises(CheckpointMismatchError, match="MeanSquaredError.*Here.*SpearmanCorrCoef"):
        context.stateful["two"].load_state_dict(context.stateful["one"].state_dict())


class ReducedTrial(LineTrial):
    """Has a metric and a collection of torchmetrics as reducers."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        super().__init__(context)
        self.spread = context.wrap_reducer(torchmetrics.SpearmanCorrCoef(), "spread", for_training=False)
        self.metrics = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanMetric()])
        context.wrap_reducer(self.metrics, for_validation=False)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        self.metrics["MeanSquaredError"].update(*batch)
        self.metrics["MeanMetric"].update(batch[0])
        return super().train_batch(batch, epoch_idx, batch_idx)

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.spread.update(batch[0][:, 0], batch[1][:, 0])
        return super().evaluate_batch(batch, batch_idx)


def test_a_metric_can_be_a_reducer(open_run: Any) -> None:
    """A torchmetrics object given to wrap_reducer is computed over each window or validation, and reset before it."""
    windows: list[dict[str, Any]] = []

    class Watcher(trainlab.Callback):
        def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: list[dict[str, Any]]) -> None:
            windows.append(avg_metrics)

    with open_run() as context:
        trial = ReducedTrial(context)
        trial.callbacks["watcher"] = Watcher()
        result = trainlab.Trainer(trial, context).fit(
            max_length=Batch(4), reporting_period=Batch(2), validation_period=Batch(2)
        )
    x, y = (torch.cat(column)[:, 0] for column in zip(*trial.build_validation_data_loader(), strict=True))
    assert result.metrics["spread"] == float(torchmetrics.functional.spearman_corrcoef(x, y))
    means = [float(torch.cat(trial.inputs[low : low + 2]).mean()) for low in (0, 2)]
    assert [window["MeanMetric"] for window in windows] == pytest.approx(means)


def test_a_metric_as_a_reducer_is_wrapped_once(open_run: Any) -> None:
    """The same torchmetrics object cannot be two reducers, and a collection has no one name."""
    context = open_run()
    metric = torchmetrics.MeanMetric()
    context.wrap_reducer(metric, "mean")
    with pytest.raises(InvalidValueError, match="wrapped once"):
        context.wrap_reducer(metric, "again")
    context.reducers.reset()
    collection = context.wrap_reducer(torchmetrics.MetricCollection([torchmetrics.MeanMetric()]), "named")
    for one in (metric, collection):
        one.update(torch.ones(1))
    with pytest.raises(MetricError, match="leave name= out"):
        context.reducers.reduce(for_training=True)


def test_torchmetrics_is_not_imported(tmp_path: Path) -> None:
    """A program that does not use torchmetrics does not import it."""
    program = (
        "import sys, torch, trainlab\n"
        "with trainlab.init(run_dir=sys.argv[1], progress=False, device='cpu') as context:\n"
        "    context.wrap_model(torch.nn.Linear(1, 1)); context.register_stateful('a', torch.nn.Linear(1, 1))\n"
        "    context.wrap_reducer(sum, 'sum')\n"
        "assert 'torchmetrics' not in sys.modules and 'torchdata' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
