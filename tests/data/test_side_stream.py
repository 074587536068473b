from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from trainlab.data import BatchStream, DataLoader, to_device

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def on_gpu(loader: Any) -> BatchStream:
    """Open a stream of batches on the GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    return BatchStream(loader, seed=1, move=lambda batch: to_device(batch, device), device=device)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_on_the_gpu_are_those_of_the_cpu(workers: int, shuffle: bool) -> None:
    """Copied on a stream of their own while the GPU computes, batches hold what they hold on the CPU."""
    dataset = TensorDataset(torch.randn(4000, 256), torch.arange(4000))
    loader = DataLoader(dataset, batch_size=64, shuffle=shuffle, num_workers=workers)
    weight = torch.randn(2048, 2048, device="cuda")
    here, there = BatchStream(loader, seed=1), on_gpu(loader)
    here.start_epoch(0)
    there.start_epoch(0)
    copies = []
    for images, labels in there:
        weight = weight @ weight / weight.norm()  # keeps the GPU behind the host, so that copies run ahead
        copies.append((images * 2, labels.clone()))
    for (images, labels), (twice, same) in zip(here, copies, strict=True):
        assert torch.equal(twice.cpu(), images * 2)
        assert torch.equal(same.cpu(), labels)


def test_the_host_does_not_wait() -> None:
    """Asking for a batch neither waits for the GPU nor for the copy."""
    stream = on_gpu(DataLoader(TensorDataset(torch.randn(640, 64)), batch_size=64, shuffle=True))
    stream.start_epoch(0)
    next(stream)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            next(stream)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_batch_looked_ahead_is_there_too() -> None:
    """A batch that was fetched to see whether one follows lies on the GPU as the others do."""
    from tests.data.datasets import Flow

    stream = on_gpu(DataLoader(Flow(10, shuffled=False), batch_size=4))
    stream.start_epoch(0)
    given = []
    while not stream.exhausted():
        index, _ = next(stream)
        assert index.is_cuda
        given += index.tolist()
    assert given == list(range(10))


def test_structures_of_every_kind_are_copied() -> None:
    """Dicts, text and numbers pass through pinning and copying as ``to_device`` passes them."""
    loader = DataLoader([{"x": torch.ones(3), "name": "a"}, {"x": torch.zeros(3), "name": "b"}], batch_size=2)
    stream = on_gpu(loader)
    stream.start_epoch(0)
    batch = next(stream)
    assert batch["x"].is_cuda
    assert batch["name"] == ["a", "b"]


def test_tensors_on_the_gpu_are_indexed_there() -> None:
    """A data set that lies on the GPU is fetched there, with and without shuffling."""
    for shuffle in (False, True):
        loader = DataLoader(torch.arange(10, device="cuda"), batch_size=4, shuffle=shuffle)
        batches = list(loader)
        assert all(batch.is_cuda for batch in batches)
        assert sorted(torch.cat(batches).tolist()) == list(range(10))
