"""What the ranks of a test do: measure a model in every way that trainlab knows."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch.nn import functional as F

import trainlab
from tests.training.exactness import lines
from tests.training.jobs import Noted
from trainlab import Batch, MetricReducer


class Mean(MetricReducer):
    """The mean over all records of a number."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.records, self.total = 0, 0

    def update(self, numbers: torch.Tensor) -> None:
        self.records += len(numbers)
        self.total += int(numbers.sum())

    def per_slot_reduce(self) -> Any:
        return self.records, self.total

    def cross_slot_reduce(self, per_slot_metrics: list[Any]) -> Any:
        records, totals = zip(*per_slot_metrics, strict=True)
        return {"mean_number": sum(totals) / sum(records), "records": float(sum(records))}


def in_order(values: list[float]) -> float:
    """A number that is another one in any other order."""
    return sum(value * 0.9**index for index, value in enumerate(values))


class Measured(Noted):
    """Measures by returned metrics, a function, a MetricReducer, and torchmetrics objects with sums and with lists."""

    def __init__(self, context: Any, options: Mapping[str, Any]) -> None:
        super().__init__(context, options)
        self.mean = context.wrap_reducer(Mean())
        self.ordered = context.wrap_reducer(in_order, name="in_order", for_training=False)
        self.sum = context.wrap_reducer(sum, name="sum", for_validation=False)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.rank_correlation = torchmetrics.SpearmanCorrCoef()
        context.wrap_reducer(self.accuracy, name="tm_accuracy")
        context.wrap_reducer(self.rank_correlation, name="tm_spearman")

    def _train_one(self, x: torch.Tensor, y: torch.Tensor, batch_idx: int) -> Any:
        found = super()._train_one(x, y, batch_idx)
        with torch.no_grad():
            self._measure(x, y)
        self.sum.update(float(len(x)) * bool(self.context.loss_weight))
        return found

    def _measure(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.mean.update(y)
        self.accuracy.update(x[:, :3], y)
        self.rank_correlation.update(x[:, 0], x[:, 1])

    def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
        found = super().evaluate_batch(batch, batch_idx)
        x, y, _ = batch
        self._measure(x, y)
        self.ordered.update(float(x.sum()))
        scores = self.model(x)
        return {**found, "worst": F.cross_entropy(scores, y, reduction="none").max(), "number": float(batch_idx)}


class AtOnce(Noted):
    """Evaluates the whole data set itself."""

    def __init__(self, context: Any, options: Mapping[str, Any]) -> None:
        self.calls = 0
        super().__init__(context, options)

    evaluate_batch = trainlab.Trial.evaluate_batch

    def evaluate_full_dataset(self, data_loader: Any) -> Any:
        self.calls += 1
        losses = [F.cross_entropy(self.model(x), y, reduction="sum") for x, y, _ in data_loader]
        return {"loss": sum(losses) / self.options.get("validated", 101)}


def measure(folder: str, cases: Mapping[str, Mapping[str, Any]], ways: list[str]) -> dict[str, dict[str, Any]]:
    """Measure with each way of sharing a model."""
    return {way: _measure(f"{folder}/{way}", cases, way) for way in ways}


def _measure(folder: str, cases: Mapping[str, Mapping[str, Any]], parallel: str) -> dict[str, Any]:
    """Evaluate fixed weights in each case, then train, and evaluate the whole data set at once."""
    found: dict[str, Any] = {"evaluated": {}, "batches": {}}
    arguments: dict[str, Any] = {"progress": False, "parallel": parallel}
    for name, options in cases.items():
        with trainlab.init(run_dir=f"{folder}/{name}", **arguments) as context:
            trial = Measured(context, options)
            found["evaluated"][name] = trainlab.Trainer(trial, context).evaluate()
            found["batches"][name] = trial.evaluated
    periods = {"validation_period": Batch(5), "reporting_period": Batch(3)}
    with trainlab.init(run_dir=f"{folder}/trained", **arguments) as context:
        trial = Measured(context, {"records": 50})
        result = trainlab.Trainer(trial, context).fit(max_length=Batch(10), **periods)
        found["metrics"] = result.metrics
    with trainlab.init(run_dir=f"{folder}/at once", **arguments) as context:
        full = AtOnce(context, {})
        trainer = trainlab.Trainer(full, context)
        found["at once"], found["calls"] = trainer.evaluate(), full.calls
        found["at once, trained"] = trainer.fit(max_length=Batch(3)).metrics
    found["lines"] = lines(Path(folder) / "trained")
    return found
