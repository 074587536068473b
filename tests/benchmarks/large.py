"""Checkpoints of a model that is large: how long training is held, what the steps cost meanwhile, what a load costs."""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

import trainlab
from tests.benchmarks.table import table
from trainlab import Batch
from trainlab.checkpoint import Checkpoint

PERIOD = 10


class LargeTrial(trainlab.Trial):
    """Equal layers, one of them used in each step, and Adam; so a step is short beside the state."""

    def __init__(self, context: Any, layers: int, width: int, *, copies: bool) -> None:
        self.context = context
        self.copies_in_turn = copies
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.model = context.wrap_model(self.layers)
        self.optimizer = context.wrap_optimizer(torch.optim.Adam(self.model.parameters(), lr=1e-6))
        self.trainer: Any = None
        self.ended = 0.0
        self.gaps: list[tuple[int, float]] = []
        self.steps: list[tuple[bool, float]] = []
        self.memory = 0
        self.copied: list[float] = []
        self._copies: list[torch.Tensor] = []

    def build_training_data_loader(self) -> Any:
        width = self.layers[0].in_features
        return trainlab.DataLoader(torch.rand(64, width), batch_size=16)

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        began = time.perf_counter()
        if self.ended:
            self.gaps.append((batch_idx, began - self.ended))
        for layer in self.layers:
            batch = torch.tanh(layer(batch))
        loss = batch.square().mean()
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        self.ended = time.perf_counter()
        self.steps.append((self.trainer._checkpointing._writer.is_busy, self.ended - began))
        self.memory = max(self.memory, psutil.Process().memory_info().rss)
        if self.copies_in_turn and batch_idx % PERIOD == PERIOD // 2:
            self._copy()
        return loss

    def _copy(self) -> None:
        """Take the time of the bare copy of what a checkpoint holds, a few batches after one."""
        tensors = tensors_of(self)
        if not self._copies:
            self._copies = [tensor.clone() for tensor in tensors]
        began = time.perf_counter()
        torch._foreach_copy_(self._copies, tensors)
        self.copied.append(time.perf_counter() - began)
        self.ended = 0.0


def tensors_of(trial: LargeTrial) -> list[torch.Tensor]:
    """Weights and the optimizer's state."""
    states = trial.optimizer.state_dict()["state"].values()
    return [*trial.model.state_dict().values(), *(value for state in states for value in state.values())]


def trained(
    mode: str, layers: int, width: int, checkpoints: int, *, copies: bool = False
) -> tuple[LargeTrial, Path, float]:
    """Train with checkpoints in a mode; the trial, the last checkpoint, and the memory held before the first one."""
    with trainlab.init(device="cpu", progress=False, enable_tensorboard_logging=False) as context:
        trial = LargeTrial(context, layers, width, copies=copies)
        trial.trainer = trainlab.Trainer(trial, context)
        before = psutil.Process().memory_info().rss
        result = trial.trainer.fit(
            max_length=Batch(PERIOD * (checkpoints + 1)),
            checkpoint_period=Batch(PERIOD),
            reporting_period=Batch(1),
            checkpoint_mode=mode,
        )
    return trial, Path(result.last_checkpoint), before


def held(trial: LargeTrial) -> float:
    """Seconds that a checkpoint holds training, without what every boundary costs."""
    due = [gap for batch, gap in trial.gaps if batch % PERIOD == 0]
    others = [gap for batch, gap in trial.gaps if batch % PERIOD and batch > PERIOD]
    return statistics.median(due) - statistics.median(others)


def slowed(trial: LargeTrial) -> float:
    """The median step during a write, as a multiple of the median of the others."""
    during = [seconds for busy, seconds in trial.steps[PERIOD:] if busy]
    quiet = [seconds for busy, seconds in trial.steps[PERIOD:] if not busy]
    return statistics.median(during) / statistics.median(quiet) if during and quiet else float("nan")


def timed(action: Callable[[], Any], rounds: int) -> float:
    """The median seconds of an action."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def others(trial: LargeTrial, rounds: int) -> Iterator[tuple[str, float]]:
    """What other ways to save the same tensors cost."""
    import torch.distributed.checkpoint as dcp

    tensors = tensors_of(trial)
    copies = [tensor.clone() for tensor in tensors]
    yield "a bare copy into memory that is reused", timed(lambda: torch._foreach_copy_(copies, tensors), rounds)
    copies.clear()
    yield "a clone into fresh memory", timed(lambda: [tensor.clone() for tensor in tensors], rounds)
    state = {"model": trial.model.state_dict(), "optimizer": trial.optimizer.state_dict()}
    yield "torch.save", timed(lambda: torch.save(state, "state.pt"), rounds)
    Path("state.pt").unlink()
    flat = {str(number): tensor for number, tensor in enumerate(tensors)}
    seconds = []
    for number in range(rounds):
        began = time.perf_counter()
        future: Any = dcp.async_save(flat, checkpoint_id=f"dcp-{number}", no_dist=True)
        seconds.append(time.perf_counter() - began)
        getattr(future, "upload_completion", future).result()
        shutil.rmtree(f"dcp-{number}")
    yield "torch.distributed.checkpoint.async_save", statistics.median(seconds)


def large_checkpoint(megabytes: int, rounds: int) -> dict[str, Any]:
    """Figures of one run in this process: seconds held by name, slow-down of steps, memory, loads."""
    width = 2048
    layers = max(1, round(megabytes * 1e6 / 12 / (width * width + width)))
    answer: dict[str, Any] = {"layers": layers, "held": {}, "slowed": {}, "memory": {}}
    in_turn, _, _ = trained("async", layers, width, 2 * rounds, copies=True)
    answer["in turn"] = held(in_turn), statistics.median(in_turn.copied)
    del in_turn
    for mode in ("async", "fork", "sync"):
        trial, last, before = trained(mode, layers, width, rounds)
        answer["held"][f"trainlab, {mode}"] = held(trial)
        answer["slowed"][mode] = slowed(trial)
        answer["memory"][mode] = (trial.memory - before) / 1e9
        if mode == "sync":
            answer["held"].update(others(trial, rounds))
            answer["state"] = sum(tensor.nbytes for tensor in tensors_of(trial)) / 1e9
            answer["load"] = loads(last, rounds)
        del trial
    return answer


def loads(path: Path, rounds: int) -> dict[str, float]:
    """Seconds to read everything, with and without comparing checksums, and to verify alone."""
    from safetensors.torch import load_file

    def read() -> None:
        with Checkpoint.open(path, verify=False) as checkpoint:
            checkpoint.weights()
            checkpoint.state()

    def plainly() -> None:
        # Copied, for what is mapped is not read yet; all kept, as a program would.
        kept = [tensor.clone() for file in path.glob("*.safetensors") for tensor in load_file(file).values()]
        del kept

    return {
        "the files by safetensors, nothing verified": timed(plainly, rounds),
        "weights and state, verified on the way": timed(read, rounds),
        "verify alone": timed(lambda: Checkpoint.open(path).close(), rounds),
    }


def print_tables(answer: dict[str, Any], rounds: int) -> None:
    """Print what ``large_checkpoint`` found."""
    bare = answer["held"]["a bare copy into memory that is reused"]
    saved = answer["held"]["torch.save"]
    rows = [
        [name, f"{seconds * 1e3:.1f}", f"{seconds / saved:.3f}", f"{seconds / bare:.2f}"]
        for name, seconds in answer["held"].items()
    ]
    title = f"Training held by a checkpoint of {answer['state']:.2f} GB in {answer['layers']} layers ({rounds} rounds)"
    table(title, ["", "ms", "of torch.save", "of a bare copy"], rows)
    stall, copy = answer["in turn"]
    print(f"In turns in one run: held {stall * 1e3:.1f} ms, a bare copy {copy * 1e3:.1f} ms, ratio {stall / copy:.3f}.")
    rows = [
        [mode, "–" if math.isnan(ratio) else f"{ratio:.3f}", f"{answer['memory'][mode]:.2f}"]
        for mode, ratio in answer["slowed"].items()
    ]
    table("Steps while it is written", ["mode", "ratio to a quiet step", "GB more in memory at most"], rows)
    table("Loading it", ["", "s"], [[name, f"{seconds:.2f}"] for name, seconds in answer["load"].items()])
