"""torchmetrics objects on several ranks: computed over all of them, and put together for another number of ranks."""

import contextlib
import copy
import re

import pytest
import torch
import torchmetrics
from torchmetrics import classification, wrappers

from tests.metrics.threads import dealt, on_ranks
from trainlab.errors import CheckpointMismatchError, MetricError
from trainlab.metrics import MetricStates, ReducerRegistry

pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all:UserWarning")

GENERATOR = torch.Generator().manual_seed(3)
BATCHES = [
    (torch.rand(n, generator=GENERATOR), torch.randint(0, 2, (n,), generator=GENERATOR)) for n in (16, 16, 7, 16, 3)
]


class Twice(torchmetrics.Metric):
    """Appends two items to one list and one to another in each update, and remembers something of the first."""

    def __init__(self):
        super().__init__()
        self.add_state("one", [], dist_reduce_fx="cat")
        self.add_state("two", [], dist_reduce_fx="cat")
        self.seen = None

    def update(self, x, y):
        self.seen = "yes"
        self.one.append(x)
        self.two += [y[:1], y[1:]]

    def compute(self):
        assert self.seen == "yes"
        one, two = (torch.cat(x) if isinstance(x, list) else x for x in (self.one, self.two))
        return (one * two).sum()


class Extent(torchmetrics.Metric):
    """A mean over updates, extremes, a reduction of its own, and a state that is one growing tensor."""

    def __init__(self):
        super().__init__()
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")
        self.add_state("least", torch.tensor(9.0), dist_reduce_fx="min")
        self.add_state("most", torch.tensor(-9.0), dist_reduce_fx="max")
        self.add_state(
            "product", torch.tensor(2.0), dist_reduce_fx=lambda stacked: stacked.prod(0) / 2 ** (len(stacked) - 1)
        )
        self.add_state("kept", torch.empty(0), dist_reduce_fx="cat")

    def update(self, x, y):
        self.mean += (x.mean() - self.mean) / self._update_count
        self.least, self.most = torch.minimum(self.least, x.min()), torch.maximum(self.most, x.max())
        self.product *= x.mean()
        self.kept = torch.cat([self.kept, x])

    def compute(self):
        return torch.stack([self.mean, self.least, self.most, self.product, self.kept.sum()])


def own_sync(*args, **kwargs):
    raise AssertionError("torchmetrics' own exchange over the default group was used")


def metrics():
    found = {
        "accuracy": classification.BinaryAccuracy(),
        "auroc": classification.BinaryAUROC(),
        "mean": torchmetrics.MeanMetric(),
        "pearson": torchmetrics.PearsonCorrCoef(),
        "psnr": torchmetrics.image.PeakSignalNoiseRatio(data_range=0.7),
        "twice": Twice(),
        "own": Extent(),
        "composition": torchmetrics.MeanSquaredError() + torchmetrics.MeanAbsoluteError() * 2,
        "running": wrappers.Running(torchmetrics.SumMetric(), window=5),
        "minmax": wrappers.MinMaxMetric(classification.BinaryAccuracy()),
        "collection": torchmetrics.MetricCollection(
            classification.BinaryPrecision(), classification.BinaryRecall(), classification.BinaryAveragePrecision()
        ),
    }
    for module in torch.nn.ModuleDict(found).modules():
        if isinstance(module, torchmetrics.Metric):
            module.dist_sync_fn = own_sync
    return found


def measure(found, batches):
    for x, y in batches:
        for name, metric in found.items():
            target = y if name in ("accuracy", "auroc", "minmax", "collection") else y.float()
            metric.update(*([x] if name in ("mean", "running") else [x, target]))


def reduced(exchange, batches, again=()):
    """What wrapped metrics give on this rank; after it they go on with further batches of the rank's own."""
    registry, found = ReducerRegistry(), metrics()
    for name, metric in found.items():
        registry.wrap(metric, None if name in ("collection", "minmax") else name)
    measure(found, batches)
    result = registry.reduce(for_training=True, exchange=exchange)
    for more in again:
        measure(found, [more])
        result = registry.reduce(for_training=True, exchange=exchange)
    return {name: torch.as_tensor(value).tolist() for name, value in result.items()}


ALONE = reduced(None, BATCHES)


@pytest.mark.parametrize(
    "dealing",
    [
        [[0, 1, 2, 3, 4]],
        [[0, 2, 4], [1, 3]],
        [[0, 3], [1, 4], [2]],
        [[0, 1, 2, 3, 4], []],
        [[], [0, 1], [2, 3, 4]],
        [[], [], [4, 3, 2, 1, 0], []],
        [[0], [1], [2], [3], [4]],
    ],
    ids=str,
)
def test_any_dealing_gives_what_one_process_gives(dealing):
    """Sums, lists, means, stacked states, wrappers and collections agree with one process, also without an update."""
    found = dealt(len(dealing), lambda exchange: reduced(exchange, [BATCHES[i] for i in dealing[exchange.rank]]))
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in ALONE.items()}


def test_the_exchange_of_torchmetrics_is_not_used_in_a_group_of_one():
    """A job of one rank with an open process group computes its metrics as one without: no metric asks the group."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert reduced(None, BATCHES) == ALONE
        assert dealt(1, lambda exchange: reduced(exchange, BATCHES)) == ALONE
        with pytest.raises(AssertionError, match="own exchange"):
            measured = metrics()["mean"]
            measured.update(1.0)
            measured.compute()
    finally:
        torch.distributed.destroy_process_group()


def test_lists_come_in_the_order_of_the_undealt_data():
    """With a batch to each rank in turn and an item an update, a list of all values is that of one process."""

    def reduce(exchange):
        registry, cat = ReducerRegistry(), torchmetrics.CatMetric()
        registry.wrap(cat, "all")
        for x, _ in BATCHES[exchange.rank :: exchange.size]:
            cat.update(x)
        return registry.reduce(for_training=True, exchange=exchange)["all"].tolist()

    assert dealt(3, reduce) == torch.cat([x for x, _ in BATCHES]).tolist()


def test_after_the_reduction_each_rank_goes_on_with_its_own():
    """Metrics reduced in the middle, updated again, come to what one process has: nothing counts twice."""

    def reduce(exchange):
        own = BATCHES[exchange.rank :: 2] if exchange.rank == 0 else [BATCHES[1]]
        return reduced(exchange, own[:1], again=[own[1]] if exchange.rank == 0 else [BATCHES[3]])

    expected = reduced(None, BATCHES[:4])
    found = dealt(2, reduce)
    del found["min"], found["max"]  # of what was computed: once in one process, twice here
    assert found == {name: pytest.approx(expected[name], rel=1e-5) for name in found}


def test_own_states_and_what_was_computed_are_left_as_they_were():
    """A metric's own states are the same objects after the reduction, and its own compute still is this rank's."""

    def reduce(exchange):
        registry, auroc, mean = ReducerRegistry(), classification.BinaryAUROC(), torchmetrics.MeanMetric()
        registry.wrap(auroc, "auroc"), registry.wrap(mean, "mean")
        mean.update(float(exchange.rank))
        if exchange.rank == 0:
            measure({"auroc": auroc}, BATCHES)
        before = auroc.preds, mean.mean_value, mean.compute(), auroc._update_count, auroc._to_sync, mean._to_sync
        overall = registry.reduce(for_training=True, exchange=exchange)["mean"]
        after = auroc.preds, mean.mean_value, mean.compute(), auroc._update_count, auroc._to_sync, mean._to_sync
        assert all(one is other for one, other in zip(before, after, strict=True))
        return float(overall), float(mean.compute())

    assert on_ranks(2, reduce) == [(0.5, 0.0), (0.5, 1.0)]


def test_a_failed_compute_leaves_the_states_as_they_were():
    """The error is the reducer's, and the metric goes on with what its rank accumulated."""

    def reduce(exchange):
        registry, auroc = ReducerRegistry(), classification.BinaryAUROC()
        registry.wrap(auroc, "auroc")
        auroc.update(*BATCHES[0])
        auroc.preds.append(torch.zeros(3)) if exchange.rank else None
        own = auroc.preds
        with pytest.raises(MetricError, match="cross_slot_reduce of the custom reducer TorchmetricsReducer"):
            registry.reduce(for_training=True, exchange=exchange)
        return auroc.preds is own and auroc._to_sync

    assert on_ranks(2, reduce) == [True, True]


def test_ranks_with_other_metrics_are_told():
    """A metric that only one rank has in its collection is named."""

    def reduce(exchange):
        registry, several = ReducerRegistry(), torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()])
        if exchange.rank:
            several.add_metrics(torchmetrics.MeanAbsoluteError())
        registry.wrap(several)
        return registry.reduce(for_training=True, exchange=exchange)

    for error in on_ranks(2, reduce):
        assert isinstance(error, MetricError) and re.search("same torchmetrics objects.*MeanAbsoluteError", str(error))


def continuing():
    """Metrics that can go on from what several ranks accumulated."""
    return {name: metric for name, metric in metrics().items() if name not in ("pearson", "running", "minmax")}


def states_of(dealing):
    """The states of several ranks, as a checkpoint has them."""
    found = []
    for numbers in dealing:
        own = continuing()
        states = MetricStates(torch.nn.ModuleDict(own), whole=True)
        measure(own, [BATCHES[i] for i in numbers])
        found.append(copy.deepcopy(states.state_dict()))
    return found


@pytest.mark.parametrize("dealing", [[[0, 2], [1]], [[0], [1], [], [2]], [[], [0, 1, 2]]], ids=str)
def test_metrics_go_on_with_another_number_of_ranks(dealing):
    """Ranks' metrics put together on rank 0, the others empty: updated on all, they come to what one process has."""

    def resume(exchange):
        own = continuing()
        states = MetricStates(torch.nn.ModuleDict(own), whole=True)
        states.load_state_dict(states.merge(states_of(dealing), exchange.rank))
        registry = ReducerRegistry()
        for name, metric in own.items():
            registry.wrap(metric, None if name == "collection" else name)
        measure(own, [BATCHES[3 + exchange.rank]])
        result = registry.reduce(for_training=True, exchange=exchange)
        return {name: torch.as_tensor(value).tolist() for name, value in result.items()}

    found = dealt(2, resume)
    assert found == {name: pytest.approx(ALONE[name], rel=1e-5) for name in found}


ALIKE = torch.ones(3), torch.ones(3, dtype=torch.int64)
"""A batch by which the two metrics below cannot be told apart, so that their collection takes them for one."""


def thresholds():
    return torchmetrics.MetricCollection(
        {"low": classification.BinaryAccuracy(threshold=0.5), "high": classification.BinaryAccuracy(threshold=0.9)}
    )


def of_thresholds(*batches):
    alone = thresholds()
    for batch in batches:
        alone.update(*batch)
    return alone.compute()


def test_metrics_that_one_rank_takes_for_one_are_computed_apart():
    """Two metrics of a collection that only one rank's batch told apart give the same two values on every rank."""

    def reduce(exchange):
        registry, own = ReducerRegistry(), thresholds()
        registry.wrap(own)
        own.update(*(BATCHES[0] if exchange.rank else ALIKE))
        result = registry.reduce(for_training=True, exchange=exchange)
        assert len(own._groups) == 1 + exchange.rank
        return result

    assert dealt(2, reduce) == of_thresholds(BATCHES[0], ALIKE)


def test_metrics_put_together_share_a_state_only_where_they_did_on_every_rank():
    """Two metrics that one rank took for one stay two in the job that goes on."""
    states = []
    for batch in (ALIKE, BATCHES[0]):
        one = thresholds()
        kept = MetricStates(one)
        one.update(*batch)
        states.append(kept.state_dict())
    assert [len(state["groups"][""][0]) for state in states] == [1, 2]
    merged = thresholds()
    kept = MetricStates(merged)
    kept.load_state_dict(kept.merge(states))
    merged.update(*BATCHES[1])
    assert merged.compute() == of_thresholds(BATCHES[0], ALIKE, BATCHES[1])


def test_what_a_stand_in_gives_torchmetrics_objects_does_not_count():
    """Lists, sums and which metrics share a state are after the block what they were, also before the first update."""
    module = torch.nn.ModuleDict({"several": thresholds(), "all": torchmetrics.CatMetric(), "own": Extent()})
    kept = MetricStates(module)
    for batch in (ALIKE, BATCHES[0], ALIKE, BATCHES[1], ALIKE):
        with kept.preserved() if batch is ALIKE else contextlib.nullcontext():
            module["several"].update(*batch)
            module["all"].update(batch[0])
            module["own"].update(*batch)
    assert module["several"].compute() == of_thresholds(*BATCHES[:2])
    assert module["all"].compute().tolist() == [*BATCHES[0][0].tolist(), *BATCHES[1][0].tolist()]
    assert len(module["own"].kept) == 32 and module["own"]._update_count == 2
    assert module["own"].product == 2 * BATCHES[0][0].mean() * BATCHES[1][0].mean()


def test_a_metric_that_cannot_go_on_from_several_ranks_is_told():
    """A correlation accumulated on two ranks is refused with the metric's name; accumulated on one it goes on."""
    module = torch.nn.ModuleDict({"pearson": torchmetrics.PearsonCorrCoef()})
    kept = MetricStates(module)
    empty = copy.deepcopy(kept.state_dict())
    module["pearson"].update(BATCHES[0][0], BATCHES[0][1].float())
    full = copy.deepcopy(kept.state_dict())
    with pytest.raises(CheckpointMismatchError, match=r"PearsonCorrCoef 'pearson'.*'mean_x'.*same number of ranks"):
        kept.merge([full, full])
    value = module["pearson"].compute()
    module["pearson"].reset()
    kept.load_state_dict(kept.merge([empty, full, empty]))
    assert torch.equal(module["pearson"].compute(), value)
    kept.load_state_dict(kept.merge([empty, full, empty], rank=1))
    assert module["pearson"]._update_count == 0 and module["pearson"].n_total == 0


def test_states_of_other_metrics_are_not_put_together():
    """A checkpoint of other metrics is refused with both lists."""
    one, other = (
        torch.nn.ModuleDict({"a": torchmetrics.SumMetric()}),
        torch.nn.ModuleDict({"b": torchmetrics.SumMetric()}),
    )
    state = MetricStates(other).state_dict()
    with pytest.raises(CheckpointMismatchError, match=r"\['b'\].*\['a'\]"):
        MetricStates(one).merge([state, state])
