"""The same training written for a raw loop, for trainlab and for its peers.

Each contender trains for ever, and calls `tick` at the beginning of every step.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

BATCH_SIZE = 64
RECORDS = 60_000
Tick = Callable[[], None]


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and the optimizer that all train."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, torch.optim.Adam(model.parameters())


def records() -> torch.utils.data.TensorDataset:
    """As many records as MNIST has."""
    torch.manual_seed(1)
    return torch.utils.data.TensorDataset(torch.rand(RECORDS, 784), torch.randint(0, 10, (RECORDS,)))


class Prebuilt:
    """1000 batches that lie in memory (50 different ones), so that loading costs nobody anything."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self._batches = [[torch.rand(BATCH_SIZE, 784), torch.randint(0, 10, (BATCH_SIZE,))] for _ in range(50)] * 20

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def torch_loader() -> Any:
    """What a raw loop has."""
    return torch.utils.data.DataLoader(records(), batch_size=BATCH_SIZE, shuffle=True)


def trainlab_loader() -> Any:
    """The same from trainlab."""
    import trainlab

    return trainlab.DataLoader(records(), batch_size=BATCH_SIZE, shuffle=True)


def load_only(batches: Iterable[Any], tick: Tick) -> None:
    """Take batches, and do nothing with them."""
    while True:
        for _ in batches:
            tick()


def raw(batches: Iterable[Any], tick: Tick) -> None:
    """What torch's tutorials do, and no more: nothing is kept, shown or recorded."""
    model, optimizer = parts()
    while True:
        for x, y in batches:
            tick()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()


def trainlab_defaults(batches: Iterable[Any], tick: Tick, *, quiet: bool = False) -> None:
    """A Trial with a bar, metrics, metrics.jsonl and TensorBoard, reporting every 100 batches: the defaults."""
    import trainlab

    class BenchTrial(trainlab.Trial):
        def __init__(self, context: Any) -> None:
            model, optimizer = parts()
            self.context = context
            self.model = context.wrap_model(model)
            self.optimizer = context.wrap_optimizer(optimizer)

        def build_training_data_loader(self) -> Any:
            return batches

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            tick()
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            self.context.backward(loss)
            self.context.step_optimizer(self.optimizer)
            return {"loss": loss}

    with trainlab.init(device="cpu", progress=not quiet, enable_tensorboard_logging=not quiet) as context:
        context.experimental.disable_dataset_reproducibility_checks()
        report = trainlab.Batch(10_000 if quiet else 100)
        trainlab.Trainer(BenchTrial(context), context).fit(max_length=trainlab.Batch(10**9), reporting_period=report)


def trainlab_quiet(batches: Iterable[Any], tick: Tick) -> None:
    """The same without a bar and TensorBoard, and a report every 10,000 batches."""
    trainlab_defaults(batches, tick, quiet=True)


def lightning_defaults(batches: Iterable[Any], tick: Tick, *, quiet: bool = False) -> None:
    """Lightning with its bar and TensorBoard, logging every 100 batches, without checkpoints."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = parts()

        def configure_optimizers(self) -> Any:
            return self.optimizer

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            tick()
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            if not quiet:
                self.log("loss", loss, prog_bar=True)
            return loss

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        log_every_n_steps=100,
        logger=not quiet,
        enable_progress_bar=not quiet,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), batches)


def lightning_quiet(batches: Iterable[Any], tick: Tick) -> None:
    """Lightning without bar, logger and logged metrics."""
    lightning_defaults(batches, tick, quiet=True)


def fabric(batches: Iterable[Any], tick: Tick) -> None:
    """Fabric: the raw loop with its wrappers."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(*parts())
    while True:
        for x, y in batches:
            tick()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()


def ignite(batches: Iterable[Any], tick: Tick) -> None:
    """Ignite: an Engine without handlers."""
    from ignite.engine import Engine

    model, optimizer = parts()

    def step(engine: Any, batch: Any) -> Any:
        tick()
        x, y = batch
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    Engine(step).run(batches, max_epochs=10**6)


def accelerate(batches: Iterable[Any], tick: Tick) -> None:
    """Accelerate: the raw loop with its wrappers."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*parts())
    while True:
        for x, y in batches:
            tick()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()


def torchtnt(batches: Iterable[Any], tick: Tick) -> None:
    """TorchTNT: a TrainUnit without callbacks."""
    from torchtnt.framework import TrainUnit, train

    class Unit(TrainUnit[Any]):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = parts()

        def train_step(self, state: Any, data: Any) -> Any:
            tick()
            x, y = data
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            return loss

    train(Unit(), batches, max_epochs=10**6)


CONTENDERS: dict[str, tuple[Callable[[Iterable[Any], Tick], None], str]] = {
    "raw loop": (raw, "torch"),
    "raw loop again": (raw, "torch"),
    "loading": (load_only, "torch"),
    "trainlab, defaults on": (trainlab_defaults, "trainlab"),
    "trainlab, off": (trainlab_quiet, "trainlab"),
    "Lightning, defaults on": (lightning_defaults, "lightning"),
    "Lightning, off": (lightning_quiet, "lightning"),
    "Fabric": (fabric, "lightning"),
    "Ignite": (ignite, "ignite"),
    "Accelerate": (accelerate, "accelerate"),
    "TorchTNT": (torchtnt, "torchtnt"),
}
"""Each contender by name: its function, and the package that it needs."""

LOADERS: dict[str, Callable[[], Any]] = {
    "prebuilt batches": Prebuilt,
    "torch's loader": torch_loader,
    "trainlab's loader": trainlab_loader,
}
