"""ValidationMetrics and what evaluate_full_dataset may return."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.threads import dealt, on_ranks
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


WILD = st.floats(-1e9, 1e9) | st.sampled_from([float("nan"), float("inf")])


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), WILD, st.integers(1, 64), st.integers(0, 4)),
        min_size=1,
        max_size=30,
    ),
    ranks=st.integers(1, 5),
    as_tensors=st.booleans(),
)
def test_any_dealing_to_any_number_of_ranks_gives_the_same_to_the_last_bit(batches, ranks, as_tensors):
    """However the batches are dealt out to 1 to 5 ranks, every reducer gives what one process gives, bit by bit."""
    names = {"avg": Reducer.AVG, "sum": Reducer.SUM, "max": Reducer.MAX, "min": Reducer.MIN, "wild": Reducer.AVG}

    def evaluate(exchange, rank, size):
        metrics = ValidationMetrics(MetricRules())
        for number, (value, wild, records, deal) in enumerate(batches):
            if deal % size == rank:
                kept = {name: torch.tensor(value) if as_tensors else value for name in names}
                metrics.add({**kept, "wild": wild}, records, number)
        return metrics.result(names, exchange)

    found = dealt(ranks, lambda exchange: evaluate(exchange, exchange.rank, ranks))
    assert repr(found) == repr(evaluate(None, 0, 1))


RECORDS = torch.randn(101, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def evaluated(exchange, batch_size):
    """Evaluate the 101 records in whole batches, of which each rank gets every size-th."""
    metrics = ValidationMetrics(MetricRules())
    for number, piece in enumerate(RECORDS.split(batch_size)):
        if number % exchange.size == exchange.rank:
            batch = {"loss": piece.square().mean(), "accuracy": (piece > 0).float().mean(), "high": piece.max()}
            metrics.add(batch, len(piece), number)
    reducers = {"loss": Reducer.AVG, "accuracy": Reducer.AVG, "high": Reducer.MAX}
    return metrics.result(reducers, exchange)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [16, 1, 7, 50, 101, 200])
def test_validation_is_exact_on_any_number_of_ranks_and_in_any_batch_size(ranks, batch_size):
    """101 records in batches of 16 on 1 to 4 ranks, also with fewer batches than ranks: each record counts once."""
    found = dealt(ranks, lambda exchange: evaluated(exchange, batch_size))
    assert found == dealt(1, lambda exchange: evaluated(exchange, batch_size))
    assert found["loss"] == pytest.approx(RECORDS.square().mean().item(), abs=1e-12)
    assert found["accuracy"] == pytest.approx((RECORDS > 0).double().mean().item(), abs=1e-7)
    assert found["high"] == RECORDS.max().item()


def test_batches_without_a_number_are_taken_by_their_place_on_each_rank():
    """Ranks that each evaluate a set of their own, as shards, give the mean over all records, first batches first."""

    def evaluate(exchange):
        metrics = validation([({"a": exchange.rank * 10.0 + i}, 1 + i) for i in range(1 + exchange.rank)])
        return metrics.result(Reducer.AVG, exchange)

    assert dealt(3, evaluate) == {"a": pytest.approx(np.average([0, 10, 11, 20, 21, 22], weights=[1, 1, 2, 1, 2, 3]))}

    def add_up(exchange):
        values = [1e16, 1.0] if exchange.rank == 0 else [-1e16]
        return validation([({"a": value}, 1) for value in values]).result(Reducer.SUM, exchange)

    assert dealt(2, add_up) == {"a": 1.0}


def test_ranks_without_a_batch_take_part_in_the_exchange_alone():
    """More ranks than batches: all get the result; without a batch on any rank all get the error."""

    def evaluate(exchange, holder):
        own = [({"a": 2.0, "b": torch.tensor(3)}, 4)] if exchange.rank == holder else []
        return validation(own).result(Reducer.SUM, exchange)

    assert dealt(4, lambda exchange: evaluate(exchange, 2)) == {"a": 2.0, "b": 3.0}
    assert ["no batch" in str(error) for error in on_ranks(3, lambda exchange: evaluate(exchange, None))] == [True] * 3


def test_empty_metrics_are_fine_on_several_ranks():
    """A Trial with custom reducers only returns an empty dict on every rank."""
    assert dealt(2, lambda exchange: validation([({}, 2)]).result(Reducer.AVG, exchange)) == {}


def test_the_outputs_stay_those_of_the_rank():
    """on_validation_epoch_end sees the rank's own batches, before and after the ranks have agreed on the result."""

    def evaluate(exchange):
        metrics = validation([({"a": exchange.rank}, 1)] * 2)
        return metrics.outputs(), metrics.result(Reducer.AVG, exchange), metrics.outputs()

    expected = [([{"a": rank}] * 2, {"a": 0.5}, [{"a": rank}] * 2) for rank in range(2)]
    assert on_ranks(2, evaluate) == expected


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ({"a": 1.0, "c": 1.0}, r"same names on all ranks.*\['a', 'b'\] on rank 0, \['a', 'c'\] on rank 2"),
        ({"a": 1.0, "b": "text"}, r"'b' holds something that is no real number.*text|Rank 2 of 3.*'b' holds"),
    ],
)
def test_what_does_not_fit_on_one_rank_is_an_error_on_all(returned, told):
    """No rank waits for one that has other metrics, or some that cannot be reduced; the error says which it is."""

    def evaluate(exchange):
        batch = returned if exchange.rank == 2 else {"a": 1.0, "b": 1.0}
        return validation([(batch, 1)], AnyShapeByBatch()).result(Reducer.AVG, exchange)

    for error in on_ranks(3, evaluate):
        assert isinstance(error, MetricError) and re.search(told, str(error))


def test_wrong_reducers_are_told_also_where_there_is_no_batch():
    """evaluation_reducer is checked against the metrics of all ranks."""

    def evaluate(exchange):
        own = [({"a": 1.0}, 1)] if exchange.rank == 0 else []
        return validation(own).result({"b": Reducer.AVG}, exchange)

    assert ["evaluation_reducer must name" in str(error) for error in on_ranks(2, evaluate)] == [True] * 2


def test_tolerant_rules_weigh_each_batch_alike_on_several_ranks():
    """Determined's mean: over the batches of all ranks, whatever their sizes, of metrics of any shape."""

    def evaluate(exchange):
        batches = [({"a": torch.tensor([i, i + 1.0])}, n) for i, n in enumerate([2, 2, 1])]
        metrics = ValidationMetrics(AnyShapeByBatch())
        for number, batch in enumerate(batches):
            if number % 2 == exchange.rank:
                metrics.add(*batch, number)
        return metrics.result(Reducer.AVG, exchange)

    assert dealt(2, evaluate) == {"a": 1.5}


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
