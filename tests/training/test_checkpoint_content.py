"""What a checkpoint holds, and what comes back from it."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trainlab
from tests.training.checkpoint_runs import Wider, newest, run, spoil
from tests.training.trials import LineTrial, weights
from trainlab import Batch, LRScheduler
from trainlab.checkpoint import Checkpoint
from trainlab.errors import CheckpointDamagedError, CheckpointError, CheckpointMismatchError, InvalidStateError


class Catching(trainlab.Callback):
    """Keeps what its hooks are given, and has a state that a test may set."""

    def __init__(self, state: dict[Any, Any] | None = None) -> None:
        self.state = state or {}
        self.loaded_state: Any = None
        self.saved: dict[str, Any] = {}
        self.loaded: dict[str, Any] = {}

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        self.saved = dict(checkpoint)

    def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded_state = state_dict


def with_callback(callback: trainlab.Callback) -> type[LineTrial]:
    """A LineTrial that has the callback under the name 'catching'."""

    class Watched(LineTrial):
        def build_callbacks(self) -> dict[str, trainlab.Callback]:
            return {"catching": callback}

    return Watched


# -- what is in it ----------------------------------------------------------------------------


def test_callbacks_see_the_whole_content(open_run: Any) -> None:
    """on_checkpoint_save_start sees models, optimizers and schedulers as lists, callbacks by name, and generators."""
    callback = Catching({"mine": 1})
    trial = run(open_run, with_callback(callback))
    content = callback.saved
    assert [list(state) for state in content["models_state_dict"]] == [["weight", "bias"]]
    assert [state["state"].keys() for state in content["optimizers_state_dict"]] == [{0, 1}]
    assert content["lr_schedulers_state_dict"] == []
    assert content["callbacks"] == {"catching": {"mine": 1}}
    assert {"cpu", "numpy", "random"} <= content["rng_state"].keys()
    assert "scaler_state_dict" not in content
    assert torch.equal(content["models_state_dict"][0]["weight"], trial.model.weight)


def test_callbacks_are_told_where_a_run_goes_on(open_run: Any) -> None:
    """on_trial_startup gets the first batch index that this process trains, and the checkpoint, or 0 and None."""
    told: list[tuple[int, str | None]] = []

    class Listening(trainlab.Callback):
        def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
            told.append((first_batch_idx, checkpoint_uuid))

    run(open_run, with_callback(Listening()), batches=6)
    checkpoint = newest().absolute()
    trial = run(open_run, with_callback(Listening()), batches=8)
    assert told == [(0, None), (6, str(checkpoint))] and trial.seen[0] == (0, 6)


def test_load_start_sees_what_save_start_left(open_run: Any) -> None:
    """What a callback adds to the content is saved, and seen when it is loaded."""

    class Adding(Catching):
        def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["note"] = {"made": torch.arange(3), "by": "me"}

    run(open_run, with_callback(Adding()))
    loading = Catching()
    run(open_run, with_callback(loading), batches=7)
    assert loading.loaded["note"]["by"] == "me" and loading.loaded["note"]["made"].tolist() == [0, 1, 2]
    assert loading.loaded["models_state_dict"][0].keys() == {"weight", "bias"}


def test_load_start_changes_what_is_loaded(open_run: Any) -> None:
    """What a callback changes in the content before it is loaded is what the run goes on with."""

    class Changing(trainlab.Callback):
        def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["models_state_dict"][0]["weight"].fill_(40.0)
            checkpoint["optimizers_state_dict"][0]["param_groups"][0]["lr"] = 0.0

    run(open_run)
    trial = run(open_run, with_callback(Changing()), batches=8)
    assert trial.model.weight.item() == 40.0 and trial.optimizer.param_groups[0]["lr"] == 0.0


def test_files_that_a_callback_adds_belong_to_the_checkpoint(open_run: Any) -> None:
    """Files that on_checkpoint_write_end adds are in the manifest: one that is changed makes the checkpoint damaged."""

    class Adding(trainlab.Callback):
        def on_checkpoint_write_end(self, checkpoint_dir: Path) -> None:
            (checkpoint_dir / "extra").mkdir()
            (checkpoint_dir / "extra" / "vocabulary.txt").write_text("a b c")

    run(open_run, with_callback(Adding()))
    assert "extra/vocabulary.txt" in json.loads((newest() / "manifest.json").read_text())["files"]
    Checkpoint.open(newest())
    (newest() / "extra" / "vocabulary.txt").write_text("a b d")
    with pytest.raises(CheckpointDamagedError, match="vocabulary.txt"):
        Checkpoint.open(newest())


def test_the_best_validation_is_in_its_checkpoint(open_run: Any) -> None:
    """A checkpoint holds the validation that judges it, and names itself as the best where it is."""
    context = open_run(run_dir="here")
    trainlab.Trainer(LineTrial(context), context).fit(max_length=Batch(4), validation_period=Batch(2), metric="loss")
    progress = Checkpoint.open(newest()).progress
    assert progress["last_validation_batch"] == progress["last_checkpoint_batch"] == 4
    assert progress["best_metric"] == progress["validation_metrics"]["loss"]
    assert progress["best_checkpoint"] == newest().name == "batch-0000004"


# -- weights ----------------------------------------------------------------------------------


def test_weights_need_no_trainlab(open_run: Any) -> None:
    """The weights are read by safetensors alone, and fit the user's module strictly."""
    trial = run(open_run)
    model = nn.Linear(1, 1)
    model.load_state_dict(load_file(newest() / "model.safetensors"), strict=True)
    assert torch.equal(model.weight, trial.model.weight) and torch.equal(model.bias, trial.model.bias)


class TwoTrial(LineTrial):
    """Two models and two optimizers, by name."""

    def build_model(self) -> Any:
        return {"body": nn.Linear(1, 4), "head": nn.Linear(4, 1)}

    def build_optimizer(self, model: Any) -> Any:
        return {name: torch.optim.Adam(part.parameters(), lr=0.05) for name, part in model.items()}

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        loss = nn.functional.mse_loss(self.models["head"](self.models["body"](x)), y)
        self.context.backward(loss)
        for optimizer in self.optimizers.values():
            self.context.step_optimizer(optimizer)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"loss": 0.0}


def test_each_model_has_a_file_of_its_name(open_run: Any) -> None:
    """Several models are saved under their names, one file each, and can be loaded one by one."""
    trial = run(open_run, TwoTrial)
    for name, model in (("body", nn.Linear(1, 4)), ("head", nn.Linear(4, 1))):
        model.load_state_dict(load_file(newest() / f"model.{name}.safetensors"), strict=True)
        assert torch.equal(model.weight, trial.models[name].weight)


def test_tied_weights_are_saved_once_and_stay_tied(open_run: Any) -> None:
    """A weight that two layers share is one tensor in the file, and one tensor after a resume."""

    class Tied(LineTrial):
        def build_model(self) -> nn.Module:
            model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
            model[1].weight = model[0].weight
            return model

    trial = run(open_run, Tied)
    assert sorted(load_file(newest() / "model.safetensors")) == ["0.bias", "0.weight", "1.bias"]
    again = run(open_run, Tied, batches=6)
    assert again.seen == [] and again.model[1].weight is again.model[0].weight
    assert torch.equal(again.model[0].weight, trial.model[0].weight)


def test_a_compiled_model_has_plain_keys(open_run: Any) -> None:
    """The weights of a compiled model carry the keys of the user's own module; either loads the other's."""

    class Compiled(LineTrial):
        def build_model(self) -> nn.Module:
            return torch.compile(nn.Linear(1, 1), backend="eager")  # type: ignore[return-value]

    trial = run(open_run, Compiled)
    assert sorted(load_file(newest() / "model.safetensors")) == ["bias", "weight"]
    plain = run(open_run, batches=6)
    assert torch.equal(plain.model.weight, trial.model.weight)
    compiled = trainlab.load_trial_from_checkpoint_path(newest(), trial_class=Compiled)
    assert torch.equal(compiled.model.weight, trial.model.weight)


class Counting(nn.Linear):
    """A layer with a state that is no tensor."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return super().forward(x)

    def get_extra_state(self) -> Any:
        return {"calls": self.calls, "by": {0: "int"}}

    def set_extra_state(self, state: Any) -> None:
        assert state["by"] == {0: "int"}
        self.calls = state["calls"]


def test_extra_state_of_a_module_comes_back(open_run: Any) -> None:
    """A module's get_extra_state is saved beside the weights and given back."""

    class Extra(LineTrial):
        def build_model(self) -> nn.Module:
            return nn.Sequential(Counting(1, 1))

    assert run(open_run, Extra).model[0].calls == 6
    assert run(open_run, Extra, batches=8).model[0].calls == 8
    assert trainlab.load_trial_from_checkpoint_path(newest(), trial_class=Extra).model[0].calls == 8


# -- states come back as they were ------------------------------------------------------------


class Master(torch.optim.SGD):
    """SGD in fp32 for bf16 parameters, its state of several dtypes and kinds."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                master = state.setdefault("master", parameter.detach().float())
                master -= 0.01 * parameter.grad.float()
                parameter.copy_(master)
                state["double"] = master.double() / 3
                state["count"] = torch.tensor(len(state), dtype=torch.int64)
                state["phase"] = torch.complex(master, -master)
                state["largest"] = float("inf")
                state["history"] = [*state.get("history", ()), master.sum()][-2:]


# torch's own load_state_dict, of which nothing is kept, casts the complex state of a real parameter.
def test_optimizer_states_keep_their_dtypes(open_run: Any) -> None:
    """fp32 states of bf16 parameters come back in fp32, bit by bit, and other dtypes and kinds as they were."""

    class Half(LineTrial):
        def build_model(self) -> nn.Module:
            return nn.Linear(1, 1).to(torch.bfloat16)

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return Master(model.parameters(), lr=0.1)

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            x, y = batch
            return super().train_batch((x.bfloat16(), y.bfloat16()), epoch_idx, batch_idx)

        def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"loss": 0.0}

    before = run(open_run, Half).optimizer.state_dict()["state"]
    after = run(open_run, Half, batches=6).optimizer.state_dict()["state"]
    assert before.keys() == after.keys() == {0, 1}
    for number in before:
        assert before[number].keys() == after[number].keys()
        for key, dtype in (("master", torch.float32), ("double", torch.float64), ("phase", torch.complex64)):
            assert after[number][key].dtype == before[number][key].dtype == dtype
            assert torch.equal(after[number][key], before[number][key])
        assert after[number]["count"].dtype == torch.int64
        assert after[number]["largest"] == float("inf")
        assert all(map(torch.equal, after[number]["history"], before[number]["history"]))


def test_a_callbacks_state_comes_back_as_it_was(open_run: Any) -> None:
    """int keys, Counter, infinities, NaN, tuples, sets, bytes and complex numbers come back with their types."""
    state: dict[str, Any] = {
        "by number": {0: "a", 7: {-1: 2.5}},
        "counter": Counter("abracadabra"),
        "limits": (float("inf"), float("-inf"), -0.0),
        "complex": 1 - 2j,
        "complex tensor": torch.tensor([1 + 2j, complex("inf")]),
        "set": {1, 2},
        "bytes": b"\x00\xff",
        "array": np.arange(4, dtype=np.int16),
        "large": 2**90,
        "none": None,
    }
    run(open_run, with_callback(Catching(state)))
    loading = Catching()
    run(open_run, with_callback(loading), batches=7)
    found = loading.loaded_state
    assert found.keys() == state.keys()
    for key in ("by number", "counter", "limits", "complex", "set", "bytes", "large", "none"):
        assert found[key] == state[key] and type(found[key]) is type(state[key])
    assert str(found["limits"][2]) == "-0.0"
    assert torch.equal(found["complex tensor"], state["complex tensor"])
    assert found["array"].dtype == np.int16 and found["array"].tolist() == [0, 1, 2, 3]


def test_a_state_that_is_no_data_is_named(open_run: Any) -> None:
    """An object in a callback's state is refused with the path to it; no checkpoint is left half-written."""
    with pytest.raises(CheckpointError, match="callbacks/catching/when.*object"):
        run(open_run, with_callback(Catching({"when": object()})))
    assert not Path("here/checkpoints").exists() or not list(Path("here/checkpoints").iterdir())


class Memory:
    """A registered object."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def state_dict(self) -> dict[Any, Any]:
        return self.kept

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.kept = dict(state)


class Remembering(LineTrial):
    """Keeps the last loss of each epoch in a registered object."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        super().__init__(context)
        self.memory = context.register_stateful("memory", Memory())

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        metrics = super().train_batch(batch, epoch_idx, batch_idx)
        self.memory.kept[epoch_idx] = metrics["loss"].detach()
        return metrics


def test_registered_objects_go_on(open_run: Any) -> None:
    """The state of a registered object is saved, and given back on a resume."""
    first = run(open_run, Remembering, batches=20)
    again = run(open_run, Remembering, batches=20)
    assert again.seen == [] and again.memory.kept.keys() == {0, 1}
    assert all(torch.equal(again.memory.kept[epoch], first.memory.kept[epoch]) for epoch in (0, 1))


@pytest.mark.parametrize("dropout", [False, True])
def test_random_numbers_of_validations_go_on(open_run: Any, dropout: bool) -> None:
    """Numbers drawn in validations 2 to 5 by Python, numpy and torch equal those of a run never resumed."""
    drawn: list[tuple[float, ...]] = []

    class Drawing(LineTrial):
        shuffle = False

        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5 if dropout else 0.0))

        def evaluate_full_dataset(self, data_loader: Any) -> dict[str, Any]:
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            return {"loss": 0.0}

        evaluate_batch = trainlab.Trial.evaluate_batch

    def fit(batches: int, **arguments: Any) -> list[tuple[float, ...]]:
        context = open_run(**arguments)
        drawn.clear()
        trainlab.Trainer(Drawing(context), context).fit(
            max_length=Batch(batches), validation_period=Batch(1), latest_checkpoint=context.latest_checkpoint
        )
        context.close()
        return drawn[1:]  # the first is the validation that is tried

    whole = fit(5, seed=3)
    first = fit(1, seed=3, run_dir="here")
    assert first == whole[:1]
    assert fit(5, seed=99, run_dir="here") == whole[1:]


# -- what does not fit ------------------------------------------------------------------------


class Deeper(LineTrial):
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))


class OtherOptimizer(LineTrial):
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)


class OtherGroups(LineTrial):
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": [model.weight]}, {"params": [model.bias]}])


class NamedOptimizer(LineTrial):
    def build_optimizer(self, model: nn.Module) -> Any:
        return {"main": torch.optim.Adam(model.parameters())}


def scheduled(make: Callable[[Any], Any]) -> type[LineTrial]:
    """A LineTrial with schedulers."""

    class Scheduled(LineTrial):
        def build_lr_scheduler(self, optimizer: Any) -> Any:
            return make(optimizer)

    return Scheduled


StepLR, ExponentialLR = torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler.ExponentialLR


@pytest.mark.parametrize(
    ("saved", "loaded", "named"),
    [
        (LineTrial, TwoTrial, ["models", "'0'", "'body', 'head'"]),
        (LineTrial, Wider, ["model '0'", "weight ([1, 1] instead of [3, 1])", "bias ([1] instead of [3])"]),
        (LineTrial, Deeper, ["missing: 0.weight, 0.bias, 1.weight, 1.bias", "unknown: weight, bias"]),
        (LineTrial, OtherOptimizer, ["Adam", "SGD"]),
        (LineTrial, OtherGroups, ["1 parameter groups", "has 2"]),
        (LineTrial, NamedOptimizer, ["optimizers", "['0']", "['main']"]),
        (LineTrial, scheduled(lambda o: StepLR(o, 1)), ["0 learning rate schedulers", "wraps 1"]),
        (scheduled(lambda o: StepLR(o, 1)), scheduled(lambda o: ExponentialLR(o, 0.9)), ["StepLR", "ExponentialLR"]),
        (LineTrial, Remembering, ["stateful", "[]", "['memory']"]),
        (Remembering, LineTrial, ["stateful", "['memory']", "[]"]),
    ],
)
def test_what_does_not_fit_is_listed(
    open_run: Any, saved: type[LineTrial], loaded: type[LineTrial], named: list[str]
) -> None:
    """A Trial with other models, optimizers, schedulers or registered objects is refused, the differences listed."""
    run(open_run, saved)
    with pytest.raises(CheckpointMismatchError) as caught:
        run(open_run, loaded, batches=8)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert [folder.name for folder in Path("here/checkpoints").iterdir()] == ["batch-0000006"]


class WithScaler(LineTrial):
    """Scales its loss with a scaler of its own."""

    def __init__(self, context: trainlab.TrialContext) -> None:
        self.scaler = context.wrap_scaler(torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2))
        super().__init__(context)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        self.seen.append((epoch_idx, batch_idx))
        x, y = batch
        loss = nn.functional.mse_loss(self.model(x), y)
        self.context.backward(self.scaler.scale(loss))
        self.context.step_optimizer(self.optimizer, scaler=self.scaler)
        self.scaler.update()
        return {"loss": loss}


def test_the_scaler_goes_on(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A wrapped scaler's scale and growth are saved and go on, without a word."""
    first = run(open_run, WithScaler, batches=5)
    again = run(open_run, WithScaler, batches=5)
    assert again.seen == [] and again.scaler.get_scale() == first.scaler.get_scale() == 2.0**6
    assert again.scaler.state_dict() == first.scaler.state_dict()
    assert "gradient scaler" not in caplog.text


@pytest.mark.parametrize(
    ("saved", "loaded", "says"),
    [(WithScaler, LineTrial, "this run has none"), (LineTrial, WithScaler, "it starts fresh")],
)
def test_a_scaler_on_one_side_is_told(
    open_run: Any, caplog: pytest.LogCaptureFixture, saved: type[LineTrial], loaded: type[LineTrial], says: str
) -> None:
    """A scaler that only the checkpoint or only the run has is warned of; the run goes on."""
    run(open_run, saved)
    trial = run(open_run, loaded, batches=8)
    assert len(trial.seen) == 2
    assert sum(says in r.getMessage() for r in caplog.records if r.levelname == "WARNING") == 1


# -- damage -----------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_is_passed_over(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged newest checkpoint is named in the log, the run goes on from the one before, and ends as ever."""
    whole = run(open_run, batches=12, run_dir="whole")
    for batches in (4, 8):
        run(open_run, batches=batches)
    spoil(newest() / "model.safetensors")
    trial = run(open_run, batches=12)
    assert [batch for _, batch in trial.seen] == list(range(4, 12))
    told = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(told) == 1 and "batch-0000008" in told[0] and "batch-0000004" in told[0]
    assert weights(trial) == weights(whole)


def test_only_damaged_checkpoints_stop_the_run(open_run: Any) -> None:
    """Where every checkpoint is damaged fit refuses to begin anew over them, and says so."""
    run(open_run)
    spoil(newest() / "state.safetensors")
    with pytest.raises(InvalidStateError, match="none of them is valid"):
        run(open_run, batches=8)
    assert newest().name == "batch-0000006"


def test_a_damaged_checkpoint_asked_for_by_name_is_an_error(open_run: Any) -> None:
    """fit does not take another checkpoint than the one it is given: a damaged one is an error naming the file."""
    for batches in (4, 8):
        run(open_run, batches=batches)
    spoil(newest() / "state.json")
    context = open_run(run_dir="here")
    with pytest.raises(CheckpointDamagedError, match="state.json"):
        trainlab.Trainer(LineTrial(context), context).fit(max_length=Batch(9), latest_checkpoint=newest())


def test_schedulers_go_on(open_run: Any) -> None:
    """A scheduler's state comes back: the rate goes on falling from where it was."""
    exponential = scheduled(lambda o: LRScheduler(ExponentialLR(o, 0.5), LRScheduler.StepMode.STEP_EVERY_BATCH))
    run(open_run, exponential, batches=3)
    trial = run(open_run, exponential, batches=5)
    assert trial.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5**5)
