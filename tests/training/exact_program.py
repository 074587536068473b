"""A program that trains with chosen features and notes what it reads and trains.

``python -m tests.training.exact_program --run-dir D --out O --features shuffle,dropout --kill-at train:7``;
with ``--serve`` it forks such programs, see ``processes.py``.
"""

import argparse
import gc
import hashlib
import json
import logging
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import trainlab
from tests.training.marks import Marks
from tests.training.processes import serve
from trainlab import Batch, Epoch, LRScheduler
from trainlab.checkpoint import Retention
from trainlab.distributed import RngState
from trainlab.storage import faults

RECORDS = 30
BATCH = 4
EPOCHS = 3

Mode = LRScheduler.StepMode


def numbers_of(epoch: int) -> list[int]:
    """The records of an epoch of ``Flow``, whose epochs differ in order and in length."""
    return random.Random(epoch).sample(range(RECORDS), RECORDS - 10 + 4 * epoch)


def record(number: int, *, augmented: bool) -> tuple[int, torch.Tensor, torch.Tensor]:
    """A record: its number, six inputs, one output; augmented with numbers from all three generators."""
    x = torch.randn(6, generator=torch.Generator().manual_seed(number))
    y = (x.sum() + x[0] * x[1]).reshape(1)
    if augmented:
        x = x + 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * float(np.random.rand())
    return number, x, y


class Records(torch.utils.data.Dataset[Any]):
    """Map-style; notes each read."""

    def __init__(self, marks: Marks | None, *, augmented: bool) -> None:
        self._marks = marks
        self._augmented = augmented
        self._reads = 0

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, number: int) -> Any:
        self._reads += 1
        if self._marks is not None:
            self._marks.at("read", self._reads)
            self._marks.note("read", int(number))
        return record(int(number), augmented=self._augmented)


class Flow(torch.utils.data.IterableDataset[Any]):
    """Iterable, its epochs differing in length; shared out among workers."""

    def __init__(self, marks: Marks, *, augmented: bool) -> None:
        self._marks = marks
        self._augmented = augmented
        self.epoch = 0
        self.begin = 0
        self.reads = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        share = slice(None) if info is None else slice(info.id, None, info.num_workers)
        begin, self.begin = self.begin, 0
        for number in numbers_of(self.epoch)[share][begin:]:
            self.reads += 1
            self._marks.at("read", self.reads)
            self._marks.note("read", int(number))
            yield record(number, augmented=self._augmented)


class StatefulFlow(Flow):
    """The same with a state of its own: it goes on where it was."""

    def __init__(self, marks: Marks, *, augmented: bool) -> None:
        super().__init__(marks, augmented=augmented)
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        self.position = self.begin
        for one in super().__iter__():
            self.position += 1
            yield one
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self.begin = state["epoch"], state["position"]


class Drawn(torch.utils.data.Sampler[int]):
    """A sampler of the user's that draws from the global generators and has a state."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        yield from random.sample(range(RECORDS), 20 + self.passes) + np.random.permutation(RECORDS)[:5].tolist()

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.passes = state["passes"]


class Average:
    """A running average of weights, kept beside the model and registered as stateful."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.steps = 0
        self.tensors = [p.detach().clone() for p in model.parameters()]

    def update(self) -> None:
        self.steps += 1
        for mean, parameter in zip(self.tensors, self._model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "tensors": self.tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, self.tensors = state["steps"], [tensor.clone() for tensor in state["tensors"]]


class Watcher(trainlab.Callback):
    """Draws random numbers in its hooks, counts, and passes the places that lie in hooks."""

    def __init__(self, trial: "ExactTrial") -> None:
        self._trial = trial
        self.drawn = 0.0
        self.counts: Counter[str] = Counter()

    def _draw(self) -> float:
        if "quiet" in self._trial.features:
            return 0.0
        return float(torch.rand(())) + random.random() + float(np.random.rand())

    def _count(self, hook: str) -> None:
        self.counts[hook] += 1
        self.drawn += self._draw()

    def _at(self, place: str) -> None:
        self._trial.marks.at(place, self._trial.context.progress.batches_trained)

    def on_training_start(self) -> None:
        self._draw()

    def on_training_epoch_start(self, epoch_idx: int) -> None:
        self._count("epoch start")

    def on_training_epoch_end(self, epoch_idx: int) -> None:
        self._count("epoch end")

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: list[dict[str, Any]]) -> None:
        self._count("report")
        self._at("report")

    def on_validation_end(self, metrics: dict[str, Any]) -> None:
        self._count("validation end")
        for scheduler in self._trial.plateaus:
            scheduler.step(metrics["loss"])

    def on_checkpoint_save_start(self, checkpoint: dict[str, Any]) -> None:
        self._draw()  # the state was collected before
        self._trial.marks.note("begun", self._trial.context.progress.batches_trained)
        self._at("save")

    def on_checkpoint_upload_end(self, uuid: str) -> None:
        self._draw()
        self._trial.marks.note("told_durable", Path(uuid).name)
        self._at("committed")

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn, self.counts = state_dict["drawn"], state_dict["counts"]


class WriteWatcher(Watcher):
    """One that looks at the files before they are committed, which makes the training wait for them."""

    def on_checkpoint_write_end(self, checkpoint_dir: Path) -> None:
        self._draw()
        self._at("write")


class Shadow(trainlab.Callback):
    """A callback that keeps a running average of the weights in its state."""

    def __init__(self, trial: "ExactTrial") -> None:
        self._trial = trial
        self.averages = [Average(model) for model in trial.context.models]

    def on_training_workload_end(self, avg_metrics: dict[str, Any], batch_metrics: list[dict[str, Any]]) -> None:
        for average in self.averages:
            average.update()

    def state_dict(self) -> dict[str, Any]:
        return {"averages": [average.state_dict() for average in self.averages]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for average, state in zip(self.averages, state_dict["averages"], strict=True):
            average.load_state_dict(state)


class ExactTrial(trainlab.Trial):
    """A small Trial with the features that are asked for."""

    def __init__(self, context: trainlab.TrialContext, features: set[str], marks: Marks) -> None:
        self.features = features
        self.marks = marks
        self.plateaus: list[Any] = []
        self.workers = next((int(name[-1]) for name in features if name.startswith("workers")), 0)
        marks.watch(context)
        super().__init__(context)
        self.watcher = WriteWatcher(self) if "write_end" in features else Watcher(self)
        self.shadow = Shadow(self)
        if "stateful" in features:
            model = self.models["critic"] if "gan" in features else self.model
            self.average = context.register_stateful("average", Average(model))

    def _net(self, inputs: int, outputs: int) -> nn.Module:
        hidden: list[nn.Module] = [nn.Linear(inputs, 16)]
        hidden += [nn.BatchNorm1d(16)] if "buffers" in self.features else []
        hidden += [nn.Dropout(0.3)] if "dropout" in self.features else []
        return nn.Sequential(*hidden, nn.Tanh(), nn.Linear(16, outputs))

    def build_model(self) -> Any:
        if "gan" in self.features:
            return {"generator": self._net(3, 6), "critic": self._net(6, 1)}
        return self._net(6, 1)

    def _optimizer(self, parameters: Any, kind: str) -> torch.optim.Optimizer:
        if kind == "adam":
            return torch.optim.Adam(parameters, lr=0.01, amsgrad=True)
        if kind == "adamw":
            return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
        if kind == "lbfgs":
            return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3, history_size=4)
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    def build_optimizer(self, model: Any) -> Any:
        kind = next(iter(sorted(self.features & {"adam", "adamw", "lbfgs"})), "sgd")
        if "gan" in self.features:
            return {
                "generator": self._optimizer(model["generator"].parameters(), "adam"),
                "critic": self._optimizer(model["critic"].parameters(), kind),
            }
        return self._optimizer(model.parameters(), kind)

    def build_lr_scheduler(self, optimizer: Any) -> Any:
        if "gan" not in self.features:
            return self._scheduler(optimizer)
        schedulers = {name: self._scheduler(one) for name, one in optimizer.items()}
        return None if None in schedulers.values() else schedulers

    def _scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        schedulers = torch.optim.lr_scheduler
        if "epochs" in self.features:
            return schedulers.StepLR(optimizer, 1, gamma=0.5)
        if "batches" in self.features:
            warm = schedulers.LinearLR(optimizer, 0.1, 1.0, total_iters=5)
            down = schedulers.CosineAnnealingLR(optimizer, 20)
            return LRScheduler(schedulers.SequentialLR(optimizer, [warm, down], [5]), Mode.STEP_EVERY_BATCH, 2)
        if "steps" in self.features:
            has_momentum = "lbfgs" not in self.features
            one_cycle = schedulers.OneCycleLR(optimizer, 0.05, total_steps=100, cycle_momentum=has_momentum)
            return LRScheduler(one_cycle, Mode.STEP_EVERY_OPTIMIZER_STEP)
        if "manual" in self.features:
            return LRScheduler(schedulers.LambdaLR(optimizer, lambda step: 0.95**step), Mode.MANUAL_STEP)
        if "plateau" in self.features:
            self.plateaus.append(schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.2))
            return self.plateaus[-1]
        return None

    def build_training_data_loader(self) -> Any:
        augmented = "augment" in self.features
        if "iterable" in self.features:
            return trainlab.DataLoader(Flow(self.marks, augmented=augmented), BATCH, num_workers=self.workers)
        if "flow" in self.features:
            return trainlab.DataLoader(StatefulFlow(self.marks, augmented=augmented), BATCH, num_workers=self.workers)
        records = Records(self.marks, augmented=augmented)
        if "sampler" in self.features:
            return trainlab.DataLoader(records, BATCH, sampler=Drawn(), num_workers=self.workers)
        return trainlab.DataLoader(records, BATCH, shuffle="shuffle" in self.features, **self._kept())

    def _kept(self) -> dict[str, Any]:
        return {"num_workers": self.workers, "persistent_workers": "persistent" in self.features}

    def build_validation_data_loader(self) -> Any:
        return trainlab.DataLoader(Records(None, augmented=False), 16, num_workers=self.workers)

    def build_callbacks(self) -> Mapping[str, trainlab.Callback]:
        return {"watcher": self.watcher, **({"shadow": self.shadow} if "ema" in self.features else {})}

    def get_batch_length(self, batch: Any) -> int:
        if self.context.models and next(iter(self.context.models)).training:
            self.marks.at("counted", self.context.progress.batches_trained)
        return len(batch[0])

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        numbers, x, y = batch
        self.marks.at("train", batch_idx)
        if "ahead" in self.features:
            self.context.is_epoch_end()
        metrics = self._train_gan(x, batch_idx) if "gan" in self.features else self._train_one(x, y)
        if "stateful" in self.features:
            self.average.update()
        if "manual" in self.features and batch_idx % 3 == 0:
            for scheduler in self.context.lr_schedulers:
                scheduler.step()
        self.marks.note("trained", {"batch": batch_idx, "epoch": epoch_idx, "numbers": numbers.tolist()})
        self.marks.at("stepped", batch_idx)
        return metrics

    def _train_one(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        def compute() -> torch.Tensor:
            loss = nn.functional.mse_loss(self.model(x).float(), y)
            self.context.backward(loss)
            return loss

        if "lbfgs" in self.features:
            losses: list[torch.Tensor] = []

            def closure() -> torch.Tensor:
                self.optimizer.zero_grad()
                losses.append(compute())
                return losses[-1]

            self.context.step_optimizer(self.optimizer, closure=closure)
            return {"loss": losses[0] if losses else 0.0}
        loss = compute()
        self.context.step_optimizer(self.optimizer, clip_grads=lambda p: nn.utils.clip_grad_norm_(p, 1.0))
        return {"loss": loss}

    def _train_gan(self, x: torch.Tensor, batch_idx: int) -> dict[str, Any]:
        """Two steps of the critic a batch (one with a scaler); the generator sums the gradients of three batches."""
        generator, critic = self.models["generator"], self.models["critic"]
        for _ in range(1 if "fp16" in self.features else 2):
            made = generator(torch.randn(len(x), 3)).detach().float()
            critic_loss = (critic(made) - critic(x)).float().mean()
            self.context.backward(critic_loss)
            self.context.step_optimizer(self.optimizers["critic"])
        generator_loss = -critic(generator(torch.randn(len(x), 3)).float()).float().mean()
        self.context.backward(generator_loss)
        if batch_idx % 3 == 2:
            self.context.step_optimizer(self.optimizers["generator"])
        return {"critic": critic_loss, "generator": generator_loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        _, x, y = batch
        if batch_idx:  # the first batch alone is tried before training too
            self.marks.at("evaluate", self.context.progress.batches_trained)
        model = self.models["critic"] if "gan" in self.features else self.model
        loss = nn.functional.mse_loss(model(x).float(), y)
        return {"loss": loss, "drawn": float(torch.rand(())), "python": random.random(), "numpy": np.random.rand()}


def digest(tree: Any) -> str:
    """A checksum of everything in a tree, to the last bit."""
    collected = hashlib.sha256()
    _feed(collected, tree)
    return collected.hexdigest()


def _feed(collected: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        collected.update(f"{value.dtype} {tuple(value.shape)}".encode())
        collected.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        collected.update(value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            collected.update(repr(key).encode())
            _feed(collected, value[key])
    elif isinstance(value, list | tuple):
        collected.update(f"[{len(value)}".encode())
        for one in value:
            _feed(collected, one)
    else:
        collected.update(repr(value).encode())


def _found(trial: ExactTrial, result: trainlab.FitResult) -> dict[str, Any]:
    context = trial.context
    return {
        "models": [digest(model.state_dict()) for model in context.models],
        "gradients": [digest([p.grad for p in model.parameters()]) for model in context.models],
        "optimizers": [digest(optimizer.state_dict()) for optimizer in context.optimizers],
        "schedulers": [digest(scheduler.state_dict()) for scheduler in context.lr_schedulers],
        "scaler": None if context.scaler is None else context.scaler.state_dict(),
        "stateful": {name: digest(one.state_dict()) for name, one in context.stateful.items()},
        "callbacks": [trial.watcher.drawn, dict(trial.watcher.counts), digest(trial.shadow.state_dict())],
        "generators": digest(RngState.capture().state_dict()),
        "progress": result.progress.state_dict(),
        "metrics": result.metrics,
        "best": [result.best_metric, result.best_checkpoint and Path(result.best_checkpoint).name],
        "last": result.last_checkpoint and Path(result.last_checkpoint).name,
    }


def _train(options: argparse.Namespace, marks: Marks) -> None:
    features = set(options.features.split(",")) - {""}
    with trainlab.init(
        run_dir=options.run_dir,
        seed=11,
        device="cpu",
        precision=next(iter(features & {"bf16", "fp16"}), "fp32"),
        aggregation_frequency=3 if "accumulate" in features else 1,
        progress=options.progress,
    ) as context:
        trial = ExactTrial(context, features, marks)
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            result = trainlab.Trainer(trial, context).fit(
                max_length=Epoch(options.epochs),
                reporting_period=Batch(3),
                validation_period=Batch(5),
                checkpoint_period=Batch(options.checkpoint_period),
                metric="loss" if "best" in features else "drawn" if "lucky" in features else None,
                latest_checkpoint=context.latest_checkpoint,
                retention=Retention(keep_every=Batch(7)) if "keep" in features else None,
                checkpoint_mode=next(iter(features & {"fork", "sync"}), "async"),
            )
        finally:
            after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
            (options.out / "handlers").write_text(str(before == after))
        (options.out / "result.json").write_text(json.dumps(_found(trial, result)))


def main(arguments: list[str]) -> None:
    """Train as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", default="")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--checkpoint-period", type=int, default=4)
    parser.add_argument("--kill-at")
    parser.add_argument("--pause-at")
    parser.add_argument("--raise-at")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--in-thread", action="store_true")
    parser.add_argument("--leave-at-once", action="store_true")
    options = parser.parse_args(arguments)
    sys.argv = ["program.py", *arguments]
    logging.basicConfig(format="%(message)s")
    marks = Marks(options.out, options.kill_at, options.pause_at, options.raise_at)
    faults.hook = marks.at_point
    if options.in_thread:
        thread = threading.Thread(target=_train, args=(options, marks))
        thread.start()
        thread.join()
    else:
        _train(options, marks)
    if options.leave_at_once:
        os._exit(0)  # the run is closed; taking the interpreter down would take longer than the run


def _bring_what_is_brought_late() -> None:
    """Import what the first step and the first record would import, so that forked processes need not."""
    import torch.utils.tensorboard

    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    torch.optim.Adam([parameter]).step()
    assert trainlab.Trainer and torch.utils.tensorboard.SummaryWriter
    gc.collect()
    gc.freeze()  # a forked process that looks at everything would copy everything


if __name__ == "__main__":
    torch.set_num_threads(1)
    given: list[str] | None = sys.argv[1:]
    if given == ["--serve"]:
        _bring_what_is_brought_late()
        given = serve()
    if given is not None:
        main(given)
