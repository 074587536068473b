"""Experiments made of models, and what a command line gives them."""

from typing import Any

from pydantic import BaseModel

import trainlab
from trainlab.experiments import Experiment, Values


def of(model: type[BaseModel]) -> Experiment:
    """An experiment that takes a model."""

    def train(config: Any) -> None: ...

    train.__annotations__["config"] = model
    return trainlab.experiment(train)


def read(made: Experiment, *words: str, **others: Any) -> Values:
    """What a command line gives, without this process's environment."""
    return made.read(argv=words, **{"environ": {}, **others})
