"""Which features the runs have that are killed, and where they are."""

import random

from tests.training.marks import PLACES, POINTS, REMOVING, WRITING

__all__ = ["EACH_POINT", "QUICK", "SCENARIOS", "random_features", "random_place"]

# One by one; those that concern the data come without workers and with two.
_MODELS = ("dropout,adam", "buffers,adamw", "lbfgs,dropout", "gan", "gan,accumulate", "accumulate,adam", "stateful,ema")
_SCHEDULES = ("epochs", "batches,adam", "steps,accumulate", "manual", "plateau", "gan,steps", "gan,plateau")
_PRECISIONS = ("bf16,dropout,adam", "fp16,adamw")
_CHECKPOINTS = ("best", "lucky,keep", "write_end,lucky", "fork,best", "sync,lucky,keep")
_DATA = ("shuffle", "shuffle,augment", "shuffle,ahead,augment", "sampler,augment", "iterable,augment", "flow,augment")
_TOGETHER = (
    "shuffle,augment,dropout,buffers,accumulate,gan,adamw,batches,bf16,stateful,ahead,best",
    "flow,augment,dropout,buffers,accumulate,adam,steps,stateful,ahead,lucky",
    "iterable,augment,dropout,accumulate,gan,plateau,bf16,stateful,ahead,keep",
    "sampler,augment,dropout,accumulate,gan,epochs,stateful,ahead,ema,fork",
)
SCENARIOS = [
    *_MODELS,
    *_SCHEDULES,
    *_PRECISIONS,
    *_CHECKPOINTS,
    *_DATA,
    *(f"{features},workers2" for features in _DATA),
    "shuffle,augment,ahead,persistent,workers2",
    *_TOGETHER,
    *(f"{features},workers2" for features in _TOGETHER),
]
# Each feature once at least: those that are in no scenario of many, and these with and without workers in turn.
QUICK = [
    "lbfgs,dropout",
    "gan,accumulate",
    "manual",
    "gan,plateau",
    "fp16,adamw",
    "write_end,lucky",
    "sync,lucky,keep",
    "shuffle,augment,ahead,persistent,workers2",
    *_TOGETHER[:2],
    *(f"{features},workers2" for features in _TOGETHER[1:]),
]

# Each point of the writer by the mode, in an order in which a run that dies at one still comes to the next: some before
# there is a checkpoint, one that leaves the first, and the others with that at their back.
_BEFORE, _AFTER = WRITING[: WRITING.index("published")], WRITING[WRITING.index("published") + 1 :]
_EACH = (*_BEFORE[:3], "published", *_BEFORE[3:6], "rubbish removed", *_BEFORE[6:], *_AFTER, *REMOVING[:-1])
EACH_POINT = {
    "async": ("staged", *_EACH),
    "fork": ("forked", *_EACH),
    "sync": _EACH,
}

_EXTRAS = ("dropout", "augment", "accumulate", "gan", "stateful", "ahead", "workers2", "ema", "keep", "write_end")
_CHOICES = (
    ("shuffle", "sampler", "iterable", "flow", "buffers"),
    ("sgd", "adam", "adamw", "lbfgs"),
    ("epochs", "batches", "steps", "manual", "plateau", "constant"),
    ("fp32", "bf16", "fp16"),
    ("best", "lucky", "unjudged"),
    ("async", "async", "fork", "sync"),
)
# A closure is evaluated several times a step, which these do not go with.
_NOT_WITH_LBFGS = {"gan", "accumulate", "fp16"}


def random_features(random_: random.Random) -> str:
    """Any set of features that go together."""
    features = {name for name in _EXTRAS if random_.random() < 0.3} | {random_.choice(names) for names in _CHOICES}
    if features & _NOT_WITH_LBFGS:
        features.discard("lbfgs")
    return ",".join(sorted(features))


def random_place(random_: random.Random, *, points: bool = True) -> str:
    """Any place to be killed at: one of the user's, or an instant of the writer."""
    if points and random_.random() < 0.5:
        return f"point:{random_.choice(POINTS)}:{random_.randint(1, 5)}"
    place = random_.choice(PLACES)
    return f"{place}:{random_.randint(1, 20)}"
