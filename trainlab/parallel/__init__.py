"""Parallel models: how the ranks of a run share a model and exchange its gradients."""

from trainlab.parallel.choice import make_parallel
from trainlab.parallel.options import DDPOptions, FSDPOptions
from trainlab.parallel.own_loop import is_replicated
from trainlab.parallel.replication import users_module
from trainlab.parallel.single import Parallel

__all__ = ["DDPOptions", "FSDPOptions", "Parallel", "is_replicated", "make_parallel", "users_module"]
