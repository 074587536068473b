"""What decides how a run goes on: kept in each checkpoint, and compared with what a resumed run has."""

import logging
from collections.abc import Mapping
from typing import Any

from trainlab.checkpoint.classes import class_name
from trainlab.parallel import users_module
from trainlab.training.context import TrialContext
from trainlab.training.init import versions
from trainlab.training.trial import Trial

__all__ = ["length_of", "made_with", "warn_of_differences"]

logger = logging.getLogger("trainlab.training")


def made_with(trial: Trial, context: TrialContext, loader: Any) -> dict[str, Any]:
    """Collect what may not change if a resume is to be exact; what may not change at all is checked as it is loaded.

    Args:
        trial: the user's Trial.
        context: its context, with everything that is wrapped.
        loader: the training loader.

    Returns:
        Plain values by the words in which a person is told of them; None for what cannot be known.
    """
    return {
        "Trial class": class_name(type(trial)),
        "seed": context.get_trial_seed(),
        "precision": context.precision.name,
        "aggregation_frequency": context.aggregation_frequency,
        "records in the training data set": length_of(getattr(loader, "dataset", None)),
        "training batch size": _plain(getattr(loader, "batch_size", None)),
        "class of the training loader": class_name(type(loader)),
        "training loader with workers": bool(getattr(loader, "num_workers", 0)),
        "parameters that are trained": {
            name: sum(p.numel() for p in users_module(model).parameters() if p.requires_grad)
            for name, model in zip(context.model_names, context.models, strict=True)
        },
        "learning rate schedulers": [type(scheduler.scheduler).__qualname__ for scheduler in context.lr_schedulers],
        **{f"version of {name}": version for name, version in versions().items()},
    }


def warn_of_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log a warning for each thing that a resumed run has otherwise than the run had when its checkpoint was made.

    Args:
        saved: what ``made_with`` gave then.
        now: what it gives now.
    """
    for what in now:
        if what in saved and saved[what] != now[what]:
            logger.warning(
                "The resumed run goes on otherwise than it was begun: %s was %r and is %r. It will not end exactly as "
                "an uninterrupted run.",
                what,
                saved[what],
                now[what],
            )


def length_of(sized: Any) -> int | None:
    """Give a length, None where there is none.

    Args:
        sized: a data set, a loader or None.
    """
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _plain(value: Any) -> int | None:
    return value if isinstance(value, int) else None
