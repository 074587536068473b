"""What the launched ranks of the tests do, and those that launch them: each a function of a module, with its needs."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed

import trainlab
from tests.training.jobs import Noted, digest, whole
from trainlab import Batch
from trainlab.distributed import RngState, get_context, get_group, get_local_rank, get_num_processes, get_rank
from trainlab.launch import Platform, launch, on
from trainlab.storage import faults

PAIR = Platform(device="cpu", processes=2)


def place() -> dict[str, Any]:
    """Who this rank is, as it finds it out itself."""
    context = get_context()
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "rank": get_rank(),
        "size": get_num_processes(),
        "local": (get_local_rank(), context.local_size),
        "node": (context.cross_rank, context.cross_size),
        "group": 1 if get_group() is None else torch.distributed.get_world_size(get_group()),
        "total": total(0.0),
        "device": os.environ.get("TRAINLAB_DEVICE"),
        "launch": (os.environ.get("TRAINLAB_LAUNCH_ID"), os.environ.get("TRAINLAB_ATTEMPT")),
    }


def total(number: float) -> float:
    """What the ranks of this one's group have together."""
    there = torch.tensor([number + get_rank()], dtype=torch.float64)
    if get_group() is not None:
        torch.distributed.all_reduce(there, group=get_group())
    return there.item()


def given(*args: Any, **kwargs: Any) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
    """Its rank and its arguments."""
    return get_rank(), args, kwargs


def leave_early(how: str) -> str:
    """End rank 0 before it has returned anything."""
    if get_rank() == 0:
        if how == "_exit":
            get_context().watchdog.left()
            os._exit(0)
        sys.exit(0)
    return "of rank 1"


def unsendable(kind: str) -> Any:
    """A result that pickle cannot send, or that cloudpickle alone can."""
    return threading.Lock() if kind == "lock" else lambda: kind


def square_later(number: int, go: str) -> int:
    """The square of a number, once a file is there."""
    while not Path(go).exists():
        threading.Event().wait(0.01)
    return number * number


def speak() -> int:
    """Say something, on each rank."""
    print("spoken")
    return get_rank()


def seeded_at_all() -> str | None:
    """The seed that this rank was given."""
    return os.environ.get("TRAINLAB_SEED")


def draw() -> float:
    """The first number that torch draws."""
    return float(torch.rand(()))


@on(PAIR)
def decorated(number: int, *, more: int = 0) -> int:
    """Launched by its decorator."""
    return number + more + get_rank()


class Counter:
    """Something with a method, and something to call."""

    def __init__(self, start: int) -> None:
        self.start = start

    def add(self, number: int) -> int:
        return self.start + number + get_rank()

    def __call__(self, number: int) -> int:
        return self.add(number)


def nested() -> list[Any]:
    """A launch in a rank."""
    return launch(given, "inner", platform=Platform())  # type: ignore[return-value]


def say(text: str) -> None:
    """Print on both streams, and by a child."""
    print(f"{text} of rank {get_rank()}")
    print(f"trouble of rank {get_rank()}", file=sys.stderr)
    os.system(f"echo child of rank {get_rank()}")


def unpicklable() -> Any:
    """Return what no pickle holds."""
    return threading.Lock()


def fail(rank: int, kind: str) -> None:
    """One rank comes to a bad end, while the others wait for it."""
    if get_rank() == rank:
        blunder(kind)
    torch.distributed.barrier()


def blunder(kind: str) -> None:
    """Come to a bad end."""
    if kind == "error":
        raise ValueError("a mistake of the user's")
    if kind == "segv":
        ctypes.string_at(0)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3 if kind == "status" else "no more data")


def mark(folder: str, name: str) -> None:
    """Let the test know."""
    path = Path(folder) / f"{name}-{get_rank()}"
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").replace(path)


def wait_for_ever(folder: str, deaf: bool = False) -> None:
    """Wait; with ``deaf`` rank 1 does not hear SIGTERM."""
    if deaf and get_rank() == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark(folder, "waits")
    while True:
        signal.pause()


def take_time(folder: str) -> None:
    """Hear the first SIGTERM, or Ctrl-C, and go on until the test lets go, or to the next Ctrl-C."""
    heard: list[int] = []

    def hear(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        heard.append(number)

    signal.signal(signal.SIGTERM, hear)
    signal.signal(signal.SIGINT, hear)
    mark(folder, "waits")
    while not heard:  # no pause(): the signal may come right before it
        threading.Event().wait(0.01)
    mark(folder, "heard")
    while not (Path(folder) / "go").exists():
        threading.Event().wait(0.01)
    mark(folder, "saved")
    sys.exit(128 + heard[0])


def train(folder: str, plan: Mapping[int, tuple[str, int, str]], options: Mapping[str, Any] | None = None) -> Any:
    """Train a run below a folder, and tell how it ended.

    Args:
        folder: where ``runs`` is, and where marks are left.
        plan: by attempt what happens: "one", "all" (are killed), "segv", "error", or "wait" (all ranks, for a stop);
            on which rank; and where: a batch ``train:7``, or a point of the stores with how often it is passed,
            ``point:committed:2``.
        options: of the Trial; with ``batches``, the length (default 18), ``init``, arguments of it, and ``resume``.
    """
    os.chdir(folder)
    chosen = dict(options or {})
    with trainlab.init(name="night", progress=False, **chosen.pop("init", {})) as context:
        fate = Fate(context, folder, plan.get(attempt()))
        trial = Noted(context, {"augmented": True, "dropout": 0.3, "scheduler": True, **chosen, "hook": fate.at_batch})
        print("training")
        result = trainlab.Trainer(trial, context).fit(
            max_length=Batch(chosen.get("batches", 18)),
            validation_period=Batch(5),
            reporting_period=Batch(3),
            checkpoint_period=Batch(4),
            checkpoint_mode="sync",
            latest_checkpoint=context.latest_checkpoint if chosen.get("resume") else None,
        )
        weights = {key: whole(value) for key, value in trial.model.state_dict().items()}
        return {
            "folder": str(context.run_dir),
            "seen": trial.seen,
            "tensors": weights,
            "weights": digest(weights),
            "optimizers": digest([optimizer.state_dict() for optimizer in context.optimizers]),
            "generators": digest(RngState.capture().state_dict()),
            "progress": result.progress.state_dict(),
            "metrics": result.metrics,
        }


def attempt() -> int:
    """How often the ranks were started again; a launch of several of the same name counts from its time on."""
    number = int(os.environ.get("TRAINLAB_ATTEMPT", "0"))
    return 0 if number > 10**6 else number


class Fate:
    """What happens to a rank while it trains."""

    def __init__(self, context: Any, folder: str, fate: tuple[str, int, str] | None) -> None:
        self._context, self._folder = context, folder
        self._kind, self._rank, where = fate or ("", -1, ":0")
        self._place, _, number = where.rpartition(":")
        self._number = int(number)
        self._pids = context.distributed.allgather(os.getpid())
        self._passed: dict[str, int] = {}
        faults.hook = self._at_point

    def at_batch(self, trial: Any, batch: int) -> None:
        """Pass a batch."""
        self._at("train", batch)

    def _at_point(self, name: str) -> None:
        self._passed[name] = self._passed.get(name, 0) + 1
        self._at(f"point:{name}", self._passed[name])

    def _at(self, place: str, number: int) -> None:
        if (place, number) != (self._place, self._number):
            return
        if self._kind == "wait":
            mark(self._folder, f"waits-{attempt()}")
            while not self._context.get_stop_requested():
                threading.Event().wait(0.01)
        if self._context.distributed.rank == self._rank:
            self._end()

    def _end(self) -> None:
        if self._kind == "all":
            for pid in self._pids:
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
        if self._kind != "wait":
            blunder({"one": "kill", "all": "kill"}.get(self._kind, self._kind))
