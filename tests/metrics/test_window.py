"""RunningMetrics: the training window."""

import gc
import weakref
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainlab.errors import MetricError
from trainlab.metrics import MetricRules, RunningMetrics


class AnyShape(MetricRules):
    """Rules that let everything through, as another framework's do."""

    def check_training(self, name, value):
        pass

    def average(self, name, values):
        try:
            return super().average(name, [value for value in values if value is not None])
        except MetricError:
            return None


def running(rules=None) -> RunningMetrics:
    """Give an empty window."""
    return RunningMetrics(rules or MetricRules())


@settings(max_examples=30)
@given(
    losses=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30),
    repeats=st.sampled_from([1, 30]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    first=st.integers(0, 1000),
)
def test_averages_and_batches_are_those_of_plain_numpy(losses, repeats, dtype, first):
    """Short and long windows alike: the mean in float64 and each batch's own values, tensors and numbers."""
    tensors = [torch.tensor(loss, dtype=dtype) for loss in losses * repeats]
    window = running()
    for i, tensor in enumerate(tensors):
        window.add({"loss": tensor, "number": i})
    collected = window.collect(first, want_batches=True)
    expected = [tensor.double().item() for tensor in tensors]
    assert collected.averages["loss"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert collected.averages["number"] == (len(tensors) - 1) / 2
    assert [float(batch["loss"]) for batch in collected.batch_metrics] == expected
    assert [batch["number"] for batch in collected.batch_metrics] == list(range(len(tensors)))
    assert collected.non_finite == {}


def test_a_window_hands_over_exactly_its_batches_and_starts_anew():
    """100 batches, then 20: each window has its own only, and other names may begin with the next."""
    window = running()
    for i in range(100):
        window.add({"loss": torch.tensor(float(i))})
    assert len(window) == 100
    assert [float(b["loss"]) for b in window.collect(0, True).batch_metrics] == [float(i) for i in range(100)]
    assert len(window) == 0
    for _ in range(20):
        window.add({"other": torch.tensor(2.0)})
    second = window.collect(100, True)
    assert (len(second.batch_metrics), second.averages) == (20, {"other": 2.0})


def test_a_long_window_is_stacked_and_gives_the_same():
    """600 batches, more than are kept one by one, give the mean and the batches of all 600, whatever the shapes."""
    values = [torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(600)]
    window = running(AnyShape())
    for value in values:
        window.add({"three": value, "loss": value.sum()})
    collected = window.collect(0, True)
    assert collected.averages["three"] == pytest.approx(torch.stack(values).double().mean().item(), abs=1e-12)
    assert len(collected.batch_metrics) == 600
    for i in (0, 255, 256, 511, 512, 599):
        np.testing.assert_array_equal(collected.batch_metrics[i]["three"], values[i].numpy())
        assert collected.batch_metrics[i]["loss"].shape == ()


def test_a_long_window_lets_go_of_the_tensors():
    """A kept metric that is a piece of a large tensor does not keep that alive for the whole window."""
    memory = np.zeros(10_000, np.float32)
    alive, large, window = weakref.ref(memory), torch.from_numpy(memory), running()
    del memory
    for _ in range(256):
        window.add({"loss": large[0]})
    del large
    gc.collect()
    assert alive() is None
    assert window.collect(0).averages == {"loss": 0.0}


def test_a_bare_tensor_is_the_loss():
    """A Trial may return its loss alone, with its graph."""
    window, weight = running(), torch.tensor(2.0, requires_grad=True)
    window.add(weight * 3)
    assert window.collect(0).averages == {"loss": 6.0}


def test_the_graph_is_not_kept():
    """A loss whose graph was never freed costs no memory of the forward pass once its batch is over."""
    memory = np.ones(10_000, np.float32)
    alive, weight, window = weakref.ref(memory), torch.tensor(2.0, requires_grad=True), running()
    window.add({"loss": (weight * torch.from_numpy(memory)).mean()})
    del memory
    gc.collect()
    assert alive() is None
    assert window.collect(0).averages == {"loss": 2.0}


def test_batches_are_built_only_when_wanted():
    """Without a callback that wants them, the list of batches stays empty and the averages are the same."""
    window = running()
    window.add({"loss": torch.tensor(1.0)})
    collected = window.collect(0, want_batches=False)
    assert (collected.batch_metrics, collected.averages) == ([], {"loss": 1.0})


@pytest.mark.parametrize("batches", [3, 300])
def test_a_tensor_changed_in_place_is_found(batches):
    """A Trial that returns the same running tensor each time is told so, rather than given wrong numbers."""
    window, running_loss = running(), torch.zeros(())
    with pytest.raises(MetricError, match=r"'running'.*in place.*fresh tensor"):
        for _ in range(batches):
            running_loss += 1
            window.add({"running": running_loss})
        window.collect(0)


def test_a_parameter_as_a_metric_is_found_when_the_optimizer_changes_it():
    """A learnt temperature returned as it is would show its last value for every batch."""
    window, temperature = running(), torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([temperature], lr=0.1)
    temperature.grad = torch.tensor(1.0)
    window.add({"temperature": temperature})
    optimizer.step()
    with pytest.raises(MetricError, match="temperature"):
        window.collect(0)


def test_metrics_made_in_inference_mode_are_kept_as_they_were():
    """An inference tensor can be changed unseen, so its value is copied."""
    window = running()
    with torch.inference_mode():
        value = torch.tensor(1.0)
        window.add({"accuracy": value})
        value += 1
    window.add({"accuracy": value})
    assert window.collect(0).averages == {"accuracy": 1.5}


def test_arrays_are_kept_as_they_were():
    """A NumPy array changed after it was returned changes no metric."""
    window, value = running(), np.zeros(())
    for _ in range(3):
        value += 1
        window.add({"count": value})
    assert window.collect(0).averages == {"count": 2.0}


def test_nan_and_infinity_are_found_with_their_batches():
    """By name the first and the last batch_idx with a value that is not finite, for tensors and numbers."""
    window = running()
    for i in range(10):
        loss = torch.tensor(float("nan") if i in (3, 7) else 1.0)
        window.add({"loss": loss, "norm": float("inf") if i == 9 else 1.0, "fine": i})
    collected = window.collect(500)
    assert collected.non_finite == {"loss": (503, 507), "norm": (509, 509)}
    assert np.isnan(collected.averages["loss"]) and collected.averages["norm"] == float("inf")


def test_names_must_be_the_same_in_all_batches():
    """The error tells which names differ."""
    window = running()
    window.add({"loss": torch.tensor(1.0), "accuracy": 1.0})
    with pytest.raises(MetricError, match=r"differing: \['accuracy', 'f1'\]"):
        window.add({"loss": torch.tensor(1.0), "f1": 1.0})


def test_metrics_may_be_empty_in_all_batches_or_in_none():
    """A Trial may return no metrics at all; a batch without them among others is an error."""
    window = running()
    window.add({})
    with pytest.raises(MetricError, match="same names"):
        window.add({"loss": 1.0})
    collected = window.collect(0, True)
    assert (collected.batch_metrics, collected.averages) == ([{}], {})


@pytest.mark.parametrize("returned", [None, 1.0, "loss", [torch.tensor(1.0)], (1, 2)], ids=repr)
def test_what_is_neither_a_dict_nor_a_tensor_is_refused(returned):
    """The error names train_batch and shows what it returned."""
    with pytest.raises(MetricError, match=r"train_batch.*Received: "):
        running().add(returned)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.ones(4, 1), r"shape \(4, 1\)"),
        (torch.ones(1), r"shape \(1,\)"),
        (torch.tensor(1j), "complex64"),
        (np.ones(2), r"ndarray of shape \(2,\)"),
        (np.array("a"), "ndarray"),
        ("text", "str 'text'"),
        (None, "NoneType"),
        ([1.0], "list"),
        (1j, "complex"),
    ],
    ids=repr,
)
def test_what_is_no_number_is_refused_with_its_name_and_type(value, told):
    """Every metric is one number; the error names the metric and what it is."""
    with pytest.raises(MetricError, match=f"'odd'.*{told}"):
        running().add({"odd": value})


@pytest.mark.parametrize(
    "value",
    [3, 3.0, np.float32(3), np.int64(3), np.array(3), Fraction(3), torch.tensor(3), torch.tensor(3.0).half()],
    ids=repr,
)
def test_numbers_of_every_kind_are_taken(value):
    """Python's, NumPy's and 0-dimensional tensors, in any mapping; kinds may change from batch to batch."""
    window = running()
    window.add(OrderedDict(count=value))
    window.add({"count": torch.tensor(1.0)})
    window.add({"count": 2})
    assert window.collect(0, True).averages == {"count": 2.0}


def test_names_must_be_text():
    """A number as a name is refused."""
    with pytest.raises(MetricError, match="must be str"):
        running().add({1: 1.0})


def test_tolerant_rules_need_single_methods_only():
    """Rules that average all elements, leave None out and give None for text are a few lines."""
    window = running(AnyShape())
    for i in range(4):
        window.add(
            {
                "rows": torch.full((i + 1, 2), float(i)),
                "some": None if i % 2 else i,
                "text": "1",
                "ragged": [[1], [1, 2]],
            }
        )
    collected = window.collect(0, True)
    assert collected.averages == {"rows": 2.0, "some": 1.0, "text": None, "ragged": None}
    assert [batch["rows"].shape for batch in collected.batch_metrics] == [(1, 2), (2, 2), (3, 2), (4, 2)]
    assert [batch["text"] for batch in collected.batch_metrics] == ["1"] * 4


def test_bfloat16_comes_as_float32():
    """NumPy has no bfloat16: arrays of it are float32, other dtypes stay."""
    window = running()
    window.add({"a": torch.tensor(1.5, dtype=torch.bfloat16), "b": torch.tensor(1.5).half(), "c": torch.tensor(True)})
    (batch,) = window.collect(0, True).batch_metrics
    assert [batch[name].dtype for name in "abc"] == [np.float32, np.float16, np.bool_]


@pytest.mark.cuda
def test_keeping_metrics_never_waits_for_the_gpu():
    """Only collecting copies to the host: 600 batches are kept in CUDA's mode that forbids waiting."""
    window, loss = running(), torch.ones((), device="cuda", requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(600):
            window.add({"loss": loss * 2})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert window.collect(0).averages == {"loss": 2.0}
