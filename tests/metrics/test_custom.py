"""Custom reducers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainlab.errors import InvalidTypeError, InvalidValueError, MetricError
from trainlab.metrics import FunctionReducer, MetricReducer, ReducerRegistry


def alone(values):
    """Gather in a single process."""
    return [values]


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
    assert registry.reduce(for_training=True, gather=alone) == {"low": 1, "high": 3}


def test_a_function_is_called_with_all_values_since_the_last_reset():
    """A wrapped function collects through update, and reset forgets."""
    registry = ReducerRegistry()
    total = registry.wrap(sum, "total")
    total.update(100)
    registry.reset()
    for value in (1, 2, 3):
        total.update(value)
    assert registry.reduce(for_training=False, gather=alone) == {"total": 6}


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


def test_all_reducers_share_one_exchange_in_the_order_of_the_ranks():
    """However many reducers there are, the ranks talk once, and each reducer gets its own part of each rank."""
    exchanges = []

    def gather(values):
        exchanges.append(values)
        return [values, [(-5, 0), [7]]]

    registry = ReducerRegistry()
    extremes, every = registry.wrap(Extremes()), registry.wrap(list, "every")
    extremes.values += [1, 9]
    every.update(6)
    assert registry.reduce(for_training=True, gather=gather) == {"low": -5, "high": 9, "every": [6, 7]}
    assert exchanges == [[(1, 9), [6]]]


def test_a_reducer_is_reduced_only_where_it_was_wrapped_for():
    """Training and validation can be left out one by one, and one name can serve each of them."""
    registry = ReducerRegistry()
    registry.wrap(lambda values: "training", "kind", for_validation=False)
    registry.wrap(lambda values: "validation", "kind", for_training=False)
    assert registry.reduce(for_training=True, gather=alone) == {"kind": "training"}
    assert registry.reduce(for_training=False, gather=alone) == {"kind": "validation"}


def test_without_reducers_there_is_no_exchange():
    """A run without custom reducers pays nothing."""
    assert ReducerRegistry().reduce(for_training=True, gather=None) == {}


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
    registry.wrap(lambda values: {"high": 1})
    with pytest.raises(MetricError, match="high"):
        registry.reduce(for_training=True, gather=lambda values: [[[1], []]])


def test_a_name_forbids_a_dict_and_no_name_demands_one():
    """The first reduction tells which of the two to change."""
    named, unnamed = ReducerRegistry(), ReducerRegistry()
    named.wrap(lambda values: {"a": 1}, "a")
    unnamed.wrap(lambda values: 1.0)
    with pytest.raises(MetricError, match="leave name= out"):
        named.reduce(for_training=True, gather=alone)
    with pytest.raises(MetricError, match="pass name="):
        unnamed.reduce(for_training=True, gather=alone)


@pytest.mark.parametrize("method", ["reset", "per_slot_reduce", "cross_slot_reduce"])
def test_an_error_inside_a_reducer_is_told_with_its_place(method):
    """The error names the reducer's type, its name and the method, and carries the user's own error."""
    registry, extremes = ReducerRegistry(), Extremes(fails_in=method)
    registry.wrap(extremes)
    extremes.values.append(1)
    with pytest.raises(MetricError, match=rf"{method} of .*Extremes \(name: None\)") as caught:
        registry.reduce(for_training=True, gather=alone)
        registry.reset()
    assert isinstance(caught.value.__cause__, KeyError)
