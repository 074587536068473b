"""Several processes that train one model: ranks, collectives, seeds."""

from trainlab.distributed.context import DistributedContext
from trainlab.distributed.rng import RngState, derive_seed, preserved_rng, seed_all

__all__ = ["DistributedContext", "RngState", "derive_seed", "preserved_rng", "seed_all"]
