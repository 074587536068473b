"""Validation of data that shards itself, where some ranks have none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import trainlab
from tests.data.test_sharded import Shard, deal_out, make_loader, on_threads
from tests.distributed.ranks import run_ranks
from trainlab.data import BatchStream, DataLoader, sharded
from trainlab.errors import DataError


@pytest.mark.parametrize("kind", ["iterable", "map", "torch's", "list"])
def test_a_rank_without_records_to_validate_borrows_a_batch(kind: str) -> None:
    """Shards of a validation may be empty: each rank has something to stand in with, and each record comes once."""
    shards = deal_out([0, 1, 10, 0])

    def rank_reads(rank: int, exchange: Any) -> tuple[list[int], list[int]]:
        loader = make_loader(kind, shards[rank], 2, 4)
        if kind not in ("torch's", "list"):
            loader.batch_size = 2
        stream = BatchStream(
            loader, seed=1, data_rank=rank, data_size=4, deal="batches", exchange=lambda: exchange, move=lambda b: b + 0
        )
        for _ in range(2):
            stream.start_epoch(0)
            given = [record for batch in stream for record in batch.reshape(-1).tolist()]
            stands_in = stream.stand_in().reshape(-1).tolist()
            stream.close()
        return given, stands_in

    found = on_threads(4, rank_reads)
    assert [given for given, _ in found] == shards
    assert [stands_in for _, stands_in in found] == [[0], [0], [9, 10], [0]]


@pytest.mark.parametrize("make", [lambda: Shard([]), lambda: torch.arange(0), lambda: None])
def test_a_rank_that_nobody_lends_a_batch_says_so(make: Callable[[], Any]) -> None:
    """Where there is no batch to stand in with, that is an error which names the rank, and never a made-up batch."""
    dataset = make()
    loader = sharded([]) if dataset is None else DataLoader(dataset, sharded=True)
    alone = BatchStream(loader, seed=1, data_rank=1, data_size=2, deal="batches", role="validation")
    alone.start_epoch(0)
    assert list(alone) == []
    with pytest.raises(DataError, match="Rank 1 has no batch of the validation data set"):
        alone.stand_in()

    def rank_reads(rank: int, exchange: Any) -> None:
        stream = BatchStream(loader, seed=1, data_rank=rank, data_size=2, deal="batches", exchange=exchange)
        stream.start_epoch(0)
        assert list(stream) == []
        with pytest.raises(DataError, match=f"Rank {rank} has no batch"):
            stream.stand_in()

    on_threads(2, rank_reads)


class Ramp(trainlab.Trial):
    """A model that is not trained, validated on shards of some lengths."""

    counts = (0, 1, 10, 0)

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.0)

    def build_training_data_loader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=4)

    def build_validation_data_loader(self) -> DataLoader:
        mine = deal_out(list(self.counts))[self.context.distributed.data_rank]
        return DataLoader(TensorDataset(torch.tensor(mine).reshape(-1, 1).float()), batch_size=2, sharded=True)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        loss = self.model(batch[0]).mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.model(batch[0])
        return {"mean": batch[0].mean()}


def validates(folder: str) -> float:
    """Validate a model of which each rank has a part."""
    torch.set_num_threads(1)
    with trainlab.init(run_dir=folder, parallel="fsdp", progress=False, device="cpu") as context:
        result = trainlab.Trainer(Ramp(context), context).fit(max_length=trainlab.Batch(1), checkpoint_policy="none")
    return result.metrics["mean"]


def test_a_sharded_model_is_validated_where_some_ranks_have_no_record(tmp_path: Any) -> None:
    """With FSDP and shards of 0, 1, 10 and 0 records a validation ends, and gives each record's mean on all ranks."""
    assert run_ranks(validates, 4, str(tmp_path / "run")) == [pytest.approx(5.0)] * 4
