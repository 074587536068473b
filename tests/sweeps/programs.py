"""Experiments that are swept in the tests; each process of a sweep imports this file."""

import os
import signal
import threading
from typing import Literal

from pydantic import BaseModel, SecretStr

import trainlab


class Optimizer(BaseModel):
    """A nested model."""

    lr: float = 0.1
    momentum: float = 0.0


class Training(BaseModel):
    """The parameters of ``train``."""

    depth: int = 2
    optimizer: Optimizer = Optimizer()
    token: SecretStr = SecretStr("nothing")
    end: Literal["well", "error", "exit", "killed", "when mended"] = "well"


@trainlab.experiment
def train(config: Training) -> dict[str, float]:
    """End in one of many ways, and leave a mark of each start."""
    with (trainlab.output_dir / "starts").open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    if config.end == "error" or (config.end == "when mended" and not os.environ.get("MENDED")):
        raise ArithmeticError(f"depth {config.depth} is too much")
    if config.end == "exit":
        raise SystemExit(3)
    if config.end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"score": config.optimizer.lr * config.depth}


class Waiting(BaseModel):
    """The parameters of ``wait``."""

    number: int
    obeys: bool = True


@trainlab.experiment
def wait(config: Waiting) -> float:
    """Wait at the first start, until somebody ends it; come to the end at the second."""
    if not config.obeys:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    mark = trainlab.output_dir / "begun"
    if not mark.exists():
        mark.with_suffix(".part").write_text(str(os.getpid()))
        mark.with_suffix(".part").replace(mark)  # with all that is in it at once
        while True:  # a signal that comes right before a wait is seen only after it
            threading.Event().wait(0.01)
    return float(config.number)


@trainlab.experiment
def inner(params: dict[str, object]) -> dict[str, int]:
    """Make a sweep in the middle of a run."""
    from trainlab.sweeps import run_parameter_sweep

    result = run_parameter_sweep(train, [{"depth": depth} for depth in (1, 2)], 2, name="within")
    return {"finished": sum(run.is_finished for run in result)}
