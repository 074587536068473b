"""Checkpoints: what is in them, and runs that go on from them."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.compat.trials import OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch, Epoch


class Everything(OneWeightTrial):
    """Dropout, shuffling, momentum, a schedule and random numbers in validation: a mistake in a resume shows."""

    records = 40

    def __init__(self, context: Any, width: int = 8) -> None:
        super().__init__(context)
        model = nn.Sequential(nn.Linear(1, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.net = context.wrap_model(model)
        self.adam = context.wrap_optimizer(torch.optim.Adam(self.net.parameters(), lr=0.01))
        context.wrap_lr_scheduler(
            torch.optim.lr_scheduler.ExponentialLR(self.adam, 0.9), pytorch.LRScheduler.StepMode.STEP_EVERY_BATCH
        )
        self.drawn: list[tuple[float, ...]] = []

    def data(self) -> Any:
        x = torch.linspace(0, 1, self.records)[:, None]
        return torch.utils.data.TensorDataset(x, x**2, torch.arange(self.records))

    def build_training_data_loader(self) -> Any:
        return pytorch.DataLoader(self.data(), batch_size=4, shuffle=True)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        x, y, number = batch
        self.seen.append((epoch_idx, batch_idx))
        self.batches.append(number.tolist())
        loss = nn.functional.mse_loss(self.net(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.adam)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return {"loss": nn.functional.mse_loss(self.net(batch[0]), batch[1]), "drawn": self.drawn[-1][2]}


def test_a_resumed_run_is_the_uninterrupted_one(open_run: Open) -> None:
    """Training in two halves reads, draws, computes and reports exactly what it does in one piece."""

    def run(run_dir: str, *lengths: int) -> Any:
        parts = []
        for length in lengths:
            context = open_run(run_dir=run_dir, seed=3)
            trial, counter = fit(
                context,
                Everything(context),
                max_length=Batch(length),
                validation_period=Batch(1),
                checkpoint_policy="none",
                latest_checkpoint=context.latest_checkpoint,
            )
            context.close()
            parts.append((trial, counter))
        return parts

    ((whole, whole_counter),) = run("whole", 25)
    (first, first_counter), (second, second_counter) = run("halves", 7, 25)
    assert second.seen[0] == (0, 7) and second_counter.given("on_trial_startup")[0][0] == 7
    assert first.batches + second.batches == whole.batches
    assert first.drawn + second.drawn == whole.drawn
    reports = [
        [float(batch["loss"]) for _, window in counter.given("on_training_workload_end") for batch in window]
        for counter in (first_counter, second_counter, whole_counter)
    ]
    assert reports[0] + reports[1] == reports[2]
    for key, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[key])


class Looking(pytorch.PyTorchCallback):
    """Keeps the checkpoint's content as the hooks see it."""

    saved: Any = None
    loaded: Any = None

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        self.saved = dict(checkpoint)

    def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = dict(checkpoint)


def test_callbacks_see_the_content_under_its_old_names(open_run: Open) -> None:
    """The hooks of a checkpoint find lists in order of wrapping under the names that they had on Determined."""
    context = open_run()
    trial = Everything(context)
    trial.callbacks = {"looking": Looking()}
    _, counter = fit(context, trial, max_length=Batch(2))
    again = open_run()
    resumed = Everything(again)
    resumed.callbacks = {"looking": Looking()}
    fit(again, resumed, max_length=Batch(3), latest_checkpoint=counter.given("on_checkpoint_upload_end")[0])
    for content in (trial.callbacks["looking"].saved, resumed.callbacks["looking"].loaded):
        assert [set(state) for state in content["models_state_dict"]] == [
            {"weight"},
            set(trial.net.state_dict()),
        ]
        assert len(content["optimizers_state_dict"]) == 2 and "param_groups" in content["optimizers_state_dict"][0]
        assert len(content["lr_schedulers_state_dict"]) == 1
        assert set(content["callbacks"]) == {"looking", "counter"} and "rng_state" in content


def test_shapes_that_do_not_fit_are_an_error(open_run: Open) -> None:
    """A checkpoint of another architecture is refused at fit, as a RuntimeError, before anything is trained."""
    context = open_run()
    _, counter = fit(context, Everything(context), max_length=Batch(1))
    context = open_run()
    trial = Everything(context, width=9)
    with pytest.raises(RuntimeError, match="shape"):
        fit(context, trial, max_length=Batch(2), latest_checkpoint=counter.given("on_checkpoint_upload_end")[0])
    assert trial.seen == []


def test_a_trial_is_loaded_from_a_checkpoint(open_run: Open) -> None:
    """A Trial is built with the stored hyperparameters and given keywords, and holds the trained weights."""
    context = open_run(hparams={"lr": 0.5}, exp_conf={"name": "port"})
    trained, counter = fit(context, Everything(context, width=5), max_length=Batch(3))
    path = counter.given("on_checkpoint_upload_end")[0]
    for loaded in (
        pytorch.load_trial_from_checkpoint_path(path, Everything, trial_kwargs={"width": 5}),
        pytorch.load_trial_from_checkpoint_path(path, trial_kwargs={"width": 5}),
        pytorch.load_trial_from_checkpoint_path(
            path, Everything, trial_kwargs={"width": 5}, torch_load_kwargs={"map_location": "cpu"}
        ),
    ):
        assert isinstance(loaded, Everything)
        assert isinstance(loaded.context, pytorch.CheckpointLoadContext)
        assert loaded.context.get_hparam("lr") == 0.5 and loaded.context.get_experiment_config() == {"name": "port"}
        for key, value in trained.net.state_dict().items():
            assert torch.equal(value, loaded.net.state_dict()[key])
    assert not isinstance(trained.context, pytorch.CheckpointLoadContext)


def test_loading_nothing_is_an_error(tmp_path: Path) -> None:
    """A path without a checkpoint is told of, and so is an old one, which would run code when loaded."""
    with pytest.raises(FileNotFoundError):
        pytorch.load_trial_from_checkpoint_path(tmp_path / "nothing", Everything)
    old = tmp_path / "old"
    old.mkdir()
    torch.save({"models_state_dict": []}, old / "state_dict.pth")
    with pytest.raises(RuntimeError, match="not a trainlab checkpoint"):
        pytorch.load_trial_from_checkpoint_path(old, Everything)


def test_a_class_that_is_not_there_is_asked_for(open_run: Open) -> None:
    """Without trial_class, a class that is not imported is a ValueError that asks for it: nothing is imported."""

    class Local(Everything):
        pass

    context = open_run()
    _, counter = fit(context, Local(context), max_length=Batch(1))
    with pytest.raises(ValueError, match="trial_class"):
        pytorch.load_trial_from_checkpoint_path(counter.given("on_checkpoint_upload_end")[0])


def test_a_finished_epoch_is_not_trained_again(open_run: Open) -> None:
    """A run resumed at an epoch's end starts with the next epoch."""
    _, counter = fit(open_run(), max_length=Epoch(1))
    trial, counter = fit(
        open_run(), max_length=Batch(17), latest_checkpoint=counter.given("on_checkpoint_upload_end")[0]
    )
    assert trial.seen == [(1, 16)] and counter.given("on_training_epoch_start") == [1]
