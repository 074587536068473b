"""A trained Trial loaded from a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainlab
from tests.training.checkpoint_runs import Wider, newest, run, spoil
from tests.training.trials import LineTrial, weights
from trainlab import Batch
from trainlab.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InvalidStateError,
    InvalidTypeError,
    InvalidValueError,
)


class SizedTrial(LineTrial):
    """A Trial whose model hangs on a hyperparameter and a further argument."""

    def __init__(self, context: trainlab.TrialContext, bias: bool = True) -> None:
        self.bias = bias
        super().__init__(context)

    def build_model(self) -> nn.Module:
        width = self.context.get_hparam("width")
        return nn.Sequential(nn.Linear(1, width), nn.Linear(width, 1, bias=self.bias))


def test_a_trial_is_loaded_with_its_hyperparameters(open_run: Any) -> None:
    """A Trial is loaded from a checkpoint with the stored hyperparameters and weights, and makes no run folder."""
    trial = run(open_run, SizedTrial, hparams={"width": 5})
    shutil.move(newest(), "elsewhere")
    shutil.rmtree("here")
    before = sorted(Path().iterdir())
    for arguments in ({"trial_class": SizedTrial}, {}):
        loaded: Any = trainlab.load_trial_from_checkpoint_path("elsewhere", **arguments)
        assert type(loaded) is SizedTrial and weights(loaded) == weights(trial)
        assert loaded.context.get_hparams() == {"width": 5}
    assert sorted(Path().iterdir()) == before


class PaddedTrial(SizedTrial):
    """A Trial whose model hangs on a hyperparameter that a checkpoint takes for a secret."""

    def build_model(self) -> nn.Module:
        assert len(self.context.get_hparam("pad_token")) == 5
        return super().build_model()


def test_a_hyperparameter_that_looks_like_a_secret_is_asked_for(open_run: Any) -> None:
    """What a checkpoint leaves out as a secret is never read as `***`: it is an error that says how to give it."""
    run(open_run, PaddedTrial, hparams={"width": 5, "pad_token": "<pad>"})
    assert "<pad>" not in (newest() / "manifest.json").read_text(encoding="utf-8")
    with pytest.raises(InvalidValueError, match=r"'pad_token' is not known.*hparams=\{'pad_token': \.\.\.\}"):
        trainlab.load_trial_from_checkpoint_path(newest())
    loaded = trainlab.load_trial_from_checkpoint_path(newest(), hparams={"pad_token": "[PAD]"})
    assert loaded.context.get_hparams() == {"width": 5, "pad_token": "[PAD]"}


def test_a_trial_is_loaded_with_further_arguments(open_run: Any) -> None:
    """trial_kwargs reach the Trial; weights that do not fit then are named with the keys."""
    run(open_run, SizedTrial, hparams={"width": 5})
    with pytest.raises(CheckpointMismatchError, match="unknown: 1.bias"):
        trainlab.load_trial_from_checkpoint_path(newest(), SizedTrial, {"bias": False})


def test_a_class_that_is_not_imported_must_be_given(open_run: Any) -> None:
    """Loading imports nothing: a class that cannot be found here is an error that asks for trial_class."""

    class Local(LineTrial):
        pass

    run(open_run, Local)
    with pytest.raises(InvalidValueError, match="Pass trial_class"):
        trainlab.load_trial_from_checkpoint_path(newest())
    assert isinstance(trainlab.load_trial_from_checkpoint_path(newest(), Local), Local)


@pytest.mark.parametrize("wrong", [nn.Linear, LineTrial.__init__, "LineTrial"])
def test_a_class_that_is_no_trial_is_refused(open_run: Any, wrong: Any) -> None:
    """trial_class must be a Trial's class."""
    run(open_run)
    with pytest.raises(InvalidTypeError, match="trial_class"):
        trainlab.load_trial_from_checkpoint_path(newest(), trial_class=wrong)


def test_a_checkpoint_that_cannot_be_loaded_is_told(open_run: Any, tmp_path: Path) -> None:
    """Missing, foreign, pickled, damaged and misshapen checkpoints are errors that name the file, and the keys."""
    run(open_run)
    load = trainlab.load_trial_from_checkpoint_path
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere", LineTrial)
    with pytest.raises(CheckpointNotFoundError, match="batch-0000006"):
        load("here", LineTrial)
    (tmp_path / "foreign").mkdir()
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "foreign" / "state_dict.pth")
    for foreign in (tmp_path / "foreign", tmp_path / "foreign" / "state_dict.pth"):
        with pytest.raises(CheckpointError, match="not a trainlab checkpoint"):
            load(foreign, LineTrial)
    with pytest.raises(CheckpointMismatchError, match=r"weight \(\[1, 1\] instead of \[3, 1\]\)"):
        load(newest(), Wider)
    spoil(newest() / "model.safetensors")
    with pytest.raises(CheckpointDamagedError, match="model.safetensors"):
        load(newest(), LineTrial)


def test_only_map_location_is_an_option(open_run: Any) -> None:
    """Options of torch.load that would mean unpickling are refused; map_location is taken."""
    run(open_run)
    loaded: Any = trainlab.load_trial_from_checkpoint_path(
        newest(), LineTrial, torch_load_kwargs={"map_location": "cpu"}
    )
    assert loaded.model.weight.device.type == "cpu"
    with pytest.raises(InvalidValueError, match="weights_only"):
        trainlab.load_trial_from_checkpoint_path(newest(), LineTrial, torch_load_kwargs={"weights_only": False})


def test_a_loaded_trial_cannot_be_trained(open_run: Any) -> None:
    """A loaded Trial has no run folder: training it is an error that says so."""
    run(open_run)
    loaded = trainlab.load_trial_from_checkpoint_path(newest(), LineTrial)
    with pytest.raises(InvalidStateError):
        trainlab.Trainer(loaded, loaded.context).fit(max_length=Batch(1))
