"""ValidationMetrics and what evaluate_full_dataset may return."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainlab.errors import MetricError
from trainlab.metrics import MetricRules, Reducer, ValidationMetrics, check_full_dataset


class AnyShapeByBatch(MetricRules):
    """Rules that weigh each batch alike and take any shape, as another framework's do."""

    def check_validation(self, name, value):
        pass

    def weight(self, records):
        return 1.0


def validation(batches, rules=None) -> ValidationMetrics:
    """Give a validation with these metrics and numbers of records."""
    metrics = ValidationMetrics(rules or MetricRules())
    for batch, records in batches:
        metrics.add(batch, records)
    return metrics


def test_the_average_is_the_mean_over_the_data_set_whatever_the_batch_size():
    """101 records in batches of 16 give the mean over the 101 records, not over the 7 batches."""
    records = torch.arange(101, dtype=torch.float64) ** 2
    batches = [({"mean": piece.mean()}, len(piece)) for piece in records.split(16)]
    result = validation(batches).result(Reducer.AVG)
    assert result["mean"] == pytest.approx(records.mean().item(), rel=1e-14)
    assert result["mean"] != pytest.approx(np.mean([batch["mean"] for batch, _ in batches]))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 64)), min_size=1, max_size=20),
    st.sampled_from([1, 30]),
)
def test_results_are_those_of_plain_numpy(batches, repeats):
    """Each reducer agrees with NumPy in float64, in validations of a few and of hundreds of batches."""
    batches = batches * repeats
    names = {"avg": Reducer.AVG, "sum": Reducer.SUM, "max": Reducer.MAX, "min": Reducer.MIN}
    found = validation([(dict.fromkeys(names, torch.tensor(value)), n) for value, n in batches]).result(names)
    values, records = [value for value, _ in batches], [n for _, n in batches]
    assert found["avg"] == pytest.approx(np.average(values, weights=records), abs=1e-9)
    assert found["sum"] == pytest.approx(np.sum(values), abs=1e-6)
    assert (found["max"], found["min"]) == (max(values), min(values))


def test_outputs_are_the_batches_metrics_on_the_host():
    """on_validation_epoch_end sees each batch's own metrics, in order; asking twice gives the same."""
    metrics = validation([({"accuracy": torch.tensor(i / 4), "count": i}, 2) for i in range(4)])
    for _ in range(2):
        outputs = metrics.outputs()
        assert [float(output["accuracy"]) for output in outputs] == [0.0, 0.25, 0.5, 0.75]
        assert [output["count"] for output in outputs] == [0, 1, 2, 3]
        assert isinstance(outputs[0]["accuracy"], np.ndarray)
    assert metrics.result(Reducer.SUM) == {"accuracy": 1.5, "count": 6.0}


def test_empty_metrics_are_fine():
    """A Trial with custom reducers only returns an empty dict."""
    metrics = validation([({}, 2), ({}, 2)])
    assert (metrics.outputs(), metrics.result(Reducer.AVG), len(metrics)) == ([{}, {}], {}, 2)


def test_a_validation_without_a_batch_has_no_result():
    """Nothing evaluated is an error, not an empty result."""
    with pytest.raises(MetricError, match="no batch"):
        validation([]).result(Reducer.AVG)


def test_names_must_be_the_same_in_all_batches():
    """The error names evaluate_batch and the names."""
    with pytest.raises(MetricError, match=r"evaluate_batch.*differing: \['a', 'b'\]"):
        validation([({"a": 1.0}, 1), ({"b": 1.0}, 1)])


@pytest.mark.parametrize("returned", [None, torch.tensor(1.0), [("a", 1)]], ids=repr)
def test_evaluate_batch_returns_a_dict(returned):
    """Anything else is refused with what was received."""
    with pytest.raises(MetricError, match=r"evaluate_batch must return a dict.*Received: "):
        validation([(returned, 1)])


@pytest.mark.parametrize("value", [torch.ones(2), "text", None, [1.0], np.ones(1)], ids=repr)
def test_what_is_no_number_is_refused_with_its_name(value):
    """A validation metric of one batch is one number."""
    with pytest.raises(MetricError, match=r"'odd' returned by evaluate_batch"):
        validation([({"odd": value}, 1)])


def test_a_tensor_changed_in_place_is_found():
    """One running tensor returned for every batch would give its last value as every batch's."""
    metrics, running = validation([]), torch.zeros(())
    for _ in range(3):
        running += 1
        metrics.add({"running": running}, 1)
    with pytest.raises(MetricError, match=r"'running'.*evaluate_batch.*fresh tensor"):
        metrics.result(Reducer.AVG)


def test_metrics_made_in_inference_mode_are_reduced():
    """evaluate_batch may run under torch.inference_mode."""
    with torch.inference_mode():
        metrics = validation([({"a": torch.tensor(float(i))}, 1) for i in range(3)])
    assert metrics.result(Reducer.AVG) == {"a": 1.0}


@pytest.mark.parametrize(
    "reducers",
    [
        {"a": Reducer.AVG},
        {"a": Reducer.AVG, "b": Reducer.SUM, "c": Reducer.MAX},
        {"a": Reducer.AVG, "b": "sum"},
        "avg",
        None,
    ],
    ids=repr,
)
def test_reducers_must_fit_the_metrics(reducers):
    """A dict of reducers has exactly the metrics' names, and values that are Reducers."""
    with pytest.raises(MetricError, match=r"evaluation_reducer must .*Received: "):
        validation([({"a": 1.0, "b": 2.0}, 1)]).result(reducers)


def test_a_wrong_reducer_is_refused_where_there_are_no_metrics():
    """The mistake is told also if evaluate_batch returns nothing yet."""
    with pytest.raises(MetricError, match="must give a Reducer"):
        validation([({}, 1)]).result("avg")


def test_tolerant_rules_reduce_over_all_elements_by_batches():
    """Rules of another framework: 5 records in batches of 2 weigh alike, a metric of shape (2,) gives one number."""
    batches = [({"a": torch.tensor([i, i + 2.0]), "b": i}, n) for i, n in enumerate([2, 2, 1])]
    assert validation(batches, AnyShapeByBatch()).result(Reducer.AVG) == {"a": 2.0, "b": 1.0}
    assert validation(batches, AnyShapeByBatch()).result(Reducer.MAX) == {"a": 4.0, "b": 2.0}


def test_shapes_that_differ_among_batches_are_refused():
    """Also rules that take any shape need one shape for all batches."""
    metrics = validation([({"a": torch.ones(2)}, 1), ({"a": torch.ones(3)}, 1)], AnyShapeByBatch())
    with pytest.raises(MetricError, match=r"'a'.*\(2,\), \(3,\)"):
        metrics.result(Reducer.AVG)


def test_the_result_of_a_full_dataset_is_numbers_by_name():
    """Numbers of any kind come out as floats."""
    result = check_full_dataset({"a": torch.tensor(1), "b": np.float32(0.5), "c": 2}, MetricRules())
    assert result == {"a": 1.0, "b": 0.5, "c": 2.0}
    assert {type(value) for value in result.values()} == {float}


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "must return a dict"),
        (1.0, "must return a dict"),
        ({"odd": torch.ones(3)}, r"'odd'.*shape \(3,\)"),
        ({"odd": None}, "'odd'"),
        ({1: 1}, "must be str"),
    ],
    ids=repr,
)
def test_anything_else_from_a_full_dataset_is_refused(returned, told):
    """The error names the hook and the metric."""
    with pytest.raises(MetricError, match=told) as caught:
        check_full_dataset(returned, MetricRules())
    assert "evaluate_full_dataset" in str(caught.value)
