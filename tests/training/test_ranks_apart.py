from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import trainlab
from tests.distributed.ranks import start_ranks
from tests.training.jobs import Noted
from trainlab import Batch


class Apart(Noted):
    """Trains past the context, in one of the ways in which a raw loop does."""

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        x, y, _ = batch
        loss = F.cross_entropy(self.model(x), y)
        if self.options["way"] == "its own step":
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            parameters = list(self.model.parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            self.context.step_optimizer(self.optimizer)
        return {"loss": loss}


def train_apart(run_dir: str, way: str) -> None:
    """Train."""
    with trainlab.init(run_dir=run_dir, progress=False) as context:
        trainlab.Trainer(Apart(context, {"way": way}), context).fit(max_length=Batch(9), validation_period=Batch(6))


@pytest.mark.parametrize("way", ["its own step", "gradients set by hand"])
def test_weights_that_grow_apart_are_found(tmp_path: Path, way: str) -> None:
    """Ranks whose gradients were not exchanged do not train on in silence: the next validation ends the run."""
    with start_ranks(train_apart, 2, str(tmp_path / "run"), way) as ranks:
        assert ranks.wait() == [1, 1]
        outputs = ranks.outputs()
    assert outputs.count("DisagreementError: The weights of model '0' have grown apart: rank 1 has others") >= 1
    assert "than rank 0 after batch 6" in outputs


class Late(trainlab.Trial):
    """Puts another layer into its model after that was wrapped."""

    def __init__(self, context: Any) -> None:
        self.context = context
        model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 3))
        self.model = context.wrap_model(model)
        model[1] = torch.nn.Linear(4, 3)
        self.optimizer = context.wrap_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(torch.utils.data.TensorDataset(torch.ones(16, 8)), batch_size=4)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        loss = self.model(batch[0]).square().mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}


def train_late(run_dir: str) -> None:
    """Train."""
    with trainlab.init(run_dir=run_dir, progress=False, parallel="fsdp") as context:
        trainlab.Trainer(Late(context), context).fit(max_length=Batch(3))


def test_a_layer_that_is_not_sharded_is_refused(tmp_path: Path) -> None:
    """Under FSDP a layer put into the model after wrap_model is an error at the start, with its parameters' names."""
    with start_ranks(train_late, 2, str(tmp_path / "run")) as ranks:
        assert ranks.wait() == [1, 1]
        assert "came into it after it was wrapped, and are not sharded: 1.weight, 1.bias" in ranks.outputs()
