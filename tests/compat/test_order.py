"""The order of calls, and what the callbacks are given."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainlab
from tests.compat.trials import Counter, OneWeightTrial, Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch, Epoch


@dataclass
class Flavour:
    """The same things under the names of two libraries."""

    library: ModuleType
    trial: Any
    callback: Any


FLAVOURS = {
    "compat": Flavour(pytorch, pytorch.PyTorchTrial, pytorch.PyTorchCallback),
    "core": Flavour(trainlab, trainlab.Trial, trainlab.Callback),
}


def recorder(flavour: Flavour, calls: list[str]) -> Any:
    """A callback that writes down its calls."""

    class Recorder(flavour.callback):
        def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
            calls.append(f"on_trial_startup({first_batch_idx}, {'id' if checkpoint_uuid else None})")

        def on_trial_shutdown(self) -> None:
            calls.append("on_trial_shutdown")

        def on_training_start(self) -> None:
            calls.append("on_training_start")

        def on_training_epoch_start(self, epoch_idx: int) -> None:
            calls.append(f"on_training_epoch_start({epoch_idx})")

        def on_training_epoch_end(self, epoch_idx: int) -> None:
            calls.append(f"on_training_epoch_end({epoch_idx})")

        def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: list[Any]) -> None:
            calls.append(f"on_training_workload_end({len(batch_metrics)})")

        def on_validation_start(self) -> None:
            calls.append("on_validation_start")

        def on_validation_epoch_start(self) -> None:
            calls.append("on_validation_epoch_start")

        def on_validation_epoch_end(self, outputs: list[Any]) -> None:
            calls.append(f"on_validation_epoch_end({len(outputs)})")

        def on_validation_end(self, metrics: dict[str, Any]) -> None:
            calls.append(f"on_validation_end({', '.join(metrics)})")

        def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
            calls.append("on_checkpoint_load_start")

        def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
            calls.append("on_checkpoint_save_start")

        def on_checkpoint_write_end(self, checkpoint_dir: Path) -> None:
            calls.append(f"on_checkpoint_write_end({Path(checkpoint_dir).is_dir()})")

        def on_checkpoint_upload_end(self, uuid: str) -> None:
            calls.append("on_checkpoint_upload_end")

        def state_dict(self) -> dict[str, Any]:
            calls.append("state_dict")
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            calls.append("load_state_dict")

    return Recorder()


def trial_of(flavour: Flavour, context: Any, calls: list[str]) -> Any:
    """A Trial with a hand-written __init__ that writes down its calls: 2 batches an epoch."""
    data = torch.utils.data.TensorDataset(torch.ones(8, 1), torch.ones(8, 1))

    class OrderTrial(flavour.trial):
        def __init__(self, context: Any) -> None:
            calls.append("__init__")
            self.context = context
            self.model = context.wrap_model(nn.Linear(1, 1))
            self.optimizer = context.wrap_optimizer(torch.optim.SGD(self.model.parameters(), lr=0.1))

        def build_callbacks(self) -> Any:
            calls.append("build_callbacks")
            return {"recorder": recorder(flavour, calls)}

        def build_training_data_loader(self) -> Any:
            calls.append("build_training_data_loader")
            return flavour.library.DataLoader(data, batch_size=4)

        def build_validation_data_loader(self) -> Any:
            calls.append("build_validation_data_loader")
            return flavour.library.DataLoader(data, batch_size=4)

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            calls.append(f"train_batch({epoch_idx}, {batch_idx})")
            x, y = batch
            loss = nn.functional.mse_loss(self.model(x), y)
            self.context.backward(loss)
            self.context.step_optimizer(self.optimizer)
            return {"loss": loss}

        def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
            calls.append("evaluate_batch")
            x, y = batch
            return {"loss": nn.functional.mse_loss(self.model(x), y)}

    return OrderTrial(context)


VALIDATION = """on_validation_start on_validation_epoch_start evaluate_batch evaluate_batch on_validation_epoch_end(2)
on_validation_end(loss)""".split()
CHECKPOINT = """state_dict on_checkpoint_save_start on_checkpoint_write_end(True) on_checkpoint_upload_end""".split()
BEFORE = ["__init__", "build_callbacks"]
LOADERS = ["build_training_data_loader", "build_validation_data_loader"]
ORDER = [
    *BEFORE,
    "on_trial_startup(0, None)",
    *LOADERS,
    "on_training_start",
    *VALIDATION,
    "on_training_epoch_start(0)",
    "train_batch(0, 0)",
    "train_batch(0, 1)",
    "on_training_epoch_end(0)",
    "on_training_workload_end(2)",
    *VALIDATION,
    "on_training_epoch_start(1)",
    "train_batch(1, 2)",
    "on_training_workload_end(1)",
    *CHECKPOINT,
    "train_batch(1, 3)",
    "on_training_epoch_end(1)",
    "on_training_workload_end(1)",
    *VALIDATION,
    *CHECKPOINT,
    "on_trial_shutdown",
]


def run(flavour: Flavour, **arguments: Any) -> list[str]:
    """The calls of a run in the folder "run", which goes on if it is there already."""
    calls: list[str] = []
    with flavour.library.init(run_dir="run", progress=False, device="cpu") as context:
        trainer = flavour.library.Trainer(trial_of(flavour, context, calls), context)
        trainer.fit(
            validation_period=Batch(2),
            checkpoint_policy="none",
            step_zero_validation=True,
            latest_checkpoint=context.latest_checkpoint,
            **arguments,
        )
    return calls


def without_tries(flavour: Flavour, calls: list[str]) -> list[str]:
    """The calls, but for the state that trainlab itself asks for after the first step."""
    if flavour.library is not trainlab:
        return calls
    first = next(i for i, call in enumerate(calls) if call.startswith("train_batch"))
    assert calls[first + 1] == "state_dict"
    return calls[: first + 1] + calls[first + 2 :]


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_the_order_of_calls(flavour: Flavour) -> None:
    """Hooks of Trial and callbacks come in one exact order, the same as on Determined, for trainlab's Trial too."""
    assert without_tries(flavour, run(flavour, max_length=Batch(4), checkpoint_period=Batch(3))) == ORDER


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_the_order_of_calls_of_a_resumed_run(flavour: Flavour) -> None:
    """A run resumed inside an epoch loads after its loaders are built, and does not start that epoch anew."""
    run(flavour, max_length=Batch(3))
    resumed = without_tries(flavour, run(flavour, max_length=Batch(4)))
    resumed = [call for call in resumed if not (flavour.library is trainlab and call == "evaluate_batch")]
    expected = [
        *BEFORE,
        "on_trial_startup(3, id)",
        *LOADERS,
        "on_checkpoint_load_start",
        "load_state_dict",
        "on_training_start",
        "train_batch(1, 3)",
        "on_training_epoch_end(1)",
        "on_training_workload_end(1)",
        *VALIDATION,
        *CHECKPOINT,
        "on_trial_shutdown",
    ]
    # trainlab itself tries a validation batch before it trains: these calls are looked at in the other flavour.
    assert resumed == [call for call in expected if not (flavour.library is trainlab and call == "evaluate_batch")]


def test_callbacks_run_in_their_order_and_shut_down_in_reverse(open_run: Open) -> None:
    """Callbacks run in the order of their dict, and are shut down once, the last one first, also after an error."""
    calls: list[str] = []

    class Named(pytorch.PyTorchCallback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_training_start(self) -> None:
            calls.append(f"start {self.name}")

        def on_trial_shutdown(self) -> None:
            calls.append(f"shutdown {self.name}")

    class Failing(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            raise ZeroDivisionError

    context = open_run()
    trial = Failing(context)
    trial.callbacks = {name: Named(name) for name in ("b", "a", "c")}
    with pytest.raises(ZeroDivisionError):
        fit(context, trial, max_length=Batch(1))
    assert calls == ["start b", "start a", "start c", "shutdown c", "shutdown a", "shutdown b"]


def test_callbacks_are_built_by_fit(open_run: Open) -> None:
    """build_callbacks is called once, by fit and not by Trainer, so it may use what is set in between."""
    built = []

    class Building(OneWeightTrial):
        def build_callbacks(self) -> Any:
            built.append(len(self.seen))
            return {}

    context = open_run()
    trainer = pytorch.Trainer(Building(context), context)
    assert built == []
    trainer.fit(max_length=Batch(2))
    assert built == [0]


def test_old_forms_of_hooks_still_run(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    """on_training_epoch_start without a parameter runs with a warning, on_checkpoint_end before its new name."""
    calls = []

    class Old(pytorch.PyTorchCallback):
        def on_training_epoch_start(self) -> None:
            calls.append("epoch")

        def on_checkpoint_end(self, checkpoint_dir: Any) -> None:
            calls.append("old")

        def on_checkpoint_write_end(self, checkpoint_dir: Any) -> None:
            calls.append("new")

    context = open_run()
    trial = OneWeightTrial(context)
    trial.callbacks = {"old": Old()}
    fit(context, trial, max_length=Epoch(2))
    assert calls == ["epoch", "epoch", "old", "new"]
    assert any("deprecated" in message for message in caplog.messages)


def test_batch_metrics_are_what_train_batch_returned(open_run: Open) -> None:
    """A workload's callback gets every batch's metrics, in order: tensors as arrays, all else untouched."""

    class Colourful(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            super().train_batch(batch, epoch_idx, batch_idx)
            return {
                "tensor": torch.full((2, 3), float(batch_idx)),
                "number": 0.5 * batch_idx,
                "text": f"batch {batch_idx}",
                "nothing": None,
            }

    context = open_run()
    _, counter = fit(context, Colourful(context), max_length=Batch(100))
    (averages, batches), *others = counter.given("on_training_workload_end")
    assert len(batches) == 100 and not others
    for i, batch in enumerate(batches):
        assert isinstance(batch["tensor"], np.ndarray) and batch["tensor"].tolist() == [[i] * 3] * 2
        assert batch["number"] == 0.5 * i and type(batch["number"]) is float
        assert batch["text"] == f"batch {i}" and batch["nothing"] is None
    assert averages["tensor"] == 49.5 and averages["number"] == 24.75
    assert averages["text"] is None and averages["nothing"] is None


def test_averages_tell_the_batches_and_epochs(open_run: Open) -> None:
    """avg_metrics holds batches and epochs trained so far, and a metric of the user's with that name wins."""

    class Naming(OneWeightTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            return {**super().train_batch(batch, epoch_idx, batch_idx), "epochs": 7.0}

    context = open_run()
    _, counter = fit(context, max_length=Batch(20))
    averages, _ = counter.given("on_training_workload_end")[0]
    assert (averages["batches"], averages["epochs"]) == (20, 1)
    context = open_run()
    _, counter = fit(context, Naming(context), max_length=Batch(20))
    assert counter.given("on_training_workload_end")[0][0]["epochs"] == 7.0


def test_the_metrics_of_a_validation_are_the_users(open_run: Open) -> None:
    """on_validation_end gets the user's names only, and the outputs of the batches come as arrays on the host."""
    _, counter = fit(open_run(), max_length=Batch(1))
    assert [set(metrics) for metrics in counter.given("on_validation_end")] == [{"loss"}]
    (outputs,) = counter.given("on_validation_epoch_end")
    assert len(outputs) == 16 and all(isinstance(output["loss"], np.ndarray) for output in outputs)


def test_the_id_of_a_checkpoint_resumes_from_it(open_run: Open) -> None:
    """What on_checkpoint_upload_end is told can be given to fit as latest_checkpoint, in another run too."""
    _, counter = fit(open_run(), max_length=Batch(6), checkpoint_period=Batch(5))
    first, _ = counter.given("on_checkpoint_upload_end")
    trial, counter = fit(open_run(), max_length=Batch(7), latest_checkpoint=first)
    assert trial.seen == [(0, 5), (0, 6)]
    assert counter.given("on_trial_startup") == [(5, first)]


def test_callbacks_keep_their_state(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    """A callback's state comes back under its name; a callback without one starts fresh, with a warning."""

    class Summing(pytorch.PyTorchCallback):
        def __init__(self) -> None:
            self.state = {"sum": 0.0, "history": [torch.zeros(2)]}

        def on_training_workload_end(self, avg_metrics: Any, batch_metrics: Any) -> None:
            self.state["sum"] += len(batch_metrics)

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.state = state_dict

    context = open_run(run_dir="run")
    trial = OneWeightTrial(context)
    trial.callbacks = {"summing": Summing()}
    fit(context, trial, max_length=Batch(4))
    context.close()
    context = open_run(run_dir="run")
    trial = OneWeightTrial(context)
    trial.callbacks = {"summing": Summing(), "new": Summing()}
    fit(context, trial, max_length=Batch(6), latest_checkpoint=context.latest_checkpoint)
    assert trial.callbacks["summing"].state["sum"] == 6
    assert trial.callbacks["summing"].state["history"][0].tolist() == [0, 0]
    assert trial.callbacks["new"].state["sum"] == 2
    assert any("'new'" in message and "fresh" in message for message in caplog.messages)


def test_a_callback_may_change_what_is_loaded(open_run: Open) -> None:
    """on_checkpoint_load_start comes before the loads, so that it can mend an old checkpoint."""

    class Mending(pytorch.PyTorchCallback):
        def on_checkpoint_load_start(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["models_state_dict"][0]["weight"].fill_(1.0)

    context = open_run()
    _, counter = fit(context, max_length=Batch(2))
    context = open_run()
    trial = OneWeightTrial(context)
    trial.callbacks = {"mending": Mending()}
    fit(context, trial, max_length=Batch(3), latest_checkpoint=counter.given("on_checkpoint_upload_end")[0])
    assert trial.weights == [1.0]


def test_a_misspelt_hook_is_an_error(open_run: Open) -> None:
    """A hook that would never run is found before training."""

    class Misspelt(Counter):
        def on_validation_ends(self, metrics: Any) -> None: ...

    context = open_run()
    trial = OneWeightTrial(context)
    trial.callbacks = {"misspelt": Misspelt()}
    with pytest.raises(TypeError, match="on_validation_end"):
        fit(context, trial, max_length=Batch(1))
    assert trial.seen == []
