"""Metrics of three real processes over gloo, one of which has nothing in most of what it takes part in."""

import re

import pytest
import torch

from tests.distributed.ranks import run_ranks
from tests.metrics.test_torchmetrics_ranks import ALONE, BATCHES, reduced
from tests.metrics.test_validation import RECORDS, evaluated
from tests.metrics.threads import dealt
from trainlab.distributed import DistributedContext
from trainlab.errors import MetricError
from trainlab.metrics import MetricReducer, MetricRules, Reducer, ReducerRegistry, RunningMetrics, ValidationMetrics

RANKS = 3


class Place(MetricReducer):
    """Gives its rank, or fails where it is told to."""

    def __init__(self, rank, fails):
        self.rank, self.fails = rank, fails

    def reset(self):
        pass

    def per_slot_reduce(self):
        if self.fails:
            raise ZeroDivisionError("mine")
        return torch.tensor([self.rank]), {"rank": self.rank}

    def cross_slot_reduce(self, per_slot_metrics):
        return [(tensor.tolist(), told["rank"]) for tensor, told in per_slot_metrics]


def exchanged():
    """Everything that one rank takes part in."""
    torch.distributed.init_process_group("gloo")
    try:
        with DistributedContext.from_torch_distributed() as distributed:
            return on_one_rank(distributed.exchange)
    finally:
        torch.distributed.destroy_process_group()


def on_one_rank(exchange):
    found = {"window": train(exchange), "validation": {n: evaluated(exchange, n) for n in (16, 60)}}
    found["reducers"] = reduce(exchange, fails=False)
    # Rank 2 makes no update.
    found["torchmetrics"] = reduced(exchange, [BATCHES[i] for i in ([0, 2, 4], [1, 3], [])[exchange.rank]])
    found["failed"] = failed(lambda: reduce(exchange, fails=exchange.rank == 1))
    empty = ValidationMetrics(MetricRules())
    found["empty"] = failed(lambda: empty.result(Reducer.AVG, exchange))
    return found


def train(exchange):
    window = RunningMetrics(MetricRules())
    for i in range(300):
        records = [3, 1, 0][exchange.rank]
        window.add({"loss": torch.tensor(float(i + exchange.rank) if records else float("nan")), "i": i})
        window.note_records(records)
    collected = window.collect(0, exchange=exchange)
    return collected.averages, collected.non_finite, len(collected.batch_metrics)


def reduce(exchange, fails):
    registry = ReducerRegistry()
    every = registry.wrap(list, "every")
    for value in range(exchange.rank, 8, exchange.size):
        every.update(value)
    registry.wrap(Place(exchange.rank, fails), "places")
    return registry.reduce(for_training=False, exchange=exchange)


def failed(call):
    with pytest.raises(MetricError) as caught:
        call()
    return str(caught.value)


@pytest.fixture(scope="module")
def results():
    return run_ranks(exchanged, RANKS)


def test_training_averages_are_those_of_the_records(results):
    """300 batches of 3, 1 and no records a rank: the same average on all, and no trace of the stand-ins' NaN."""
    assert [result["window"][:2] for result in results] == [({"loss": 149.75, "i": 149.5}, {})] * RANKS
    assert [result["window"][2] for result in results] == [300, 300, 0]


@pytest.mark.parametrize("batch_size", [16, 60])
def test_validation_is_that_of_one_process_to_the_last_bit(results, batch_size):
    """101 records in batches of 16, and of 60 where a rank has none, give each process the number of a single one."""
    alone = dealt(1, lambda exchange: evaluated(exchange, batch_size))
    assert [result["validation"][batch_size] for result in results] == [alone] * RANKS
    assert alone["loss"] == pytest.approx(RECORDS.square().mean().item(), abs=1e-12)


def test_reducers_get_the_values_of_all_processes_in_order(results):
    """A function gets the undealt data, a MetricReducer what each rank gave, tensors and all, in order of the ranks."""
    expected = {"every": list(range(8)), "places": [([rank], rank) for rank in range(RANKS)]}
    assert [result["reducers"] for result in results] == [expected] * RANKS


def test_torchmetrics_objects_are_computed_over_all_processes(results):
    """Accuracy, AUROC, means, wrappers and a collection, none of which talks over torch's own default group."""
    assert all(result["torchmetrics"] == results[0]["torchmetrics"] for result in results)
    assert results[0]["torchmetrics"] == {name: pytest.approx(value, rel=1e-5) for name, value in ALONE.items()}


def test_an_error_in_one_process_is_an_error_in_all(results):
    """A reducer that fails on rank 1, and a validation without a batch, end alike everywhere; nothing waits."""
    assert [bool(re.search("Rank 1 of 3 .*Place", result["failed"])) for result in results] == [True, False, True]
    assert all("ZeroDivisionError" in result["failed"] for result in results)
    assert all("no batch was evaluated" in result["empty"] for result in results)
