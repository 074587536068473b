"""The metrics of several ranks by Determined's rules."""

import numpy as np
import pytest
import torch

from tests.metrics.threads import dealt, on_ranks
from trainlab.compat.determined.rules import DeterminedMetricRules
from trainlab.errors import MetricError
from trainlab.metrics import Reducer, RunningMetrics, ValidationMetrics


def averages(ranks, values, records=(1, 1, 1)):
    """Train, on each rank, batches whose metric "a" is values[rank]."""

    def train(exchange):
        window = RunningMetrics(DeterminedMetricRules())
        for value in values[exchange.rank]:
            window.add({"a": value})
            window.note_records(records[exchange.rank])
        return window.collect(0, exchange=exchange).averages

    return dealt(ranks, train)["a"]


def test_ranks_weigh_alike():
    """Each batch is the plain mean over the ranks, whatever their records; a rank without a record is left out."""
    assert averages(3, [[1.0, 2.0], [2.0, 4.0], [6.0, 6.0]], records=(1, 5, 9)) == 3.5
    assert averages(3, [[1.0], [2.0], [float("nan")]], records=(4, 9, 0)) == 1.5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[torch.tensor([[1.0], [3.0]])], [torch.tensor([[5.0], [7.0]])]], 4.0),
        ([[torch.ones(2), torch.ones(3)], [torch.zeros(2), torch.zeros(3)]], 0.5),
        ([[torch.tensor([1.0, 2.0, 3.0])], [torch.tensor([6.0])]], 3.0),
        ([[None, 1.0], [2.0, 3.0]], 2.0),
        ([[None, 1.0], [None, 2.0]], 1.5),
        ([[None], [None]], None),
        ([["text"], ["text"]], None),
        ([["text"], [1.0]], None),
        ([[1.0, None, "text"], [1.0, 1.0, 1.0]], None),
    ],
)
def test_metrics_of_any_kind_are_averaged_over_the_ranks(values, expected):
    """Of any shape, with gaps left out; text has no mean, on any rank, and is no error."""
    assert averages(2, values) == expected


def test_averages_are_numpy_numbers_on_several_ranks():
    """Ported code that calls .item() on a metric goes on working."""
    assert isinstance(averages(2, [[1.0], [2.0]]), np.float64)


def test_validation_weighs_each_batch_alike_over_all_ranks():
    """The mean over the batches of all ranks, whatever their sizes, of metrics of any shape."""

    def evaluate(exchange):
        metrics = ValidationMetrics(DeterminedMetricRules())
        for number, records in enumerate([2, 2, 1]):
            if number % 2 == exchange.rank:
                metrics.add({"a": torch.tensor([number, number + 1.0])}, records, number)
        return metrics.result(Reducer.AVG, exchange)

    assert dealt(2, evaluate) == {"a": 1.5}


def test_a_validation_metric_that_is_no_number_is_told_on_all_ranks():
    """Text from evaluate_batch on one rank stops every rank with the metric's name."""

    def evaluate(exchange):
        metrics = ValidationMetrics(DeterminedMetricRules())
        metrics.add({"a": "text" if exchange.rank else 1.0}, 1, exchange.rank)
        return metrics.result(Reducer.AVG, exchange)

    for error in on_ranks(2, evaluate):
        assert isinstance(error, MetricError) and "'a' holds something that is no real number" in str(error)
