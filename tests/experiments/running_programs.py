"""Experiments of the tests of runs, at module level, so that other processes find them."""

import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pydantic

import trainlab
from trainlab import new_seed, output_dir, params  # imported before any run
from trainlab.runs.current import current_run

logger = logging.getLogger("program")


def record_of(folder: Path) -> dict[str, Any]:
    """What a run's run.json says."""
    return json.loads((folder / "run.json").read_text())


def only_run(root: Path, path: str) -> Path:
    """The folder of the one run of an experiment."""
    (found,) = (root / path).iterdir()
    return found


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.1)
@trainlab.parameter("names", str, multiple=True, default=["a"])
def draws(values: dict[str, Any]) -> dict[str, Any]:
    """Draw from everything that is seeded."""
    import numpy

    return {
        "seeds": [new_seed(), new_seed(8), trainlab.new_seed()],
        "python": random.random(),
        "numpy": float(numpy.random.rand()),
        "params": {name: str(value) for name, value in values.items()},
        "loss": 0.5,
    }


@trainlab.group
def outer() -> None:
    """A group."""


@outer.group
def inner() -> None:
    """A group in it."""


@inner.experiment
def nested(values: dict[str, Any]) -> str:
    """Tell where it runs."""
    return str(output_dir)


class Secretive(pydantic.BaseModel):
    """Parameters of which some are secret."""

    api_token: str = "none"
    login: pydantic.SecretStr = pydantic.SecretStr("nobody-knows")
    lr: float = 0.1


@trainlab.experiment
def leaks(model: Secretive) -> None:
    """Say all secrets wherever something is written."""
    logger.warning("the token is %s", model.api_token)
    logging.getLogger("trainlab.test").info("the login is %r", {"login": model.login.get_secret_value()})
    raise ValueError(f"refused: {model.api_token!r}, https://me:{model.login.get_secret_value()}@host")


@trainlab.experiment
def logs(values: dict[str, Any]) -> None:
    """Log as programs do."""
    logging.basicConfig(level=logging.INFO, format="shown: %(message)s")
    logger.info("from the program")
    logging.getLogger().warning("from the root")
    logging.getLogger("trainlab.test").info("from trainlab")
    logger.debug("too detailed")


def asked() -> dict[str, Any]:
    """What a process knows of the run."""
    run = current_run()
    return {
        "output_dir": str(output_dir),
        "lr": params["lr"],
        "seed": new_seed(),
        "own": run is not None and run.folder is not None and run.pid == os.getpid(),
    }


def tell(place: str) -> None:
    """Leave in a file what this process knows of the run."""
    Path(place).write_text(json.dumps(asked()))


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.1)
def asks(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Ask in the main thread, in another, and in children of all kinds."""
    found: dict[str, dict[str, Any]] = {}
    found["main"] = asked()
    thread = threading.Thread(target=lambda: found.update(thread=asked()))
    thread.start()
    thread.join()
    for method in ("fork", "spawn"):
        place = str(output_dir / f"{method}.json")
        process = multiprocessing.get_context(method).Process(target=tell, args=(place,))
        process.start()
        process.join()
        found[method] = json.loads(Path(place).read_text())
    place = str(output_dir / "exec.json")
    code = f"from tests.experiments.running_programs import tell; tell({place!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    found["exec"] = json.loads(Path(place).read_text())
    return found


def _lose(place: str) -> None:
    Path(place).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


@trainlab.experiment
def leaves_children(values: dict[str, Any]) -> int:
    """Leave a process that never ends."""
    process = multiprocessing.get_context("fork").Process(target=_lose, args=(str(output_dir / "pid"),))
    process.start()
    while not (output_dir / "pid").exists() or not (output_dir / "pid").read_text():
        time.sleep(0.01)
    return int(process.pid or 0)


@trainlab.experiment
def waits(values: dict[str, Any]) -> None:
    """Wait to be ended."""
    (output_dir / "waiting").touch()
    while True:
        time.sleep(60)


def run_waits(root: str, run_dir: str | None = None) -> Any:
    """Run it, in a process of a test."""
    from trainlab.experiments import running

    return running.run(waits, waits.read({"output_dir": root}), run_dir=run_dir)
