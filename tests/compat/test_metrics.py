"""Metrics as Determined takes them, and custom reducers."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.compat.trials import OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch, Reducer


class Metrics(OneWeightTrial):
    """Returns what the test says, for 5 records in batches of 2: three batches, the last one short."""

    records, batch_size = 5, 2
    training: Any = None
    validation: Any = None
    reducer: Any = Reducer.AVG

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        loss = super().train_batch(batch, epoch_idx, batch_idx)
        return loss if self.training is None else self.training(batch_idx)

    def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
        return {"value": float(batch_idx)} if self.validation is None else self.validation(batch_idx)

    def evaluation_reducer(self) -> Any:
        return self.reducer


def run(context: Any, **parts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The averages of a window of three batches, and the metrics of the validation after it."""
    trial = Metrics(context)
    for name, part in parts.items():
        setattr(trial, name, part)
    _, counter = fit(context, trial, max_length=Batch(3))
    return counter.given("on_training_workload_end")[0][0], counter.given("on_validation_end")[0]


@pytest.mark.parametrize(
    ("values", "average"),
    [
        ([1.0, 2.0, 6.0], 3.0),
        ([torch.tensor(1), torch.tensor(2), torch.tensor(6)], 3.0),
        ([torch.tensor([[1.0], [2.0], [3.0], [4.0]])] * 3, 2.5),
        ([torch.tensor([0.0]), torch.tensor([1.0, 2.0]), 3.0], 1.5),
        ([1.0, None, 3.0], 2.0),
        ([None, np.ones(2), None], 1.0),
        ([None, None, None], None),
        (["a", "b", "c"], None),
        ([True, False, True], 2 / 3),
        ([{"not": "a number"}] * 3, None),
    ],
)
def test_training_metrics_are_averaged_over_all_elements(open_run: Open, values: list[Any], average: Any) -> None:
    """Whatever train_batch returns: numbers of any shape are averaged, gaps left out, and text is None, no error."""
    context = open_run()
    averages, _ = run(context, training=lambda i: {"value": values[i]})
    assert averages["value"] == (None if average is None else pytest.approx(average))
    context.session.series.flush()
    (line,) = [r for r in _lines(context) if r["kind"] == "training"]
    assert line["metrics"]["value"] == (None if average is None else pytest.approx(average))


def test_a_single_tensor_is_the_loss(open_run: Open) -> None:
    """train_batch may return one tensor, which is then named loss."""
    averages, _ = run(open_run(), training=lambda i: torch.tensor(float(i)))
    assert averages == {"batches": 3, "epochs": 1, "loss": 1.0}


@pytest.mark.parametrize("returned", [None, 1.0, [torch.ones(1)], "loss"])
def test_other_returns_are_errors(open_run: Open, returned: Any) -> None:
    """A train_batch that returns neither a dict nor a tensor is told so."""
    context = open_run()

    class Returning(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            return returned

    with pytest.raises(ValueError, match="train_batch must return"):
        fit(context, Returning(context), max_length=Batch(1))


def test_names_stay_the_same_in_a_window(open_run: Open) -> None:
    """Batches of one window with different names are an error that names the difference."""
    with pytest.raises(ValueError, match="'b'"):
        run(open_run(), training=lambda i: {"a": 1.0} if i < 2 else {"b": 1.0})


@pytest.mark.parametrize(
    ("reducer", "number"), [(Reducer.AVG, 1.0), (Reducer.SUM, 3.0), (Reducer.MAX, 2.0), (Reducer.MIN, 0.0)]
)
def test_validation_metrics_are_reduced_by_batches(open_run: Open, reducer: Reducer, number: float) -> None:
    """5 records in batches of 2 with values 0, 1, 2 average to 1.0: a short last batch weighs as much as the others."""
    assert run(open_run(), reducer=reducer)[1] == {"value": number}
    assert run(open_run(), reducer={"value": reducer})[1] == {"value": number}


def test_numbers_are_numpys(open_run: Open) -> None:
    """Callbacks may call .item() on what they get, as on Determined, and use it as a float."""
    averages, metrics = run(open_run(), training=lambda i: {"value": torch.ones(())})
    for number in (averages["value"], metrics["value"]):
        assert number.item() == 1.0 and isinstance(number, float)


def test_validation_metrics_of_any_shape_become_one_number(open_run: Open) -> None:
    """A metric of shape (2,) is reduced over all its elements."""
    _, metrics = run(open_run(), validation=lambda i: {"pair": torch.tensor([0.0, 10.0 * i]), "one": np.ones((1, 1))})
    assert metrics == {"pair": 5.0, "one": 1.0}


@pytest.mark.parametrize(
    "validation",
    [
        lambda i: {"value": torch.ones(i + 1)},
        lambda i: {"value": None},
        lambda i: {"value": "text"},
        lambda i: {"a" if i else "b": 1.0},
        lambda i: 1.0,
    ],
)
def test_validation_metrics_that_cannot_be_reduced(open_run: Open, validation: Any) -> None:
    """Shapes or names that differ, None and text are errors at the validation."""
    with pytest.raises(ValueError):
        run(open_run(), validation=validation)


@pytest.mark.parametrize(
    "reducer", [{}, {"other": Reducer.AVG}, {"value": Reducer.AVG, "b": Reducer.AVG}, {"value": "avg"}, "avg"]
)
def test_reducers_name_exactly_the_metrics(open_run: Open, reducer: Any) -> None:
    """Reducers for other names than the metrics', or that are none, are errors."""
    with pytest.raises(ValueError, match="evaluation_reducer"):
        run(open_run(), reducer=reducer)


def test_an_empty_dict_is_fine(open_run: Open) -> None:
    """A Trial whose metrics all come from reducers returns an empty dict from evaluate_batch."""
    assert run(open_run(), validation=lambda i: {})[1] == {}


class AtOnce(OneWeightTrial):
    """Evaluates the whole data set at once."""

    returned: Any = None
    evaluate_batch = pytorch.PyTorchTrial.evaluate_batch

    def evaluate_full_dataset(self, data_loader: Any) -> Any:
        if self.returned is not None:
            return self.returned
        assert not self.model.training and not torch.is_grad_enabled() and len(data_loader) == 16
        losses = [torch.nn.functional.mse_loss(self.model(x), y) for x, y, _ in data_loader]
        return {"loss": torch.stack(losses).mean()}


def test_the_whole_data_set_at_once_gives_the_same(open_run: Open) -> None:
    """evaluate_full_dataset gets the loader, with a length, and gives what evaluate_batch gives for equal batches."""
    context = open_run()
    _, counter = fit(context, AtOnce(context), max_length=Batch(3))
    _, by_batch = fit(open_run(), max_length=Batch(3))
    (metrics,), (expected,) = counter.given("on_validation_end"), by_batch.given("on_validation_end")
    assert float(metrics["loss"]) == pytest.approx(expected["loss"])
    assert counter.count("on_validation_epoch_start") == counter.count("on_validation_epoch_end") == 0
    assert isinstance(metrics["loss"], np.ndarray)


def test_what_a_full_evaluation_returns_is_passed_on(open_run: Open) -> None:
    """Lists, arrays and text beside numbers reach the callbacks, the records and the checkpoint."""
    context = open_run(run_dir="run")
    trial = AtOnce(context)
    trial.returned = {"loss": torch.tensor(0.5), "curve": [1.0, 2.0], "matrix": np.eye(2), "note": "fine", "count": 3}
    _, counter = fit(context, trial, max_length=Batch(3))
    (metrics,) = counter.given("on_validation_end")
    assert metrics["curve"] == [1.0, 2.0] and metrics["matrix"].tolist() == [[1, 0], [0, 1]]
    assert metrics["note"] == "fine" and metrics["count"] == 3 and metrics["loss"] == 0.5
    context.close()
    (line,) = [r for r in _lines(context) if r["kind"] == "validation"]
    assert line["metrics"]["loss"] == 0.5 and line["metrics"]["count"] == 3
    context = open_run(run_dir="run")
    trial, _ = fit(context, AtOnce(context), max_length=Batch(4), latest_checkpoint=context.latest_checkpoint)
    assert trial.seen == [(0, 3)]


@pytest.mark.parametrize(("returned", "metric"), [({"loss": [1.0, 2.0]}, "loss"), ({"loss": 1.0}, "accuracy")])
def test_the_metric_that_judges_must_be_one_number(open_run: Open, returned: Any, metric: str) -> None:
    """The metric named to fit must be there and be one number; the error lists what there is."""
    context = open_run()
    trial = AtOnce(context)
    trial.returned = returned
    with pytest.raises(ValueError, match="loss"):
        fit(context, trial, max_length=Batch(1), metric=metric)


def test_none_from_a_full_evaluation_is_an_error(open_run: Open) -> None:
    """A validation metric without a value is found when it is reported."""
    context = open_run()
    trial = AtOnce(context)
    trial.returned = {"loss": None}
    with pytest.raises(ValueError, match="'loss'"):
        fit(context, trial, max_length=Batch(1))


def test_an_empty_validation_set_is_an_error(open_run: Open) -> None:
    """A validation loader without a batch is told of."""

    class Empty(OneWeightTrial):
        def build_validation_data_loader(self) -> Any:
            return pytorch.DataLoader(torch.utils.data.TensorDataset(torch.ones(0, 1)), batch_size=4)

    context = open_run()
    with pytest.raises(ValueError, match="empty"):
        fit(context, Empty(context), max_length=Batch(1))


class MeanAndCount(pytorch.MetricReducer):
    """The mean of all values, and how many there were."""

    def __init__(self) -> None:
        self.resets = 0
        self.values: list[float] = []

    def reset(self) -> None:
        self.resets += 1
        self.values = []

    def update(self, value: float) -> None:
        self.values.append(value)

    def per_slot_reduce(self) -> Any:
        return sum(self.values), len(self.values)

    def cross_slot_reduce(self, per_slot_metrics: Any) -> Any:
        sums, counts = zip(*per_slot_metrics, strict=True)
        return {"mean": sum(sums) / max(sum(counts), 1), "count": sum(counts)}


class Reducing(OneWeightTrial):
    """Updates a class and two functions, each batch with its own index."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.own = context.wrap_reducer(MeanAndCount())
        self.largest = context.wrap_reducer(max, name="largest", for_training=False)
        self.joined = context.wrap_reducer(
            lambda values: ",".join(map(str, values)), name="joined", for_validation=False
        )

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        self.own.update(batch_idx)
        self.joined.update(batch_idx)
        return super().train_batch(batch, epoch_idx, batch_idx)

    def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
        self.own.update(100.0)
        self.largest.update(batch_idx)
        return {}


def test_reducers_see_their_own_window(open_run: Open) -> None:
    """Custom reducers begin anew with every window and every validation, and their results join the metrics."""
    context = open_run()
    trial, counter = fit(context, Reducing(context), max_length=Batch(8), validation_period=Batch(4))
    reports = [averages for averages, _ in counter.given("on_training_workload_end")]
    assert [(r["mean"], r["count"], r["joined"]) for r in reports] == [(1.5, 4, "0,1,2,3"), (5.5, 4, "4,5,6,7")]
    assert counter.given("on_validation_end") == [{"mean": 100.0, "count": 16, "largest": 15}] * 2
    assert isinstance(trial.own, MeanAndCount)


def test_reducers_may_give_more_than_a_number(open_run: Open) -> None:
    """A reducer's matrix or text reaches the callbacks, tensors as arrays, and training and recording go on."""
    context = open_run()
    trial = OneWeightTrial(context)
    context.wrap_reducer(lambda values: {"confusion": torch.eye(2), "note": "text", "curve": [1, 2]})
    _, counter = fit(context, trial, max_length=Batch(2))
    for metrics in (counter.given("on_training_workload_end")[0][0], counter.given("on_validation_end")[0]):
        assert isinstance(metrics["confusion"], np.ndarray) and metrics["confusion"].tolist() == [[1, 0], [0, 1]]
        assert metrics["note"] == "text" and metrics["curve"] == [1, 2]
    context.close()
    assert [line["kind"] for line in _lines(context)] == ["training", "validation"]


def test_reducers_work_by_hand(open_run: Open) -> None:
    """reset_reducers and reduce_metrics do by hand what happens at reports, also under their old place."""
    context = open_run()
    trial = Reducing(context)
    trial.largest.update(3)
    trial.largest.update(2)
    assert context.reduce_metrics(for_training=False) == {"mean": 0.0, "count": 0, "largest": 3}
    context.reset_reducers()
    trial.own.update(1.0)
    assert context.experimental.reduce_metrics(for_training=True) == {"mean": 1.0, "count": 1, "joined": ""}
    context.experimental.reset_reducers()
    assert trial.own.values == []
    assert context.experimental.wrap_reducer(MeanAndCount(), for_training=False) is not None


def test_a_name_and_a_dict_exclude_each_other(open_run: Open) -> None:
    """Without a name a reducer must give a dict, with one it must not: an error at the first reduction."""
    for reducer, name, fault in ((MeanAndCount(), "name", "leave name= out"), (len, None, "pass name=")):
        context = open_run()
        context.wrap_reducer(reducer, name=name)
        with pytest.raises(ValueError, match=fault):
            context.reduce_metrics(for_training=True)


def test_what_is_no_reducer_is_refused(open_run: Open) -> None:
    """Anything but a reducer or a function, and the same object twice, are errors at once."""
    context = open_run()
    own = context.wrap_reducer(MeanAndCount())
    with pytest.raises(ValueError):
        context.wrap_reducer(own)
    with pytest.raises(TypeError):
        context.wrap_reducer(3)  # type: ignore[arg-type]


def test_an_error_in_a_reducer_names_it(open_run: Open) -> None:
    """An exception inside a reducer becomes a ValueError that names its class, its name and the method."""

    class Faulty(MeanAndCount):
        def per_slot_reduce(self) -> Any:
            raise ZeroDivisionError

    context = open_run()
    context.wrap_reducer(Faulty(), name="mine")
    with pytest.raises(ValueError, match=r"per_slot_reduce.*Faulty.*'mine'"):
        context.reduce_metrics(for_training=True)


def test_reducers_can_be_wrapped_until_fit(open_run: Open) -> None:
    """wrap_reducer works outside __init__, up to the moment that fit starts."""
    context = open_run()
    trial = OneWeightTrial(context)
    context.wrap_reducer(MeanAndCount())
    _, counter = fit(context, trial, max_length=Batch(1))
    assert counter.given("on_validation_end")[0]["count"] == 0
    with pytest.raises(RuntimeError, match="before fit"):
        context.wrap_reducer(MeanAndCount())


def _lines(context: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.run_dir / "metrics.jsonl").read_text().splitlines()]
