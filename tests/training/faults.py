"""A Trial that fails on one of several ranks, at the place that a test names."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import trainlab
from trainlab import Batch, Callback
from trainlab.distributed import DistributedContext
from trainlab.distributed.activity import Beat

RECORDS = 64
BATCH = 8
LENGTH = 20

# Where, on which rank, at which time of this process, and what happens.
Fault = tuple[str, int, int, str]
NOBODY = 65534
KEEP_ALL = trainlab.Retention(keep_last=9)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000

_passed: Counter[str] = Counter()


class Now:
    """What this process does."""

    context: Any = None
    faults: tuple[Fault, ...] = ()


def own_rank() -> int:
    """The rank of this process."""
    return int(os.environ["RANK"])


def strike(place: str, among: tuple[Fault, ...] | None = None) -> None:
    """Fail, if this is the place, the rank and the time; each process counts its own."""
    faults = [fault for fault in (Now.faults if among is None else among) if fault[:2] == (place, own_rank())]
    _passed[place] += bool(faults)
    for fault in faults:
        if fault[2] == _passed[place]:
            print(f"striking in {place}", flush=True)
            ACTIONS[fault[3]](place)


def _raise(place: str) -> None:
    raise ValueError(f"boom in {place}")


def _die(place: str) -> None:
    _await_seen()
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze(place: str) -> None:
    _await_seen()
    os.kill(os.getpid(), signal.SIGSTOP)


def _exit(place: str) -> None:
    sys.exit(3)


def _exit_well(place: str) -> None:
    sys.exit()


def _terminate(place: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt_twice(place: str) -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def _interrupt(place: str) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _lose_permission(place: str) -> None:
    """From now on this process may not write; the log and what else is open it may."""
    os.seteuid(NOBODY)


def _gain_permission(place: str) -> None:
    os.seteuid(0)


def _fill_disk(place: str) -> None:
    """Leave no room in the folder of checkpoints."""
    folder = Path(Now.context.session.checkpoints.location())
    with contextlib.suppress(OSError), (folder.parent / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _empty_disk(place: str) -> None:
    (Path(Now.context.session.checkpoints.location()).parent / "filler").unlink()


def _gather_alone(place: str) -> None:
    Now.context.distributed.allgather("nobody else does")


def _cut_link(place: str) -> None:
    """Cut the link of this host, a network namespace, to the others."""
    subprocess.run(["ip", "link", "set", os.environ["GLOO_SOCKET_IFNAME"], "down"], check=True)


ACTIONS: dict[str, Callable[[str], None]] = {
    "raise": _raise,
    "die": _die,
    "freeze": _freeze,
    "exit": _exit,
    "exit well": _exit_well,
    "terminate": _terminate,
    "interrupt twice": _interrupt_twice,
    "interrupt": _interrupt,
    "lose permission": _lose_permission,
    "gain permission": _gain_permission,
    "fill disk": _fill_disk,
    "empty disk": _empty_disk,
    "gather alone": _gather_alone,
    "cut the link": _cut_link,
}


def _await_seen() -> None:
    """Wait until the other ranks have seen what this one is doing now."""
    store, now = Now.context.distributed._groups.store.client(), Now.context.distributed.watchdog._activity.now

    def beats() -> dict[int, Beat]:
        found = store.entries("beat/")
        return {int(key.removeprefix("beat/")): Beat.from_json(content) for key, content in found.items()}

    while (mine := beats()[own_rank()]) and (mine.phase, mine.batch) != now:
        threading.Event().wait(0.01)
    # A rank reads the beats of the others before it gives its own: that of the round after this one tells.
    before = beats()
    while any(beat.count < before[rank].count + 2 for rank, beat in beats().items() if rank != own_rank()):
        threading.Event().wait(0.01)
    store.close()


class Data(torch.utils.data.Dataset[Any]):
    """Records of four numbers and a class."""

    def __init__(self, place: str, records: int = RECORDS) -> None:
        self.place, self.faults = place, Now.faults  # which a worker process knows only by this
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(records, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randint(0, 3, (records,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        strike(self.place, self.faults)
        return self.x[index], self.y[index]


class Net(nn.Module):
    """A small perceptron."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width, dtype=torch.float64)
        self.outer = nn.Linear(width, 3, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        strike("forward")
        scores: torch.Tensor = self.outer(torch.relu(self.inner(x)))
        return scores


class Counted(trainlab.MetricReducer):
    """How many batches there were."""

    def __init__(self) -> None:
        self.count = 0

    def reset(self) -> None:
        strike("reset")
        self.count = 0

    def per_slot_reduce(self) -> int:
        strike("per_slot_reduce")
        return self.count

    def cross_slot_reduce(self, per_slot_metrics: list[int]) -> int:
        strike("cross_slot_reduce")
        return sum(per_slot_metrics)


class Kept:
    """An object with a state of its own."""

    def state_dict(self) -> dict[str, Any]:
        strike("stateful.state_dict")
        return {"rank": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        strike("stateful.load_state_dict")


class Scheduler(torch.optim.lr_scheduler.StepLR):
    """One that can fail."""

    def step(self, epoch: int | None = None) -> None:
        strike("scheduler.step")
        super().step(epoch)


class Optimizer(torch.optim.SGD):
    """One that can fail."""

    def step(self, closure: Any = None) -> Any:
        strike("optimizer.step")
        return super().step(closure)


def callback(*places: str) -> Callback:
    """A callback with the hooks among these places, which can fail, and a state."""

    def hook(place: str) -> Callable[..., None]:
        return lambda self, *args, **kwargs: strike(place)

    def state_dict(self: Any) -> dict[str, Any]:
        strike("state_dict")
        return {"kept": 1}

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        strike("load_state_dict")

    hooks = {place: hook(place) for place in places if place.startswith("on_")}
    kind = type("Striking", (Callback,), {"state_dict": state_dict, "load_state_dict": load_state_dict, **hooks})
    made: Callback = kind()
    return made


class Striking(trainlab.Trial):
    """Trains a small model; each of its hooks can fail.

    Args:
        context: of the run.
        options: how this rank differs from the plain Trial.
    """

    def __init__(self, context: Any, options: Mapping[str, Any]) -> None:
        self.options = options
        self.trained: list[int] = []
        super().__init__(context)
        if "another optimizer" in options:
            context.wrap_optimizer(torch.optim.SGD(self.model.inner.parameters(), lr=0.1))
        if "second optimizer" in options:
            context.wrap_optimizer(torch.optim.SGD(context.wrap_model(nn.Linear(2, 2)).parameters(), lr=0.1))
        self.counted = context.wrap_reducer(Counted(), name=options.get("reducer", "counted"))
        context.register_stateful("kept", Kept())

    def build_model(self) -> nn.Module:
        strike("build_model")
        net = Net(self.options.get("width", 5)).to(getattr(torch, self.options.get("dtype", "float64")))
        net.outer.requires_grad_("frozen" not in self.options)
        return net

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        strike("build_optimizer")
        return Optimizer(model.parameters(), lr=self.options.get("lr", 0.1))

    def build_lr_scheduler(self, optimizer: Any) -> Any:
        strike("build_lr_scheduler")
        return Scheduler(optimizer, step_size=3)

    def build_training_data_loader(self) -> Any:
        strike("build_training_data_loader")
        return trainlab.DataLoader(
            Data("data[i]", self.options.get("records", RECORDS)),
            batch_size=self.options.get("batch_size", BATCH),
            shuffle=True,
            num_workers=self.options.get("workers", 0),
        )

    def build_validation_data_loader(self) -> Any:
        strike("build_validation_data_loader")
        data = Data("validation_data[i]", self.options.get("validated", 40))
        return trainlab.DataLoader(data, batch_size=BATCH)

    def build_callbacks(self) -> dict[str, Callback]:
        strike("build_callbacks")
        return {"striking": callback(*(fault[0] for fault in Now.faults))}

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        strike("train_batch")
        self.trained.append(batch_idx)
        self.counted.count += 1
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer)
        return {"loss": loss}

    def evaluate_batch(self, batch: Any, batch_idx: int) -> Any:
        strike("evaluate_batch")
        x, y = batch
        return {"loss": F.cross_entropy(self.model(x), y)}

    def evaluation_reducer(self) -> Any:
        strike("evaluation_reducer")
        return trainlab.Reducer.AVG

    def get_batch_length(self, batch: Any) -> int:
        strike("get_batch_length")
        return len(batch[1])


class StrikingAtOnce(Striking):
    """The same, with the evaluation in one go."""

    evaluate_batch = trainlab.Trial.evaluate_batch

    def evaluate_full_dataset(self, data_loader: Any) -> Any:
        strike("evaluate_full_dataset")
        return {"loss": sum(self.model(x).sum().item() for x, _ in data_loader)}


def train(
    run_dir: str,
    *faults: Fault,
    options: Mapping[str, Any] | None = None,
    init: Mapping[str, Any] | None = None,
    **fit: Any,
) -> dict[str, Any]:
    """Train, and fail where the faults say."""
    Now.faults = faults
    options = dict(options or {})
    given = {"run_dir": run_dir, "progress": False, "device": "cpu", **(init or {})}
    with trainlab.init(**given) as context:
        Now.context = context
        strike("after init")
        trial = (StrikingAtOnce if options.get("at once") else Striking)(context, options)
        trainer = trainlab.Trainer(trial, context)
        strike("before fit")
        arguments: dict[str, Any] = {
            "max_length": Batch(LENGTH),
            "checkpoint_period": Batch(4),
            "validation_period": Batch(5),
            "reporting_period": Batch(100),
            "checkpoint_mode": "sync",
            "checkpoint_policy": "none",
            "latest_checkpoint": context.latest_checkpoint,
            **fit,
        }
        try:
            result = trainer.fit(**arguments)
        finally:
            print("trained up to", context.progress.batches_trained, flush=True)
        strike("after fit")
        weights = {name: value.tolist() for name, value in trial.model.state_dict().items()}
        return {
            "trained": trial.trained,
            "batches": result.progress.batches_trained,
            "metrics": result.metrics,
            "last_checkpoint": result.last_checkpoint,
            "weights": weights,
        }


def train_other(run_dir: str, rank: int, how: Mapping[str, Any]) -> dict[str, Any]:
    """Train with one rank given other things than the others: ``options``, ``init``, or arguments of ``fit``."""
    return train(run_dir, **(dict(how) if rank == own_rank() else {}))


def train_with(run_dir: str, how: Mapping[str, Any], *faults: Fault) -> dict[str, Any]:
    """Train with ``options``, ``init`` or arguments of ``fit``, the same on all ranks."""
    return train(run_dir, *faults, **how)


def train_on_host(run_dir: str, hosts: Sequence[str], *faults: Fault) -> dict[str, Any]:
    """Train with each rank in a network namespace of its own."""
    with open(f"/run/netns/{hosts[own_rank()]}") as namespace:
        _call_libc("setns", namespace.fileno(), _CLONE_NEWNET)
    return train(run_dir, *faults)


def train_unseen(run_dir: str, rank: int) -> dict[str, Any]:
    """Train where one rank does not see the run's folder, as on another host."""
    if rank == own_rank():
        _call_libc("unshare", _CLONE_NEWNS)
        for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "tmpfs", str(Path(run_dir).parent)]):
            subprocess.run(["mount", *command], check=True)
    return train(run_dir)


def train_twice(run_dir: str, *faults: Fault) -> list[dict[str, Any]]:
    """Train two runs, one after the other, in one job."""
    with DistributedContext.from_torch_distributed() as distributed:
        init = {"distributed": distributed}
        return [train(run_dir, *faults, init=init), train(f"{run_dir}-2", *faults, init=init)]


def _call_libc(name: str, *args: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
