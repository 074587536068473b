"""What trainlab costs on two ranks over gloo: the step, the boundary's reduction, a validation, a sharded save."""

import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import trainlab
from tests.benchmarks.table import table
from tests.distributed.ranks import run_ranks
from trainlab import Batch

RANKS = 2
BATCH_SIZE = 256
CHUNK = 50


def net(width: int = 384) -> nn.Module:
    """A perceptron whose step takes some milliseconds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def records(size: int) -> torch.utils.data.TensorDataset:
    """Records in memory."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(size, 784, generator=generator)
    return torch.utils.data.TensorDataset(x, torch.randint(0, 10, (size,), generator=generator))


class SteppedTrial(trainlab.Trial):
    """Trains chunks of batches through trainlab and through a loop written by hand around DDP, in turns."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.model = context.wrap_model(net())
        self.optimizer = context.wrap_optimizer(torch.optim.Adam(self.model.parameters()))
        # As in torch's tutorial; the views are what trainlab has by default.
        self.by_hand = DistributedDataParallel(net(), gradient_as_bucket_view=True)
        self.optimizer_by_hand = torch.optim.Adam(self.by_hand.parameters())
        size, rank = context.distributed.size, context.distributed.rank
        pieces = torch.utils.data.Subset(records(50 * BATCH_SIZE), range(rank, 50 * BATCH_SIZE, size))
        self.batches = [tuple(batch) for batch in torch.utils.data.DataLoader(pieces, batch_size=BATCH_SIZE // size)]
        self.ours: list[float] = []
        self.raw: list[float] = []
        self.began: float | None = None

    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(records(50 * BATCH_SIZE), batch_size=BATCH_SIZE)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        if batch_idx % CHUNK == 0:
            self._change_turns()
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}

    def _change_turns(self) -> None:
        dist.barrier()
        now = time.perf_counter()
        if self.began is not None:
            self.ours.append((now - self.began) / CHUNK)
        for x, y in itertools.islice(itertools.cycle(self.batches), CHUNK):
            self.optimizer_by_hand.zero_grad()
            loss = F.cross_entropy(self.by_hand(x), y)
            loss.backward()
            self.optimizer_by_hand.step()
        dist.barrier()
        self.raw.append((time.perf_counter() - now) / CHUNK)
        self.began = time.perf_counter()


def step(chunks: int, folder: str) -> dict[str, float]:
    """Seconds a step, and the median ratio of neighbouring chunks; and of the reduction at agreement points."""
    with trainlab.init(run_dir=folder, progress=False) as context:
        trial = SteppedTrial(context)
        trainlab.Trainer(trial, context).fit(max_length=Batch(chunks * CHUNK + 1))
        exchange, reductions = context.distributed.exchange, []
        for _ in range(300):
            began = time.perf_counter()
            exchange.maximum([0, 1, 0, 0])
            reductions.append(time.perf_counter() - began)
    ratios = [ours / raw for ours, raw in zip(trial.ours, trial.raw, strict=False)]
    return {
        "raw": statistics.median(trial.raw),
        "ours": statistics.median(trial.ours),
        "ratio": statistics.median(ratios),
        "reduction": statistics.median(reductions),
    }


class ValidatedTrial(trainlab.Trial):
    """Evaluates a data set that does not divide by the ranks."""

    def build_model(self) -> nn.Module:
        return net(1024)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def build_training_data_loader(self) -> Any:
        return trainlab.DataLoader(records(BATCH_SIZE), batch_size=BATCH_SIZE)

    def build_validation_data_loader(self) -> Any:
        return trainlab.DataLoader(records(10_101), batch_size=64)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        raise AssertionError("it is not trained")

    def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        scores = self.model(x)
        return {"loss": F.cross_entropy(scores, y), "accuracy": (scores.argmax(1) == y).float().mean()}


def validation(rounds: int, folder: str) -> dict[str, Any]:
    """Seconds of a validation, and what it gave."""
    with trainlab.init(run_dir=folder, progress=False) as context:
        trainer = trainlab.Trainer(ValidatedTrial(context), context)
        seconds = list(timed(trainer.evaluate, rounds + 1))[1:]
        return {"seconds": statistics.median(seconds), "metrics": trainer.evaluate()}


def sharded(rounds: int, folder: str) -> dict[str, float]:
    """Seconds of a save of a model sharded over the ranks with Adam's state, by trainlab and by DCP, in turns."""
    import torch.distributed.checkpoint as dcp

    class Trial(ValidatedTrial):
        def build_model(self) -> nn.Module:
            return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)))

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.Adam(model.parameters())

        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
            loss = self.model(torch.ones(4, 1024)).square().mean()
            self.context.backward(loss)
            self.context.step_optimizer(self.optimizer)
            if batch_idx:
                self.save_with_dcp(batch_idx)
            return {"loss": loss}

        def save_with_dcp(self, number: int) -> None:
            state = {"model": self.model.state_dict(), "optimizer": _flat(self.optimizer)}
            dist.barrier()
            began = time.perf_counter()
            dcp.save(state, checkpoint_id=f"{folder}-dcp-{number}")
            dist.barrier()
            seconds["dcp"].append(time.perf_counter() - began)
            dist.barrier()
            if dist.get_rank() == 0:
                shutil.rmtree(f"{folder}-dcp-{number}")

    class Timed(trainlab.Callback):
        def on_checkpoint_save_start(self, checkpoint: Any) -> None:
            self.began = time.perf_counter()

        def on_checkpoint_upload_end(self, uuid: str) -> None:
            if dist.get_rank() == 0:
                seconds["ours"].append(time.perf_counter() - self.began)

    class Called(Trial):
        def build_callbacks(self) -> dict[str, trainlab.Callback]:
            return {"timed": Timed()}

        def build_validation_data_loader(self) -> Any:
            return None

    seconds: dict[str, list[float]] = {"dcp": [], "ours": []}
    with trainlab.init(run_dir=folder, progress=False, parallel="fsdp") as context:
        trainlab.Trainer(Called(context), context).fit(
            max_length=Batch(rounds + 2), checkpoint_period=Batch(1), checkpoint_mode="sync"
        )
    return {name: statistics.median(found[1:]) for name, found in seconds.items() if found}


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def timed(action: Callable[[], Any], rounds: int) -> Iterator[float]:
    """Seconds of each call."""
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        yield time.perf_counter() - began


def bench_ranks(rounds: int) -> None:
    """Print what two ranks cost."""
    folder = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"trainlab-bench-{os.getpid()}")
    try:
        found = run_ranks(step, RANKS, 10 * rounds, f"{folder}/step", timeout=3600)[0]
        table(
            f"A step of DDP on {RANKS} ranks, in turns with a loop by hand ({10 * rounds} chunks of {CHUNK})",
            ["loop by hand ms", "trainlab ms", "ratio", "a reduction at an agreement point, ms"],
            [
                [
                    f"{found[k] * 1e3:.3f}" if k != "ratio" else f"{found[k]:.3f}"
                    for k in ("raw", "ours", "ratio", "reduction")
                ]
            ],
        )
        alone = run_ranks(validation, 1, rounds, f"{folder}/one", timeout=3600)[0]
        shared = run_ranks(validation, RANKS, rounds, f"{folder}/two", timeout=3600)[0]
        table(
            f"A validation of 10,101 records in batches of 64 ({rounds} rounds)",
            ["one process s", f"{RANKS} ranks s", "ratio", "the same metrics, to the bit"],
            [
                [
                    f"{alone['seconds']:.3f}",
                    f"{shared['seconds']:.3f}",
                    f"{shared['seconds'] / alone['seconds']:.3f}",
                    str(alone["metrics"] == shared["metrics"]),
                ]
            ],
        )
        saved = run_ranks(sharded, RANKS, rounds, f"{folder}/sharded", timeout=3600)[0]
        table(
            f"Saving 16.8 million parameters and Adam's state, sharded over {RANKS} ranks ({rounds} rounds)",
            ["trainlab, until durable, s", "torch.distributed.checkpoint.save s", "ratio"],
            [[f"{saved['ours']:.3f}", f"{saved['dcp']:.3f}", f"{saved['ours'] / saved['dcp']:.3f}"]],
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
