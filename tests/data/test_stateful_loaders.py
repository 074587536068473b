"""Loaders with a state of their own go on exactly where the last batch that was trained leaves them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.data.stateful_loaders import AHEAD, IN_PROCESS
from tests.data.test_stream import train
from trainlab.checkpoint.tree import decode, encode
from trainlab.data import BatchStream
from trainlab.distributed import seed_all

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:'set_vital' is deprecated"
    ),  # torchdata 0.11 itself, with newer versions of torch
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

EPOCHS = 3
# Of those that fetch ahead: each kind of loader with each way of knowing its place.
QUICK = [
    "stateful, torch's sampler",
    "stateful, every 3rd",
    "stateful, counting",
    "stateful, position, persistent",
    "stateful, no state",
    "nodes, by epoch",
    "nodes, generator",
    "nodes, threads",
    "nodes, processes",
    "nodes, position",
    "trainlab, counting, persistent",
    "trainlab, counting, sampler",
    "trainlab, rewinding",
    "trainlab, position, uneven",
    "trainlab, lazy, persistent",
]


def check(factory: Callable[[], Any], stops: Callable[[int], set[int]], *, cut: bool = False) -> None:
    """Whether a run stopped anywhere goes on, through a checkpoint's data, as the uninterrupted one."""

    def stream() -> BatchStream:
        return BatchStream(factory(), seed=9, cut_by_len=cut)

    seed_all(1)
    whole = train(stream(), EPOCHS)
    for stop in stops(len(whole)):
        seed_all(1)
        saved = train(stream(), EPOCHS, stop=stop)
        structure, tensors = encode(saved["stream"])
        saved["stream"] = decode(json.loads(json.dumps(structure)), tensors)
        seed_all(2)
        assert saved["given"] + train(stream(), EPOCHS, saved=saved) == whole, stop


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("name", IN_PROCESS)
@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_loader_in_this_process_goes_on_exactly(name: str, cut: bool) -> None:
    """Stopped after any batch of any epoch, the batches that follow are those of the uninterrupted run."""
    if cut and any(word in name for word in ("position", "lazy", "rewinding", "no state", "nodes")):
        pytest.skip("without a length it is one endless epoch")
    check(IN_PROCESS[name], lambda length: set(range(1, length)), cut=cut)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in AHEAD]
)
def test_a_loader_that_fetches_ahead_goes_on_exactly(name: str) -> None:
    """What workers and threads fetched ahead of the batches trained is neither left out nor given twice."""
    check(AHEAD[name], lambda length: {3, 7, 12})
