"""Custom reducers."""

import collections
import contextlib
import re

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import BinaryAUROC, BinaryPrecision, BinaryRecall

from tests.metrics.threads import dealt, on_ranks
from trainlab.errors import InvalidTypeError, InvalidValueError, MetricError
from trainlab.metrics import FunctionReducer, MetricReducer, ReducerRegistry

pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all:UserWarning")


class Extremes(MetricReducer):
    def __init__(self, fails_in=None):
        self.values, self.fails_in = [], fails_in

    def step(self, method):
        if method == self.fails_in:
            raise KeyError("mine")

    def reset(self):
        self.step("reset")
        self.values = []

    def per_slot_reduce(self):
        self.step("per_slot_reduce")
        return min(self.values), max(self.values)

    def cross_slot_reduce(self, per_slot_metrics):
        self.step("cross_slot_reduce")
        return {"low": min(low for low, _ in per_slot_metrics), "high": max(high for _, high in per_slot_metrics)}


def test_a_reducer_without_a_name_gives_its_metrics_by_name():
    """An object comes back as it is, and its dict joins the metrics."""
    registry, extremes = ReducerRegistry(), Extremes()
    assert registry.wrap(extremes) is extremes
    extremes.values += [3, 1, 2]
    assert registry.reduce(for_training=True) == {"low": 1, "high": 3}


def test_a_function_is_called_with_all_values_since_the_last_reset():
    """A wrapped function collects through update, and reset forgets."""
    registry = ReducerRegistry()
    total = registry.wrap(sum, "total")
    total.update(100)
    registry.reset()
    for value in (1, 2, 3):
        total.update(value)
    assert registry.reduce(for_training=False) == {"total": 6}


def test_collected_tensors_keep_no_graph():
    """A loss handed to update does not hold its batch's activations."""
    collected = []
    reducer = FunctionReducer(collected.extend)
    reducer.update(torch.ones(2, requires_grad=True) * 2)
    reducer.cross_slot_reduce([reducer.per_slot_reduce()])
    assert not collected[0].requires_grad and collected[0].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_a_value_changed_after_update_is_not_seen(kind):
    """What is handed to update counts as it was then, though its tensor or array is used again for the next batch."""
    reducer, buffer = FunctionReducer(list), kind([0.0, 0.0])
    for number in (1.0, 2.0):
        buffer[:] = number
        reducer.update(buffer)
    buffer[:] = 9.0
    assert [value.tolist() for value in reducer.per_slot_reduce()] == [[1.0, 1.0], [2.0, 2.0]]


@given(st.integers(0, 40), st.integers(1, 5))
def test_a_function_sees_the_values_of_all_ranks_in_the_order_of_the_data(count, ranks):
    """Values dealt out to ranks one by one come back in the order of the undealt data."""
    values = list(range(count))
    assert FunctionReducer(list).cross_slot_reduce([values[rank::ranks] for rank in range(ranks)]) == values


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_all_reducers_share_one_exchange_and_give_the_same_on_every_rank(ranks):
    """However many reducers there are, the ranks talk once, and any number of ranks gives the result of one."""
    values = list(range(11))

    def reduce(exchange):
        registry = ReducerRegistry()
        extremes, every = registry.wrap(Extremes()), registry.wrap(list, "every")
        for value in values[exchange.rank :: exchange.size]:
            extremes.values.append(value)
            every.update(value)
        found = registry.reduce(for_training=True, exchange=exchange)
        assert exchange.calls == (ranks > 1)
        return found

    assert dealt(ranks, reduce) == {"low": 0, "high": 10, "every": values}


def test_the_parts_of_a_reducer_come_in_the_order_of_the_ranks():
    """cross_slot_reduce can tell which rank gave what."""

    class Ranks(Extremes):
        def per_slot_reduce(self):
            return self.values

        def cross_slot_reduce(self, per_slot_metrics):
            return {"ranks": per_slot_metrics}

    def reduce(exchange):
        registry = ReducerRegistry()
        registry.wrap(Ranks()).values = exchange.rank
        return registry.reduce(for_training=False, exchange=exchange)

    assert dealt(4, reduce) == {"ranks": [0, 1, 2, 3]}


def test_an_error_of_one_rank_comes_out_on_all():
    """Where per_slot_reduce fails on one rank, no other waits for it: each names the rank and the reducer."""

    def reduce(exchange):
        registry = ReducerRegistry()
        registry.wrap(Extremes(fails_in="per_slot_reduce" if exchange.rank == 1 else None)).values.append(1)
        return registry.reduce(for_training=True, exchange=exchange)

    errors = on_ranks(3, reduce)
    assert [type(error) for error in errors] == [MetricError] * 3
    assert isinstance(errors[1].__cause__, KeyError)
    for rank in (0, 2):
        assert re.search(r"Rank 1 of 3 .*per_slot_reduce of .*Extremes \(name: None\)", str(errors[rank]))


def test_reducers_that_only_some_ranks_have_are_found():
    """A reducer wrapped on the chief only is told with both ranks' reducers, not reduced with another's values."""

    def reduce(exchange):
        registry = ReducerRegistry()
        registry.wrap(max, "high" if exchange.rank < 2 else "low").update(1)
        return registry.reduce(for_training=True, exchange=exchange)

    for error in on_ranks(3, reduce):
        assert isinstance(error, MetricError) and re.search(r"'high'.* on rank 0, .*'low'.* on rank 2", str(error))


def test_a_reducer_is_reduced_only_where_it_was_wrapped_for():
    """Training and validation can be left out one by one, and one name can serve each of them."""
    registry = ReducerRegistry()
    registry.wrap(lambda values: "training", "kind", for_validation=False)
    registry.wrap(lambda values: "validation", "kind", for_training=False)
    assert registry.reduce(for_training=True) == {"kind": "training"}
    assert registry.reduce(for_training=False) == {"kind": "validation"}


def test_without_reducers_there_is_no_exchange():
    """A run without custom reducers pays nothing."""
    assert on_ranks(2, lambda e: (ReducerRegistry().reduce(for_training=True, exchange=e), e.calls)) == [({}, 0)] * 2


@pytest.mark.parametrize("reducer", [Extremes, 3, None, "max"], ids=repr)
def test_only_an_object_or_a_function_can_be_wrapped(reducer):
    """A reducer's class in place of an object, and anything that cannot be called, is refused."""
    with pytest.raises(InvalidTypeError, match="Received: "):
        ReducerRegistry().wrap(reducer)


def test_a_name_is_text():
    """Anything else as a name is refused."""
    with pytest.raises(InvalidTypeError, match="name"):
        ReducerRegistry().wrap(max, 3)


def test_the_same_object_cannot_be_wrapped_twice():
    """An object collects for one metric; a function may serve several, each with values of its own."""
    registry, extremes = ReducerRegistry(), Extremes()
    registry.wrap(extremes)
    with pytest.raises(InvalidValueError, match="once"):
        registry.wrap(extremes)
    assert registry.wrap(max, "a") is not registry.wrap(max, "b")


def test_two_reducers_cannot_give_the_same_metric():
    """A name taken is refused when wrapping, or at the reduction where it comes from a dict."""
    registry = ReducerRegistry()
    registry.wrap(max, "high")
    with pytest.raises(InvalidValueError, match="high"):
        registry.wrap(min, "high")
    registry = ReducerRegistry()
    registry.wrap(len, "high")
    registry.wrap(lambda values: {"high": 1})
    with pytest.raises(MetricError, match="high"):
        registry.reduce(for_training=True)


def test_a_name_forbids_a_dict_and_no_name_demands_one():
    """The first reduction tells which of the two to change."""
    named, unnamed = ReducerRegistry(), ReducerRegistry()
    named.wrap(lambda values: {"a": 1}, "a")
    unnamed.wrap(lambda values: 1.0)
    with pytest.raises(MetricError, match="leave name= out"):
        named.reduce(for_training=True)
    with pytest.raises(MetricError, match="pass name="):
        unnamed.reduce(for_training=True)


@pytest.mark.parametrize("method", ["reset", "per_slot_reduce", "cross_slot_reduce"])
def test_an_error_inside_a_reducer_is_told_with_its_place(method):
    """The error names the reducer's type, its name and the method, and carries the user's own error."""
    registry, extremes = ReducerRegistry(), Extremes(fails_in=method)
    registry.wrap(extremes)
    extremes.values.append(1)
    with pytest.raises(MetricError, match=rf"{method} of .*Extremes \(name: None\)") as caught:
        registry.reduce(for_training=True)
        registry.reset()
    assert isinstance(caught.value.__cause__, KeyError)


class Accumulator(MetricReducer):
    """Keeps what it is given in every kind of place."""

    def __init__(self):
        self.tensor, self.array, self.number = torch.zeros(2), np.zeros(2), 0
        self.values, self.by_name, self.newest = [torch.zeros(1)], collections.Counter(), collections.deque([0], 1)
        self.pairs, self.nested = (set(), []), {"a": [[0]]}

    def update(self, value):
        self.tensor += value
        self.array += value
        self.number += value
        self.values[0] += value
        self.values.append(value)
        self.by_name[str(value)] += 1
        self.newest.append(value)
        self.pairs[0].add(value)
        self.pairs[1].append(value)
        self.nested["a"][0][0] += value
        self.latest = value

    def reset(self):
        self.__init__()

    def per_slot_reduce(self):
        return repr(vars(self))

    def cross_slot_reduce(self, per_slot_metrics):
        return {"all": per_slot_metrics[0]}


def test_what_a_stand_in_gives_the_reducers_does_not_count():
    """Inside preserved a reducer takes anything as ever; after it, all of it stands where it stood, errors or not."""

    def reduce(batches):
        registry, correct = ReducerRegistry(), torchmetrics.MetricCollection([BinaryPrecision(), BinaryRecall()])
        accumulator, total, ranked = registry.wrap(Accumulator()), registry.wrap(sum, "total"), BinaryAUROC()
        registry.wrap(correct), registry.wrap(ranked, "auroc")
        for value in batches:
            with (
                contextlib.suppress(ZeroDivisionError),
                registry.preserved() if value < 0 else contextlib.nullcontext(),
            ):
                scores, labels = torch.tensor([value % 0.7, 0.9, 0.2]), torch.tensor([1, 0, value % 2])
                accumulator.update(value)
                total.update(value)
                correct.update(scores, labels)
                ranked.update(scores, labels)
                assert accumulator.newest[0] == value and len(ranked.preds) > 0
                if value < 0:
                    raise ZeroDivisionError
        return registry.reduce(for_training=True)

    assert reduce([-3, 1, 2, -4, 3, -5]) == reduce([1, 2, 3])


def test_a_reducer_sees_its_own_objects_again_after_a_stand_in():
    """An object that the user shares with a reducer, such as the Trial, is neither copied nor replaced."""
    registry, shared = ReducerRegistry(), {"steps": object()}
    reducer = registry.wrap(Accumulator())
    reducer.owner, reducer.shared = registry, shared
    with registry.preserved():
        assert reducer.owner is registry and reducer.shared["steps"] is shared["steps"]
        reducer.update(1)
    assert reducer.shared is shared and not hasattr(reducer, "latest")
