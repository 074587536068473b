"""What the ranks of a test do: train a small Trial, and tell what each read, trained and got."""

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import trainlab
from trainlab import Batch, LRScheduler
from trainlab.distributed import RngState
from trainlab.storage import faults

RECORDS = 101
BATCH = 16


def data(records: int = RECORDS, dtype: torch.dtype = torch.float64) -> torch.utils.data.TensorDataset:
    """Records of eight numbers, their class, and their own number."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(records, 8, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (records,), generator=generator)
    return torch.utils.data.TensorDataset(x, y, torch.arange(records))


class Augmented(torch.utils.data.Dataset[Any]):
    """The same records, each with numbers of all three generators added where it is read."""

    def __init__(self, records: int) -> None:
        self.records = data(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Any:
        x, y, own = self.records[number]
        return x + 0.1 * torch.randn(8) + 0.1 * random.random() + 0.1 * float(np.random.rand()), y, own


class Flow(torch.utils.data.IterableDataset[Any]):
    """The same records, augmented or not, as a stream whose length nobody knows."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self.records)):
            yield self.records[number]


class Net(nn.Module):
    """A perceptron with an attribute and a method of the user's."""

    def __init__(self, dropout: float = 0.0, norm: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.classes = 3
        self.inner = nn.Linear(8, 17, dtype=dtype)
        self.norm = nn.BatchNorm1d(17, dtype=dtype) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(17, self.classes, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x: torch.Tensor, spike: float = 0.0) -> torch.Tensor:
        scores = self.outer(self.dropout(torch.relu(self.norm(self.inner(x))))) * self.scale
        # Adds nothing, and so much to the gradient of one parameter, of which one rank alone has all if it is sharded.
        nothing = (self.scale - self.scale.detach()) * spike
        return torch.cat([scores[:, :1] + nothing, scores[:, 1:]], dim=1)


class Noted(trainlab.Trial):
    """Notes the records of each batch; ``options`` choose what it does."""

    def __init__(self, context: Any, options: Mapping[str, Any]) -> None:
        self.options = options
        self.dtype = torch.float64 if context.precision.name == "fp32" else torch.float32
        self.seen: dict[int, list[int]] = {}
        self.evaluated: list[list[int]] = []
        self.drawn: list[list[float]] = []
        self.lr: list[float] = []
        self.kill = Killer(context, options["kill"]) if "kill" in options else None
        super().__init__(context)

    def build_model(self) -> Any:
        if self.options.get("gan"):
            return {
                "generator": nn.Sequential(nn.Linear(3, 8, dtype=self.dtype), nn.Tanh()),
                "critic": nn.Sequential(nn.Linear(8, 9, dtype=self.dtype), nn.Tanh(), nn.Linear(9, 1).to(self.dtype)),
            }
        return Net(self.options.get("dropout", 0.0), self.options.get("norm", False), self.dtype)

    def build_optimizer(self, model: Any) -> Any:
        if self.options.get("gan"):
            return {
                "generator": torch.optim.Adam(model["generator"].parameters(), lr=1e-2),
                "critic": torch.optim.SGD(model["critic"].parameters(), lr=1e-2, momentum=0.9),
            }
        if self.options.get("lbfgs"):
            return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

    def build_lr_scheduler(self, optimizer: Any) -> Any:
        if not self.options.get("scheduler"):
            return None
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return LRScheduler(schedule, LRScheduler.StepMode.STEP_EVERY_OPTIMIZER_STEP)

    def build_training_data_loader(self) -> Any:
        size, flows = self.options.get("records", RECORDS), self.options.get("flow", False)
        records = Augmented(size) if self.options.get("augmented") else data(size, self.dtype)
        return trainlab.DataLoader(
            Flow(records) if flows else records,
            batch_size=self.options.get("batch", BATCH),
            shuffle=not flows,
            num_workers=self.options.get("workers", 0),
        )

    def build_validation_data_loader(self) -> Any:
        return trainlab.DataLoader(
            data(self.options.get("validated", RECORDS), self.dtype),
            batch_size=self.options.get("validation_batch", BATCH),
        )

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        x, y, numbers = batch
        self._at("train", batch_idx)
        if self.context.loss_weight:
            self.seen[batch_idx] = numbers.tolist()
        if self.options.get("augmented"):
            draws = [torch.rand(()).item(), random.random(), float(np.random.rand())]
            self.drawn.append(draws)
            x = x + 0.01 * sum(draws)
        hook: Callable[[Any, int], None] | None = self.options.get("hook")
        if hook is not None:
            hook(self, batch_idx)
        metrics = self._train_gan(x) if self.options.get("gan") else self._train_one(x, y, batch_idx)
        self._at("stepped", batch_idx)
        return metrics

    def _train_one(self, x: torch.Tensor, y: torch.Tensor, batch_idx: int) -> Any:
        ranks = self.context.distributed
        overflows = self.options.get("overflow") == batch_idx and ranks.rank == ranks.size - 1
        found: dict[str, Any] = {}

        def compute() -> torch.Tensor:
            scores = self.model(x, 1e38 if overflows else 0.0)
            loss = F.cross_entropy(scores, y)
            found.setdefault("loss", loss)
            found.setdefault("accuracy", (scores.argmax(1) == y).double().mean())
            self.context.backward(loss)
            return loss

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            return compute()

        if self.options.get("lbfgs"):
            self.context.step_optimizer(self.optimizer, closure=closure)
        else:
            compute()
            self.context.step_optimizer(self.optimizer, clip_grads=_clip if self.options.get("clip") else None)
        self.lr.append(self.optimizer.param_groups[0]["lr"])
        return found

    def _train_gan(self, x: torch.Tensor) -> Any:
        generator, critic = self.models["generator"], self.models["critic"]
        fake = generator(x[:, :3])
        critic_loss = (critic(fake.detach()) - critic(x)).mean()
        self.context.backward(critic_loss)
        self.context.step_optimizer(self.optimizers["critic"])
        generator_loss = -critic(fake).mean()
        self.context.backward(generator_loss)
        self.context.step_optimizer(self.optimizers["generator"])
        self.optimizers["critic"].zero_grad()
        return {"critic": critic_loss, "generator": generator_loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
        x, y, numbers = batch
        self._at("evaluate", self.context.progress.batches_trained)
        self.evaluated.append(numbers.tolist())
        if self.options.get("gan"):
            return {"loss": self.models["critic"](x).mean()}
        scores = self.model(x)
        return {"loss": F.cross_entropy(scores, y), "accuracy": (scores.argmax(1) == y).double().mean()}

    def _at(self, place: str, number: int) -> None:
        if self.kill is not None:
            self.kill.at(place, number)


class Killer:
    """Kills all ranks at once where one of them gets to a place.

    Args:
        context: the run's.
        order: the rank, and its place: ``train:7``, ``stepped:7``, ``evaluate:10``, or a point of the stores with how
            often it is passed, ``point:committed:2``.
    """

    def __init__(self, context: Any, order: tuple[int, str]) -> None:
        self._pids = context.distributed.allgather(os.getpid())
        self._place, _, number = order[1].rpartition(":")
        self._number = int(number)
        self._is_mine = order[0] == context.distributed.rank
        self._passed: dict[str, int] = {}
        faults.hook = self._at_point

    def at(self, place: str, number: int) -> None:
        """Pass a place."""
        if self._is_mine and place == self._place and number >= self._number:
            for pid in self._pids:
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def _at_point(self, name: str) -> None:
        self._passed[name] = self._passed.get(name, 0) + 1
        self.at(f"point:{name}", self._passed[name])


def train(run_dir: str, batches: int, options: Mapping[str, Any] | None = None, **fit: Any) -> dict[str, Any]:
    """Train and tell everything; ``options`` beside those of the Trial: ``init`` (arguments), ``resume``."""
    chosen = dict(options or {})
    if "hook" in chosen:
        chosen["hook"] = HOOKS[chosen["hook"]]
    with trainlab.init(run_dir=run_dir, progress=False, **chosen.get("init", {})) as context:
        trial = Noted(context, chosen)
        arguments: dict[str, Any] = {"validation_period": Batch(10), "reporting_period": Batch(5), **fit}
        if chosen.get("resume", True):
            arguments["latest_checkpoint"] = context.latest_checkpoint
        result = trainlab.Trainer(trial, context).fit(max_length=Batch(batches), **arguments)
        models = context.models
        weights = {f"{n}.{key}": whole(v) for n, model in enumerate(models) for key, v in model.state_dict().items()}
        return {
            "rank": context.distributed.rank,
            "weights": weights,
            "digest": digest(weights),
            "optimizers": [digest(optimizer.state_dict()) for optimizer in context.optimizers],
            "schedulers": [digest(scheduler.state_dict()) for scheduler in context.lr_schedulers],
            "gradients": digest([None if p.grad is None else p.grad for model in models for p in model.parameters()]),
            "generators": digest(RngState.capture().state_dict()),
            "scaler": None if context.scaler is None else context.scaler.state_dict(),
            "metrics": result.metrics,
            "progress": result.progress.state_dict(),
            "stop": result.stop_reason,
            "seen": trial.seen,
            "evaluated": trial.evaluated,
            "drawn": trial.drawn,
            "lr": trial.lr,
            "last_checkpoint": result.last_checkpoint,
            "files": sorted(str(p.relative_to(run_dir)) for p in Path(run_dir).rglob("*") if p.is_file()),
        }


def train_all(calls: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Train several runs one after the other, each given as the arguments of ``train``, those of ``fit`` last."""
    results = {}
    for name, (run_dir, batches, options, fit) in calls.items():
        results[name] = train(run_dir, batches, options, **fit)
    return results


def _clip(parameters: list[torch.Tensor]) -> Any:
    return nn.utils.clip_grad_norm_(parameters, 0.5)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts that other ranks have."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def digest(tree: Any) -> str:
    """What tells two trees of this rank's apart by a single bit; of what is sharded, its own part."""
    collected = hashlib.sha256()
    _feed(collected, tree)
    return collected.hexdigest()


def _feed(collected: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        own = value.to_local() if hasattr(value, "to_local") else value
        collected.update(f"{own.dtype} {tuple(own.shape)}".encode())
        collected.update(own.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
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


def seen_by_all(results: list[dict[str, Any]]) -> dict[int, list[int]]:
    """The records of each global batch, in the order of the ranks."""
    batches: dict[int, list[int]] = {}
    for result in results:
        for batch, numbers in result["seen"].items():
            batches.setdefault(batch, []).extend(numbers)
    return dict(sorted(batches.items()))


def furthest(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights."""
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).abs().max()) for key in expected)


def _kill(trial: Any, batch_idx: int) -> None:
    """The last rank kills itself in the middle of batch 7."""
    ranks = trial.context.distributed
    if batch_idx == 7 and ranks.rank == ranks.size - 1:
        os.kill(os.getpid(), 9)


def _raise(trial: Any, batch_idx: int) -> None:
    if batch_idx == 7 and trial.context.distributed.rank == trial.context.distributed.size - 1:
        raise ValueError("a mistake of the user's")


HOOKS: dict[str, Callable[[Any, int], None]] = {"kill": _kill, "raise": _raise}
