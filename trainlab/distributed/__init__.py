"""Several processes that train one model: ranks, exchanges, the first failure of any of them, and seeds."""

from trainlab.distributed.channel import Channel
from trainlab.distributed.context import DistributedContext
from trainlab.distributed.devices import check_gpus, choose_device, gpu_environment, visible_gpus
from trainlab.distributed.exchange import Exchange
from trainlab.distributed.failure import Failure
from trainlab.distributed.functional import (
    broadcast_from_master,
    distributed_barrier,
    get_num_processes,
    get_rank,
    init_distributed,
    is_distributed,
    is_master,
    open_ranks,
)
from trainlab.distributed.launched import Launched, launched, note
from trainlab.distributed.own_group import get_context, get_group, get_local_rank, use_groups
from trainlab.distributed.rng import RngState, derive_seed, preserved_rng, seed_all
from trainlab.distributed.store import JobStore
from trainlab.distributed.watchdog import Watchdog

__all__ = [
    "Channel",
    "DistributedContext",
    "Exchange",
    "Failure",
    "JobStore",
    "Launched",
    "RngState",
    "Watchdog",
    "broadcast_from_master",
    "check_gpus",
    "choose_device",
    "derive_seed",
    "distributed_barrier",
    "get_context",
    "get_group",
    "get_local_rank",
    "get_num_processes",
    "get_rank",
    "gpu_environment",
    "init_distributed",
    "is_distributed",
    "is_master",
    "launched",
    "note",
    "open_ranks",
    "preserved_rng",
    "seed_all",
    "use_groups",
    "visible_gpus",
]
