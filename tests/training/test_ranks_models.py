"""Kinds of models, optimizers and number formats, each on several ranks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.distributed.ranks import run_ranks
from tests.training import jobs
from trainlab import Batch

DDP = [pytest.param(2, "ddp", marks=pytest.mark.slow), (3, "ddp")]
WAYS = [*DDP, (2, "fsdp"), pytest.param(4, "fsdp", marks=pytest.mark.slow)]
# What of each: batches, options. With 104 records each rank has two at least of each batch, which BatchNorm needs.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "gan": (10, {"gan": True}),
    "norm": (10, {"norm": True, "records": 104}),
    "fp16": (9, {"overflow": 4, "init": {"precision": "fp16"}}),
    "bf16": (9, {"init": {"precision": "bf16"}}),
    "lbfgs": (8, {"lbfgs": True}),
}


class Results(dict[tuple[int, str, str], list[dict[str, Any]]]):
    """What each rank told, by the number of ranks, the way and the case; they train once they are asked for.

    Args:
        folder: of their runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, key: tuple[int, str, str]) -> list[dict[str, Any]]:
        size, way, _ = key
        calls: dict[str, Any] = {}
        for name, (batches, options) in CASES.items():
            if (name, way) != ("lbfgs", "fsdp"):
                init = {"parallel": way, "seed": 0, **options.get("init", {})}
                fit = {"checkpoint_period": Batch(4)}
                calls[name] = (str(self._folder / str(size) / way / name), batches, {**options, "init": init}, fit)
        ranks = run_ranks(jobs.train_all, size, calls)
        self.update({(size, way, name): [rank[name] for rank in ranks] for name in calls})
        return self[key]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank told."""
    return Results(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("size", "way"), WAYS)
def test_two_models_with_an_optimizer_each(trained: Results, size: int, way: str) -> None:
    """A generator and its critic, with an optimizer each, end with the weights of one process."""
    (alone,) = trained[1, "auto", "gan"]
    for rank in trained[size, way, "gan"]:
        assert jobs.furthest(rank["weights"], alone["weights"]) <= 1e-12
        assert rank["progress"]["optimizer_steps"] == alone["progress"]["optimizer_steps"]
        assert rank["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], abs=1e-12)


@pytest.mark.parametrize(("size", "way"), WAYS)
def test_batch_norm_looks_at_each_ranks_own_records(trained: Results, size: int, way: str) -> None:
    """BatchNorm uses each rank's piece of the batch, and the statistics that are kept and used are those of rank 0."""
    ranks = trained[size, way, "norm"]
    assert len({rank["digest"] for rank in ranks}) == 1
    expected = norm_by_hand(ranks)
    # A bias before BatchNorm has a gradient of rounding errors alone, which AdamW makes steps of.
    assert jobs.furthest(ranks[0]["weights"], expected) <= 1e-8


def norm_by_hand(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The weights after a plain loop over the pieces of the ranks."""
    torch.manual_seed(0)
    model = jobs.Net(norm=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    x, y, _ = jobs.data(104).tensors
    for batch in ranks[0]["seen"]:
        optimizer.zero_grad()
        pieces = [rank["seen"][batch] for rank in ranks]
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        after: dict[str, torch.Tensor] = {}
        for numbers in pieces:
            model.load_state_dict(before, strict=False)
            loss = F.cross_entropy(model(x[numbers]), y[numbers])
            (loss * len(numbers) / sum(map(len, pieces))).backward()
            after = after or copy.deepcopy(dict(model.named_buffers()))
        model.load_state_dict(after, strict=False)
        optimizer.step()
    return {f"0.{key}": value.detach() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(("size", "way"), WAYS)
def test_an_overflow_on_one_rank_is_skipped_on_all(trained: Results, size: int, way: str) -> None:
    """A gradient that overflows on one rank, in one parameter, makes all skip the step, and lowers the scale of all."""
    (alone,) = trained[1, "auto", "fp16"]
    ranks = trained[size, way, "fp16"]
    for rank in ranks:
        assert rank["digest"] == ranks[0]["digest"]
        assert rank["progress"]["optimizer_steps"] == alone["progress"]["optimizer_steps"] == {"0": 8}
        assert rank["scaler"] == alone["scaler"] == ranks[0]["scaler"]
        assert rank["scaler"]["scale"] == 2.0**15
        assert jobs.furthest(rank["weights"], alone["weights"]) <= 2e-2


@pytest.mark.parametrize(("size", "way"), WAYS)
def test_bf16(trained: Results, size: int, way: str) -> None:
    """In bf16 the ranks keep the same weights, near those of one process."""
    (alone,) = trained[1, "auto", "bf16"]
    ranks = trained[size, way, "bf16"]
    assert len({rank["digest"] for rank in ranks}) == 1
    assert jobs.furthest(ranks[0]["weights"], alone["weights"]) <= 5e-2


@pytest.mark.parametrize(("size", "way"), DDP)
def test_lbfgs_searches_by_the_loss_of_all_records(trained: Results, size: int, way: str) -> None:
    """LBFGS with a line search makes the steps of one process, for it is given the loss of all ranks' records."""
    (alone,) = trained[1, "auto", "lbfgs"]
    for rank in trained[size, way, "lbfgs"]:
        assert jobs.furthest(rank["weights"], alone["weights"]) <= 1e-9
