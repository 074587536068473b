"""RunningMetrics on several ranks: each batch's mean over the ranks, then the mean over the batches."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.threads import dealt, on_ranks
from trainlab.errors import MetricError
from trainlab.metrics import MetricRules, RunningMetrics

NAN = float("nan")


def trained(exchange, batches, first_batch=0, want_batches=True):
    """Give the window of one rank, from (metrics, records) for each batch."""
    window = RunningMetrics(MetricRules())
    for metrics, records in batches:
        window.add(metrics)
        window.note_records(records)
    return window.collect(first_batch, want_batches, exchange)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ranks=st.integers(1, 5), batches=st.integers(1, 12), as_tensors=st.booleans())
def test_averages_weigh_by_records_and_are_the_same_on_every_rank(data, ranks, batches, as_tensors):
    """Each batch counts once, with the mean over its records, however few a rank had, to the last bit on each rank."""
    number = st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(0, 9))
    of_ranks = [data.draw(st.lists(number, min_size=batches, max_size=batches)) for _ in range(ranks)]
    of_ranks[0] = [(value, max(records, 1)) for value, records in of_ranks[0]]

    def train(exchange):
        own = [(value if records else NAN, records) for value, records in of_ranks[exchange.rank]]
        kept = [({"loss": torch.tensor(v) if as_tensors else v, "n": i}, r) for i, (v, r) in enumerate(own)]
        collected = trained(exchange, kept)
        assert exchange.calls == (ranks > 1)
        return collected.averages, collected.non_finite

    averages, non_finite = dealt(ranks, train)
    by_batch = [np.average([v for v, _ in part], weights=[r for _, r in part]) for part in zip(*of_ranks, strict=True)]
    assert averages["loss"] == pytest.approx(np.mean(by_batch), abs=1e-9)
    assert averages["n"] == pytest.approx((batches - 1) / 2)
    assert non_finite == {}


def test_a_rank_that_has_all_records_decides_the_average():
    """A value beside stand-ins only comes out as it is, to the last bit, though those are NaN."""

    def train(exchange):
        return trained(exchange, [({"loss": 0.1 if exchange.rank == 1 else NAN}, 3 * (exchange.rank == 1))]).averages

    assert dealt(3, train) == {"loss": 0.1}


def test_one_rank_with_an_exchange_is_like_one_without():
    """A group of one process changes nothing, and exchanges nothing."""
    values = [({"loss": torch.tensor(0.1 * i)}, 3) for i in range(7)]

    def train(exchange):
        return trained(exchange, values), exchange.calls

    ((found, calls),) = on_ranks(1, train)
    assert (found, calls) == (trained(None, values), 0)


def test_the_batches_stay_those_of_the_rank():
    """on_training_workload_end sees this rank's own batches, without those in which it had no record."""

    def train(exchange):
        batches = [({"loss": 10.0 * exchange.rank + i}, 2 if i < 2 else 1 - exchange.rank) for i in range(3)]
        return [batch["loss"] for batch in trained(exchange, batches).batch_metrics]

    assert on_ranks(2, train) == [[0.0, 1.0, 2.0], [10.0, 11.0]]


def test_a_window_starts_anew_on_every_rank():
    """Records noted for one window do not weigh in the next."""

    def train(exchange):
        window = RunningMetrics(MetricRules())
        for records in ([1, 3], [3, 1]):
            window.add({"loss": float(exchange.rank)})
            window.note_records(records[exchange.rank])
            averages = window.collect(0, exchange=exchange).averages
        return averages

    assert dealt(2, train) == {"loss": 0.25}


def test_nan_and_infinity_of_any_rank_are_found_on_all():
    """Every rank can tell the first and the last batch in which a rank had a value that is not finite."""

    def train(exchange):
        batches = [({"loss": NAN if (i, exchange.rank) in [(2, 1), (5, 0)] else 1.0, "fine": 1}, 1) for i in range(8)]
        batches.append(({"loss": NAN if exchange.rank else 1.0, "fine": 1}, 1 - exchange.rank))
        return trained(exchange, batches, first_batch=100).non_finite

    assert dealt(2, train) == {"loss": (102, 105)}


def test_metrics_may_be_empty_on_all_ranks():
    """A Trial that returns no metrics trains on several ranks too."""
    assert dealt(2, lambda exchange: trained(exchange, [({}, 1)] * 2).averages) == {}


def test_names_that_differ_between_ranks_are_told_on_all():
    """Each rank's error names both ranks and the names."""

    def train(exchange):
        return trained(exchange, [({"loss": 1.0, **({"extra": 1.0} if exchange.rank == 2 else {})}, 1)])

    told = r"train_batch must .* all ranks.*\['loss'\] on rank 0, \['extra', 'loss'\] on rank 2.*differing: \['extra'\]"
    for error in on_ranks(3, train):
        assert isinstance(error, MetricError) and re.search(told, str(error))


def test_the_order_of_the_names_may_differ_between_ranks():
    """Each metric is averaged with that of the same name, and reported in the same order everywhere."""

    def train(exchange):
        pairs = [("a", 1.0 + exchange.rank), ("b", 5.0)]
        return list(trained(exchange, [(dict(pairs[:: 1 - 2 * exchange.rank]), 1)]).averages.items())

    assert dealt(2, train) == [("a", 1.5), ("b", 5.0)]


def test_a_tensor_changed_in_place_on_one_rank_is_told_on_all():
    """No rank waits for the one that cannot give its metrics."""

    def train(exchange):
        window, running = RunningMetrics(MetricRules()), torch.zeros(())
        for _ in range(2):
            running = running + 1 if exchange.rank == 0 else running.add_(1)
            window.add({"running": running})
            window.note_records(1)
        return window.collect(0, exchange=exchange)

    here, there = on_ranks(2, train)
    assert isinstance(there, MetricError) and "in place" in str(there)
    assert isinstance(here, MetricError) and re.search(r"Rank 1 of 2 .*'running' was changed in place", str(here))


def test_ranks_that_trained_different_numbers_of_batches_are_told():
    """Averages over batches that do not belong together are refused on all ranks."""
    for error in on_ranks(2, lambda exchange: trained(exchange, [({"loss": 1.0}, 1)] * (1 + exchange.rank))):
        assert isinstance(error, MetricError) and re.search(r"Received: \[1, 2\] batches", str(error))


def test_kinds_of_numbers_may_differ_between_ranks():
    """A tensor on one rank and a Python number on another are averaged, in float64."""
    values = [torch.tensor(1, dtype=torch.int64), 2.0, torch.tensor(6.0).half()]
    assert dealt(3, lambda exchange: trained(exchange, [({"a": values[exchange.rank]}, 2)]).averages) == {"a": 3.0}
