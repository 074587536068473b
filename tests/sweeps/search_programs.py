"""Experiments that the tests of searches run, and what their processes do."""

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from pydantic import BaseModel, Field, SecretStr

import trainlab
from trainlab import Batch
from trainlab.experiments.searched import connect, disconnect, report
from trainlab.sweeps.trials import Trials

__all__ = [
    "begin_all",
    "bowl",
    "dying",
    "endless",
    "failing",
    "layered",
    "opened",
    "ranks_of_two",
    "repeat_one",
    "sourced",
    "varied",
    "wordy",
]


@trainlab.experiment
@trainlab.parameter("x", float, default=0.0, search=trainlab.Search(-5, 5))
@trainlab.parameter("y", int, default=0, search=trainlab.Search(-5, 5))
@trainlab.parameter("shift", float, default=1.0)
@trainlab.parameter("password", str, default="")
def bowl(params: dict[str, Any]) -> dict[str, float]:
    """A loop of one's own, which is pruned."""
    value = (params["x"] - params["shift"]) ** 2 + params["y"] ** 2
    for step in (1, 2):
        if report(value + 1 / step, step):
            return {"value": value + 1 / step}
    print(f"value {value}")
    return {"value": value}


@trainlab.experiment
@trainlab.parameter("x", float, default=0.0, search=trainlab.Search(-5, 5))
@trainlab.parameter("epochs", int, default=5, envvar="TEST_EPOCHS")
@trainlab.parameter("drawn", int, default=lambda: random.SystemRandom().getrandbits(32))
@trainlab.parameter("by_hand", str, default="", allow_from_file=False)
@trainlab.parameter("token", str, default="")
def sourced(params: dict[str, Any]) -> float:
    """Takes values from everywhere."""
    return float(params["x"])


@trainlab.experiment
@trainlab.parameter("x", float, default=0.0, search=trainlab.Search(0, 1))
def wordy(params: dict[str, Any]) -> dict[str, object]:
    """Returns a text where a number is looked for."""
    return {"loss": "low", "x": params["x"]}


@trainlab.experiment
@trainlab.parameter("x", float, default=0.0, search=trainlab.Search(0, 1))
def endless(params: dict[str, Any]) -> None:
    """Goes on until it is stopped, and takes a while to end."""
    (Path(trainlab.output_dir) / "begun").touch()
    try:
        while True:  # a signal that comes right before a wait is seen only after it
            threading.Event().wait(0.01)
    finally:
        threading.Event().wait(1.5)


class Adam(BaseModel):
    """A variant."""

    kind: Literal["adam"] = "adam"
    lr: Annotated[float, trainlab.Search(1e-5, 1e-1, log=True)] = 1e-3


class Sgd(BaseModel):
    """Another variant, with the same field."""

    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, trainlab.Search(0.5, 1)] = 0.5
    momentum: Annotated[float, trainlab.Search(choices=[0.0, 0.9])] = 0.0


class Varied(BaseModel):
    """A model with a union in it."""

    optimizer: Annotated[Adam | Sgd, Field(discriminator="kind")] = Adam()
    depth: Annotated[int, trainlab.Search(1, 2)] = 1


@trainlab.experiment
def varied(config: Varied) -> float:
    """Parameters that depend on each other."""
    return config.optimizer.lr * config.depth


class Optimizer(BaseModel):
    """A nested model."""

    lr: float = Field(1e-3, gt=0)
    name: Literal["sgd", "adam"] = "sgd"


class Config(BaseModel):
    """A model with a nested one."""

    optimizer: Optimizer = Optimizer()
    depth: int = 2
    token: SecretStr = SecretStr("")


@trainlab.experiment
def layered(config: Config) -> float:
    """Parameters of a pydantic model."""
    return config.optimizer.lr * config.depth


@trainlab.experiment
@trainlab.parameter("x", float, default=0.0, search=trainlab.Search(0, 1))
def failing(params: dict[str, Any]) -> None:
    """Fails each time."""
    raise ValueError(f"x is {params['x']}")


@trainlab.experiment
@trainlab.parameter("x", float, default=0.0, search=trainlab.Search(0, 1))
@trainlab.parameter("deaths", int, default=1)
def dying(params: dict[str, Any]) -> float:
    """Is killed a few times before it comes to its end; what it reports by then stays."""
    folder = Path(trainlab.output_dir)
    before = len(list(folder.glob("died-*")))
    report(0.5, before + 1)
    (folder / f"x-{before}.json").write_text(json.dumps(params["x"]), encoding="utf-8")
    if before < params["deaths"]:
        (folder / f"died-{before}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.05, search=trainlab.Search(0.01, 0.1))
def ranks_of_two(params: dict[str, Any]) -> None:
    """Trains on as many ranks as there are, as long as the search says."""
    from tests.training.trials import LineTrial

    with trainlab.init(hparams=params, device="cpu", progress=False) as context:
        result = trainlab.Trainer(LineTrial(context), context).fit(validation_period=Batch(4))
    with (Path(trainlab.output_dir) / f"rank-{context.distributed.rank}.json").open("w") as file:
        json.dump([context.distributed.size, result.stop_reason, result.progress.batches_trained], file)


@contextmanager
def opened(url: str, name: str = "study", *, is_made: bool = False) -> Iterator[Trials]:
    """The trials of a study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = connect(url, is_made=is_made)
    try:
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        yield Trials(study, storage, storage.get_study_id_from_name(name))
    finally:
        disconnect(storage)


def begin_all(url: str, limit: int) -> list[int]:
    """Begin trials beside other processes until there are enough; gives the numbers of this one's."""
    mine = []
    with opened(url, is_made=True) as trials:
        while len(trials.read()) < limit:
            found = trials.begin("me", limit)
            if found is not None:
                mine.append(found.number)
    return mine


def repeat_one(url: str) -> bool:
    """Repeat the first trial beside other processes that do the same; gives whether it is this one's."""
    with opened(url, is_made=True) as trials:
        found = trials.read()[0]
        # As it was before any of them.
        return trials.repeat(replace(found, attempts=found.attempts[:1]), "me", crashed=False) is not None
